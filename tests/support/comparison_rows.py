"""A script that tries what works in the tasks of an executor, for `test_stdlib_comparison`.

Its arguments are the kind of the executor, ``fork``, ``spawn`` or the address of a cluster for a
`BatchPoolExecutor`, and the number of a row, ``all`` or ``bare``. It prints, for each row, its
number and whether each of its checks has given what the same lines give in one process.
"""

import enum
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import time
import typing

SECONDS = 60


def make_executor(**options: typing.Any) -> typing.Any:
    kind = sys.argv[1]
    if kind in ("fork", "spawn"):
        from concurrent.futures import ProcessPoolExecutor

        context = multiprocessing.get_context(kind)
        return ProcessPoolExecutor(1, mp_context=context, **options)
    from daskbatch import BatchPoolExecutor

    return BatchPoolExecutor(cluster=kind, **options)


def works(check: typing.Callable[[typing.Any], bool], **options: typing.Any) -> bool:
    """Return whether a check is true with a new executor."""
    with make_executor(**options) as executor:
        try:
            return bool(check(executor))
        except Exception:
            return False


def call(function: typing.Any, *args: typing.Any) -> typing.Callable[[typing.Any], bool]:
    """Return a check: a call gives in a task what it gives here."""
    return lambda executor: executor.submit(function, *args).result(SECONDS) == function(*args)


def comes_back(value: typing.Any) -> typing.Callable[[typing.Any], bool]:
    """Return a check: a value returns from a task as itself."""
    return lambda executor: executor.submit(same, value).result(SECONDS) is value


def same(value: typing.Any) -> typing.Any:
    return value


class Model:
    factor = 3

    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self) -> int:
        return self.number * self.factor


def fit(model: Model) -> int:
    return model.fit()


def with_closure(number: int) -> typing.Any:
    def inner(value: int) -> int:
        return value + number

    return inner


def with_local_class() -> typing.Any:
    class Local:
        value = 5

    return Local


def value_of(kind: typing.Any) -> typing.Any:
    return kind.value


class Permission(enum.Flag):
    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = READ | WRITE


class Speed(enum.Enum):
    FAST = 1
    QUICK = 1  # noqa: PIE796


class Planet(enum.Enum):
    EARTH = 5.9e24, 6.3e6

    def __init__(self, mass: float, radius: float) -> None:
        self.mass = mass


class Sized(int, enum.Enum):
    def __new__(cls, value: int) -> "Sized":
        made = int.__new__(cls, value * 10)
        made._value_ = value
        return made

    SMALL = 1


UserId = typing.NewType("UserId", int)
Item = typing.TypeVar("Item")
Parameters = typing.ParamSpec("Parameters")


@functools.cache
def cached(number: int) -> int:
    return number + 1


@functools.singledispatch
def dispatched(value: object) -> str:
    return "any"


@dispatched.register
def _(value: int) -> str:
    return "int"


class Default:
    def __reduce__(self) -> str:
        return "DEFAULT"


DEFAULT = Default()


def pickled_by_name() -> bool:
    return type(pickle.loads(pickle.dumps(Model(2)))) is Model


def in_main(name: str) -> bool:
    import __main__

    return hasattr(__main__, name)


def mentions_model() -> bool:
    import __main__

    return __main__.Model is Model


def square(number: int) -> int:
    return number * number


def with_pool() -> typing.Any:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(square, [1, 2, 3])


def with_queue() -> typing.Any:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=put, args=(queue, Model(4)))
    process.start()
    found = queue.get().fit()
    process.join()
    return found


def put(queue: typing.Any, value: typing.Any) -> None:
    queue.put(value)


def set_up(number: int) -> None:
    global state
    state = number


def look() -> int:
    return state


state = 0


class Refusing(Exception):
    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)


def raise_refusing() -> None:
    raise Refusing(1, "a text")


def is_alone(executor: typing.Any) -> bool:
    """Return whether a call whose exception cannot be unpickled fails without the next one."""
    failing = executor.submit(raise_refusing)
    assert failing.exception(SECONDS) is not None
    return executor.submit(square, 3).result(SECONDS) == 9


def newer_function(executor: typing.Any) -> bool:
    executor.submit(square, 2).result(SECONDS)
    exec("def newer():\n    return 7", globals())
    return executor.submit(globals()["newer"]).result(SECONDS) == 7


def newer_global(executor: typing.Any) -> bool:
    executor.submit(square, 2).result(SECONDS)
    globals()["state"] = 8
    return executor.submit(look).result(SECONDS) == 8


def note_and_sleep(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    while True:
        time.sleep(0.1)


def can_be_stopped(executor: typing.Any) -> bool:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "started")
        future = executor.submit(note_and_sleep, path)
        while not (os.path.exists(path) and os.path.getsize(path)):
            time.sleep(0.02)
        stopped = future.cancel()
        if not stopped:
            with open(path) as file:
                os.kill(int(file.read()), signal.SIGKILL)
        return bool(stopped)


#: The rows in the order of the table: what each of them checks.
ROWS: list[typing.Callable[[], list[bool]]] = [
    lambda: [works(call(fit, Model(2))), works(call(square, 3))],
    lambda: [works(call(fit, Model(2))), works(call(square, 3))],
    lambda: [
        works(call(lambda: 3)),
        works(call(with_closure(4), 1)),
        works(call(value_of, with_local_class())),
    ],
    lambda: [works(comes_back(Model)), works(comes_back(Permission))],
    lambda: [works(comes_back(lambda: 3)), works(comes_back(with_closure(4)))],
    lambda: (
        [
            works(comes_back(each))
            for each in (Permission.READ, Permission.BOTH, Permission.NONE, Speed.QUICK)
        ]
        + [works(comes_back(Sized.SMALL)), works(call(mass_of, Planet.EARTH))]
    ),
    lambda: (
        [works(comes_back(each)) for each in (UserId, Item, Parameters, cached, dispatched)]
        + [works(call(cached, 3)), works(call(dispatched, 3))]
    ),
    lambda: [works(comes_back(DEFAULT))],
    lambda: [works(newer_function), works(newer_global)],
    lambda: [
        works(call(pickled_by_name)),
        works(call(mentions_model)),
        works(call(in_main, "put")),
    ],
    lambda: [works(call(with_pool)), works(call(with_queue))],
    lambda: [
        works(
            lambda executor: executor.submit(look).result(SECONDS) == 6,
            initializer=set_up,
            initargs=(6,),
        )
    ],
    lambda: [works(is_alone)],
    lambda: [works(can_be_stopped)],
]


def mass_of(planet: Planet) -> float:
    return planet.mass


def main() -> None:
    wanted = sys.argv[2]
    if wanted == "bare":  # as a script has it that catches nothing
        with make_executor() as executor:
            print(0, call(fit, Model(2))(executor))
        return
    for number, row in enumerate(ROWS):
        if wanted in ("all", str(number)):
            print(number, *row(), flush=True)


# The line below is replaced, for a script without this guard.
if __name__ == "__main__":
    main()

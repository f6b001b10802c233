"""A script that defines what is hard to send; `test_scripts.py` runs it as ``__main__``.

It prints the functions whose results differ in a task, and the values that do not return as
themselves. Its argument is the isolation of the tasks.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import datetime
import email.mime.text
import enum
import functools
import pickle
import sys
import typing
import xml.dom.minidom
from collections import namedtuple
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, NamedTuple, NewType, ParamSpec, TypedDict, TypeVar

from daskbatch import Batch


class Access(enum.IntFlag):
    A = 1
    C = 4
    AC = 5
    D = 8


class Kept(enum.IntFlag, boundary=enum.KEEP):
    X = 2
    Y = 16


class Word(str, enum.Enum):  # noqa: UP042
    ONE = "1"
    ALIAS = "1"  # noqa: PIE796
    TWO = "2"


class Made(enum.Enum):
    A = ("a", 1)
    B = ("b", 2)

    def __new__(cls, value: str, number: int) -> Made:
        made = object.__new__(cls)
        made._value_ = value
        made.number = number  # type: ignore[attr-defined]
        return made


class Coordinate(bytes, enum.Enum):
    X = (0, "label X")
    Y = (1, "label Y")

    def __new__(cls, value: int, label: str) -> Coordinate:
        made = bytes.__new__(cls, [value])
        made._value_ = value
        made.label = label  # type: ignore[attr-defined]
        return made


class Mixed(enum.Enum):
    @enum.member
    def called() -> int:  # type: ignore[misc]
        return 1

    OTHER = 2

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return cls.OTHER


class Day(datetime.date, enum.Enum):
    FIRST = 2020, 1, 1


Pair = namedtuple("Pair", "x y")


class Corner(Pair, enum.Enum):
    ORIGIN = 0, 0
    UNIT = 1, 1


Functional = enum.Enum("Functional", "a b")


class Row(NamedTuple):
    left: int
    right: str = "r"


class Keys(TypedDict, total=False):
    key: int


class Registered:
    subclasses: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, *, key: str, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        Registered.subclasses[key] = cls


class First(Registered, key="first"):
    pass


class Second(First, key="second"):
    pass


class Refusing:
    def __init_subclass__(cls) -> None:
        if not hasattr(cls, "required"):
            raise TypeError("required")


class Accepted(Refusing):
    required = 1


class Meta(type):
    made: ClassVar[list[str]] = []

    def __new__(
        cls, name: str, bases: tuple[type, ...], space: dict[str, Any], *, flag: int
    ) -> Meta:
        made = super().__new__(cls, name, bases, space)
        made.flag = flag  # type: ignore[attr-defined]
        Meta.made.append(name)
        return made

    def __init__(cls, name: str, bases: Any, space: Any, *, flag: int) -> None:
        super().__init__(name, bases, space)

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("equal")

    def __hash__(cls) -> int:
        raise RuntimeError("hash")


class OfMeta(metaclass=Meta, flag=7):
    pass


class Abstract(abc.ABC):
    @abc.abstractmethod
    def run(self) -> int: ...


class Concrete(Abstract):
    def run(self) -> int:
        return counter


@Abstract.register
class Virtual:
    pass


@dataclasses.dataclass(slots=True, frozen=True, order=True)
class Data:
    number: int
    items: list[int] = dataclasses.field(default_factory=list)
    limit: ClassVar[int] = 3
    parent: Data | None = None


class Slots:
    __slots__ = ("__hidden", "__weakref__", "open")

    def __init__(self) -> None:
        self.open = 1
        self.__hidden = 2

    def hidden(self) -> int:
        return self.__hidden


class Named:
    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        return self if obj is None else obj.__dict__.get(self.name, "unset")


T = TypeVar("T", bound="Box[Any]")
P = ParamSpec("P")
UserId = NewType("UserId", int)


class Box(Generic[T]):
    field = Named()

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value


class Sentinel:
    def __reduce__(self) -> str:
        return "MISSING"


MISSING = Sentinel()
counter = 5


@functools.lru_cache(maxsize=3)
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@functools.singledispatch
def show(value: object) -> Any:
    return "any"


@show.register(list)
def _(value: list[Any]) -> Any:
    return [show(each) for each in value]


class Lazy:
    @functools.singledispatchmethod
    def show(self, value: object) -> str:
        return "any"

    @show.register(int)
    def _(self, value: int) -> str:
        return "int"

    @functools.cached_property
    def once(self) -> int:
        return 9

    @functools.lru_cache  # noqa: B019
    def cached(self) -> int:
        return 5


def counting(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        wrapper.calls += 1  # type: ignore[attr-defined]
        return function(*args)

    wrapper.calls = 0  # type: ignore[attr-defined]
    return wrapper


@counting
def double(value: int) -> int:
    return 2 * value


@contextlib.contextmanager
def context() -> Iterator[int]:
    yield counter


class Outer:
    class Inner:
        class Deep:
            pass


def enumerations() -> Any:
    return (
        [Access(5) is Access.AC, Access(12), ~Access.A, Kept(3), Access.A in Access.AC],
        [Word("1") is Word.ALIAS, list(Word.__members__), Made("a") is Made.A],
        [Made.A.number, Coordinate(1).label, Mixed.called.value(), Mixed(99)],  # type: ignore
        [Day.FIRST.year, Corner.UNIT.x, Functional.b.value, len(Coordinate)],  # type: ignore
    )


def classes() -> Any:
    return [
        sorted(Registered.subclasses),
        Registered.subclasses["second"] is Second,
        OfMeta.flag,  # type: ignore[attr-defined]
        Meta.made[0],
        Concrete().run(),
        issubclass(Virtual, Abstract),
        Abstract.__abstractmethods__,
        Slots().hidden(),
        hasattr(Slots(), "__dict__"),
        Outer.Inner.Deep.__qualname__,
        Box(3).get(),
        Box(3).field,
        Box.field.name,
    ]


def data() -> Any:
    first = dataclasses.fields(Data)[0]
    return (
        [first.default is dataclasses.MISSING, Data(1) < Data(2), Data(1), Row(1), Row._fields],
        [sorted(typing.get_type_hints(Data)), Keys(key=1), UserId(3), Box.__parameters__[0] is T],
    )


def functions() -> Any:
    return (
        [fibonacci(20), show([1, ["a"]]), Lazy().show(1), Lazy().show("a"), Lazy().once],
        [Lazy().cached(), double(2), double.__wrapped__(3), next(context().gen)],  # type: ignore
    )


def submodules() -> Any:
    texts = (lambda: [email.mime.text.MIMEText(each).get_content_type() for each in "a"])()
    names = [[xml.dom.minidom.parseString(each).documentElement.tagName for each in ["<a/>"]]]
    return texts, names


def by_name() -> Any:
    import __main__

    objects = [Outer.Inner.Deep(), Second(), Access.AC, Access.A | Access.D, MISSING, Word.ONE]
    again = pickle.loads(pickle.dumps(objects))

    class Local:
        inherited = counter
        outer = Outer

    return (
        [type(one) is type(other) for one, other in zip(objects, again, strict=True)],
        [again[2] is Access.AC, again[4] is MISSING, __main__.Outer is Outer, __main__.counter],
        [Local.inherited, Local.outer is Outer],
    )


def same(value: object) -> object:
    return value


VALUES: list[Any] = [
    *(Access, Access.AC, Access.A | Access.D, Kept, Word.ALIAS, Made.B, Coordinate.Y),
    *(Mixed.called, Mixed.OTHER, Day.FIRST, Corner.UNIT, Functional.b, Functional),
    *(Row, Keys, Registered, First, Second, Refusing, Accepted, Meta, OfMeta),
    *(Abstract, Concrete, Virtual, Data, Slots, Named, T, P, UserId, Box, MISSING),
    *(fibonacci, show, Lazy, Lazy.cached, counting, double, context, same),
    # From Python 3.14 on, each access makes another object.
    *([Lazy.show] if sys.version_info < (3, 14) else []),
    *(Outer, Outer.Inner.Deep, lambda: counter, Pair, Box.get),
]


def main() -> None:
    """Run each function here and in a task, and send each value there and back."""
    with Batch() as batch:
        factory = batch.options(isolation=sys.argv[1])
        probes = [enumerations, classes, data, functions, submodules, by_name]
        tasks = [factory.function(probe) for probe in probes]
        returned = [factory.function(same, value) for value in VALUES]
        batch.compile([*tasks, *returned]).run()
        different = [
            (probe.__name__, task.get(), probe())
            for probe, task in zip(probes, tasks, strict=True)
            if repr(task.get()) != repr(probe())
        ]
        print("different:", different)
        not_same = [
            (value, task.get())
            for value, task in zip(VALUES, returned, strict=True)
            if task.get() is not value and not isinstance(value, functools.partialmethod)
        ]
        print("not the same:", not_same)


if __name__ == "__main__":
    main()

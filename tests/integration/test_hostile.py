"""Objects whose own code fails harm no other task, and each failure names its task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.hostile import KINDS, AnswersAll, Kind

from daskbatch import Batch, BatchError, DDict, Queue, as_executor
from daskbatch.batch.task import Task

SECONDS = 90


@pytest.fixture(scope="module")
def shared_slot() -> Iterator[Batch]:
    """A Batch with one worker of one slot."""
    batch = Batch(num_workers=1)
    yield batch
    batch.terminate()


@pytest.fixture
def slot(shared_slot: Batch) -> Iterator[Batch]:
    """The same Batch: its worker process must be the same after each test."""
    before = _worker(shared_slot)
    yield shared_slot
    assert _worker(shared_slot) == before


def _worker(batch: Batch) -> int:
    task = batch.function(os.getpid)
    task.run(timeout=SECONDS)
    return int(task.get())


# -- what a task does with a hostile object ---------------------------------------------------


def raise_it(kind: int) -> None:
    raise KINDS[kind].error("args", kind)


def raise_as_cause(kind: int) -> None:
    try:
        raise KINDS[kind].error("args")
    except BaseException as error:
        raise ValueError("outer") from error


def raise_as_context(kind: int) -> None:
    try:
        raise KINDS[kind].error("args")
    except BaseException:
        raise ValueError("outer")  # noqa: B904


def raise_in_group(kind: int) -> None:
    raise BaseExceptionGroup("outer", [ValueError("other"), KINDS[kind].error("args")])


def raise_as_argument(kind: int) -> None:
    raise ValueError(KINDS[kind].plain())


def raise_as_attribute(kind: int) -> None:
    error = ValueError("outer")
    error.it = KINDS[kind].plain()  # type: ignore[attr-defined]
    raise error


def raise_as_note(kind: int) -> None:
    error = ValueError("outer")
    error.__notes__ = [KINDS[kind].plain()]
    raise error


def raise_as_code(kind: int) -> None:
    raise SystemExit(KINDS[kind].plain())


def return_it(kind: int) -> Any:
    return KINDS[kind].plain()


def return_error(kind: int) -> Any:
    return KINDS[kind].error("args")


def return_inside(kind: int) -> Any:
    return {"deep": [(KINDS[kind].plain(), KINDS[kind].error())]}


def print_it(kind: int) -> None:
    print(KINDS[kind].plain())


async def raise_in_coroutine(kind: int) -> None:
    raise KINDS[kind].error("args")


DONE_BY_A_TASK = [
    *(raise_it, raise_as_cause, raise_as_context, raise_in_group, raise_as_argument),
    *(raise_as_attribute, raise_as_note, raise_as_code, return_it, return_error, return_inside),
    *(print_it, raise_in_coroutine),
]


def ok(number: int) -> int:
    return number


def _look_at(task: Task) -> None:
    """Ask for all that the program can ask of a task."""
    assert task.state in ("done", "failed", "skipped"), task.state
    assert type(task.name) is str
    repr(task)
    task.stdout.get(SECONDS)
    raised: BaseException | None = None
    try:
        task.get(SECONDS)
    except BaseException as error:
        raised = error
    if issubclass(type(raised), BatchError):
        assert repr(task.name) in str(raised)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("function", DONE_BY_A_TASK)
def test_what_a_task_does_with_it(
    slot: Batch, function: Callable[..., Any], isolation: str
) -> None:
    make = slot.options(isolation=isolation).function
    tasks = []
    for number, kind in enumerate(KINDS):
        tasks += [
            make(ok, number),
            slot.options(isolation=isolation, name=kind.name).function(function, number),
        ]
    dependents = [make(ok, task) for task in tasks[1::2]]
    program = slot.compile([*tasks, *dependents])
    program.run(timeout=SECONDS)
    assert [task.get() for task in tasks[::2]] == list(range(len(KINDS)))
    for task in (*tasks[1::2], *dependents):
        _look_at(task)
    assert program.to_dot()


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_in_a_chunk(slot: Batch, isolation: str) -> None:
    executor = as_executor(slot).options(isolation=isolation)
    for function in (raise_it, return_inside):
        calls = [(ok, number) if number % 2 else (function, number) for number in range(len(KINDS))]
        futures = [executor.submit(each, number) for each, number in calls]
        for number, future in enumerate(futures):
            repr(future)
            error = future.exception(SECONDS)
            repr(future)
            assert error is None or number % 2 == 0
    mapped = iter(executor.map(_call_either, range(len(KINDS)), chunksize=len(KINDS)))
    assert next(mapped) == 0


def _call_either(number: int) -> int:
    if number:
        raise KINDS[number].error("args")
    return number


# -- what the program gives to tasks ----------------------------------------------------------


def _takes(*args: Any, **kwargs: Any) -> int:
    return len(args) + len(kwargs)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("how", ["argument", "keyword", "deep", "default", "closure", "attribute"])
def test_what_a_task_is_given(slot: Batch, how: str, isolation: str) -> None:
    def task_of(kind: Kind) -> Task:
        make, it = slot.options(isolation=isolation, name=kind.name).function, kind.plain()
        if how == "argument":
            return make(_takes, it)
        if how == "keyword":
            return make(_takes, it=it)
        if how == "deep":
            return make(_takes, [{"key": (it, kind.error("args"))}])
        if how == "default":
            return make(lambda value=it: 1)
        if how == "closure":
            return make(lambda: 1 if it is None else 2)

        def function() -> int:
            return 1

        function.it = it  # type: ignore[attr-defined]
        return make(function)

    tasks = []
    for number, kind in enumerate(KINDS):
        tasks += [slot.options(isolation=isolation).function(ok, number), task_of(kind)]
    slot.compile(tasks).run(timeout=SECONDS)
    assert [task.get() for task in tasks[::2]] == list(range(len(KINDS)))
    for task in tasks[1::2]:
        _look_at(task)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_callable_that_answers_to_every_attribute(slot: Batch, isolation: str) -> None:
    make = slot.options(isolation=isolation).function
    tasks = [make(ok, 0), make(AnswersAll(), 1), make(AnswersAll().remote.power, 2), make(ok, 3)]
    program = slot.compile(tasks)
    program.run(timeout=SECONDS)
    assert program.result.get() == [0, 5, 5, 3]
    assert [task.name for task in tasks] == ["ok[0]", "AnswersAll[0]", "AnswersAll[1]", "ok[1]"]
    assert "AnswersAll" in program.to_dot()
    executor = as_executor(slot)
    futures = [executor.submit(each, 1) for each in (ok, AnswersAll(), AnswersAll().a.b, ok)]
    assert [future.result(SECONDS) for future in futures] == [1, 5, 5, 1]
    assert list(executor.map(AnswersAll(), range(3), chunksize=2)) == [5, 5, 5]


# -- shared objects ---------------------------------------------------------------------------


def use_shared(shared: DDict, queue: Queue, number: int) -> list[str]:
    """Use a hostile object as a key, a value and an item; return what was raised."""
    kind = KINDS[number]
    raised = []
    for attempt in (
        lambda: shared.__setitem__(number, kind.plain()),
        lambda: shared[number],
        lambda: shared.__setitem__(kind.plain(), number),
        lambda: shared[kind.plain()],
        lambda: kind.plain() in shared,
        lambda: shared.get_many([kind.plain()]),
        lambda: queue.put(kind.plain()),
        lambda: queue.get(timeout=0.0),
    ):
        try:
            attempt()
        except BaseException as error:
            raised.append(type(error).__mro__[0].__doc__ or "")
    return raised


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_in_shared_objects(slot: Batch, isolation: str) -> None:
    shared, queue = slot.ddict(), slot.queue()
    shared["own"] = "value"
    make = slot.options(isolation=isolation).function
    tasks = [make(use_shared, shared, queue, number) for number in range(len(KINDS))]
    slot.compile(tasks).run(timeout=SECONDS)
    for task in tasks:
        assert task.state == "done", task.get()
    assert shared["own"] == "value"
    queue.close()
    shared.close()


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[kind.name for kind in KINDS])
def test_as_an_option(slot: Batch, number: int) -> None:
    """A wrong option is refused in the program, and nothing runs."""
    it = KINDS[number].plain()
    names = ["name", "retries", "priority", "isolation", "workers", "resources", "cwd", "env"]
    for option in names:
        with pytest.raises(BatchError, match=f"{option}="):
            slot.options(**{option: it})

"""What a task shows of itself: its failures, why it waits, futures, copies, and debugging."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from support.waiting import wait_for_file, wait_until, wait_until_running

import daskbatch
from daskbatch import (
    Batch,
    BatchWarning,
    CompiledTask,
    DependencyFailed,
    LifecycleError,
    SpecError,
    Task,
    TaskCancelled,
    TaskInfo,
    TasksFailed,
    as_completed,
)


def fail(n: Any) -> None:
    raise ValueError(n)


class Odd(BaseException):
    """An exception that a group of exceptions cannot hold."""


def raise_odd() -> None:
    raise Odd("odd")


def same(x: Any, *_: Any) -> Any:
    return x


# -- check=True, failures and skipped ---------------------------------------------------------


def test_check_of_one_task(batch: Batch) -> None:
    with pytest.raises(ValueError, match="3"):
        batch.function(fail, 3).run(timeout=60, check=True)
    batch.function(same, 3).run(timeout=60, check=True)


def test_check_of_a_program(batch: Batch) -> None:
    bad, odd, good = batch.function(fail, 1), batch.function(raise_odd), batch.function(same, 1)
    cancelled = batch.function(same, 2)
    behind = [batch.function(same, each) for each in (bad, bad, cancelled)]
    program = batch.compile([bad, odd, good, cancelled, *behind], name="mine")
    cancelled.cancel()
    with pytest.raises(TasksFailed) as caught:
        program.run(timeout=60, check=True)
    error = caught.value
    assert str(error).startswith(
        "of the 7 tasks of 'mine', 2 failed, 1 were cancelled, 3 did not run because of others"
    )
    assert [type(each).__name__ for each in error.exceptions] == [
        "ValueError",
        "TaskError",
        "TaskCancelled",
    ]
    assert isinstance(error.exceptions[1].__cause__, Odd)
    assert isinstance(error, daskbatch.BatchError)
    copy = pickle.loads(pickle.dumps(error.subgroup(ValueError)))
    assert type(copy) is TasksFailed
    assert copy.exceptions[0].args == (1,)
    assert program.failures == (bad, odd)
    assert program.skipped == tuple(behind)
    assert [task.state for task in program.tasks] == [
        *("failed", "failed", "done", "cancelled"),
        *("skipped", "skipped", "skipped"),
    ]


def test_check_where_all_depend_on_an_earlier_failure(batch: Batch) -> None:
    bad = batch.function(fail, 1)
    bad.run(timeout=60)
    program = batch.compile([batch.function(same, bad) for _ in range(3)])
    with pytest.raises(TasksFailed, match="3 did not run") as caught:
        program.run(timeout=60, check=True)
    assert [type(each) for each in caught.value.exceptions] == [DependencyFailed]
    assert program.state == "skipped"


def test_names_in_a_program(batch: Batch) -> None:
    named = batch.options(name="mine")
    tasks = [
        *(batch.function(same, 1), named.function(same, 2), batch.function(len, "")),
        *(named.function(same, 3), batch.function(same, 4)),
    ]
    program = batch.compile(tasks)
    assert [task.name for task in tasks] == ["same[0]", "mine[0]", "len", "mine[1]", "same[1]"]
    assert list(program.graph.names) == [task.name for task in tasks]


# -- information ----------


def test_info(batch: Batch, tmp_path: Path) -> None:
    path = tmp_path / "out"
    task = batch.function(fail, 1, writes=batch.write(path))
    assert task.info.state == "created"
    task.run(timeout=60)
    info = task.info
    assert isinstance(info, TaskInfo)
    assert (info.name, info.uid, info.state) == ("fail", task.uid, "failed")
    assert (info.writes, info.error) == ((str(path),), "ValueError: 1")
    with pytest.raises(AttributeError):
        info.state = "done"  # type: ignore[misc]
    missing = batch.function(same, 1, writes=batch.write(path))
    missing.run(timeout=60)
    (said,) = missing.info.warnings
    assert said == f"it declared to write {path}, which was not there when it had succeeded"


def test_types_are_public(batch: Batch) -> None:
    task = batch.function(same, 1)
    assert isinstance(task, Task)
    assert isinstance(batch.compile([task]), CompiledTask)


# -- why ----------


def test_why(batch: Batch, tmp_path: Path) -> None:
    go, data = tmp_path / "go", tmp_path / "data"
    first = batch.function(wait_for_file, go, name="first", writes=batch.write(data))
    middle = [batch.function(same, 1, first, name="m0", reads=batch.read(data))]
    middle += [batch.function(same, n, middle[0], name=f"m{n}") for n in range(1, 2)]
    for n in range(2, 9):
        middle.append(batch.function(same, n, middle[-1], name=f"m{n}"))
    overwrites = batch.function(data.write_text, "x", name="w", writes=batch.write(data))
    program = batch.compile([first, *middle, overwrites])
    assert first.why().endswith(
        "has not been started: call start() of the compiled task 'batch', its program."
    )
    program.start()
    wait_until_running(first)
    assert first.why().startswith(f"'first' ('{go}') runs on ")
    said = middle[0].why()
    assert (
        f"'m0' (1) waits for 'first' ('{go}') (it takes its result; it reads {data}, which " in said
    )
    assert "the other writes (RAW)), which runs on " in said
    said = middle[8].why()
    assert said.startswith("'m8' (8) waits for 'm7' (7) (it takes its result), which waits for ")
    assert "which waits for 'm1' (1) by way of 3 more tasks, which waits for 'm0' (1)" in said
    assert f"it writes {data}, which the other reads (WAR)" in overwrites.why()
    assert program.why().startswith("0 of 11 tasks of 'batch' are over, 1 run; 'first' (")
    go.touch()
    program.wait(timeout=60)
    assert middle[0].why() == "'m0' (1) is done."


def test_why_of_what_is_over(batch: Batch) -> None:
    bad = batch.function(fail, 1)
    behind = batch.function(same, bad)
    cancelled = batch.function(same, 5)
    cancelled.cancel()
    assert cancelled.why() == "'same' (5) was cancelled."
    program = batch.compile([bad, behind])
    program.run(timeout=60)
    assert bad.why() == "'fail' (1) failed: ValueError: 1."
    assert behind.why() == "'same' did not run, because 'fail' (1) failed: ValueError: 1."
    assert program.why().startswith("2 of 2 tasks of 'batch' are over, 1 failed, 1 were skipped;")


def test_why_without_a_free_slot(batch: Batch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    holders = [batch.options(retries=n).function(wait_for_file, go) for n in range(2)]
    for holder in holders:
        holder.start()
    wait_until_running(*holders)
    waits = [batch.process("true") for _ in range(2)]
    for task in waits:
        task.start()
    assert "waits for a slot: all 2 are taken, and 0 tasks of this client are before it" in (
        waits[0].why()
    )
    go.touch()
    for task in (*holders, *waits):
        task.wait(60, check=True)


# -- futures ----------


def test_futures(batch: Batch) -> None:
    good, bad = batch.function(same, 7), batch.function(fail, 1)
    program = batch.compile([good, bad])
    with pytest.raises(LifecycleError):
        good.as_future()
    program.start()
    futures = [good.as_future(), bad.as_future(), program.as_future()]
    assert futures[0] is good.as_future()
    done, _ = concurrent.futures.wait(futures, timeout=60)
    assert done == set(futures)
    assert futures[0].result() == 7
    assert isinstance(futures[1].exception(), ValueError)
    with pytest.raises(ValueError, match="1"):
        futures[2].result()
    called = threading.Event()
    futures[0].add_done_callback(lambda _: called.set())
    assert called.is_set()


def test_a_future_of_a_large_result(batch: Batch) -> None:
    task = batch.function(bytes, 3_000_000)
    task.start()
    assert len(task.as_future().result(timeout=60)) == 3_000_000


def test_futures_in_asyncio(batch: Batch) -> None:
    tasks = [batch.function(same, n) for n in range(3)]
    batch.compile(tasks).start()

    async def gather() -> list[Any]:
        return await asyncio.gather(*(asyncio.wrap_future(task.as_future()) for task in tasks))

    assert asyncio.run(gather()) == [0, 1, 2]


def test_cancelling_a_future_cancels_the_task(batch: Batch, tmp_path: Path) -> None:
    holders = [batch.function(wait_for_file, tmp_path / "go") for _ in range(2)]
    batch.compile(holders).start()
    wait_until_running(*holders)
    task = batch.function(same, 1)
    task.start()
    future = task.as_future()
    assert future.cancel()
    assert future.cancelled()
    assert task.state == "cancelled"
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    other = holders[0].as_future()
    assert other.running()
    holders[0].cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        other.result(timeout=60)
    (tmp_path / "go").touch()
    assert holders[1].as_future().result(timeout=60)
    assert not holders[1].as_future().cancel()


def test_the_functions_of_concurrent_futures_say_what_to_do(batch: Batch) -> None:
    task = batch.function(same, 1)
    task.run(timeout=60)
    for function in (concurrent.futures.wait, lambda t: [*concurrent.futures.as_completed(t)]):
        with pytest.raises(AttributeError, match=r"task\.as_future\(\).*as_completed"):
            function([task])
    assert inspect.getmembers(task)


def test_as_completed(batch: Batch, tmp_path: Path) -> None:
    slow = batch.function(wait_for_file, tmp_path / "go")
    quick = [batch.function(same, n) for n in range(3)]
    program = batch.compile(quick)
    with pytest.raises(LifecycleError, match="has not been started"):
        as_completed([slow])
    with pytest.raises(SpecError, match="is not a task"):
        as_completed([1])
    slow.start()
    program.start()
    order = []
    for task in as_completed([slow, *quick, program, quick[0]], timeout=60):
        order.append(task)
        if len(order) == 4:
            (tmp_path / "go").touch()
    assert set(order[:4]) == {*quick, program}
    assert order[4:] == [slow]
    waits = batch.function(wait_for_file, tmp_path / "later")
    waits.start()
    with pytest.raises(TimeoutError, match="1 of 1 tasks are not over"):
        next(as_completed([waits], timeout=0.05))
    (tmp_path / "later").touch()


def submit_and_wait(batch: Batch) -> list[int]:
    tasks = [batch.function(same, n) for n in range(3)]
    batch.compile(tasks).start()
    return sorted(task.get() for task in as_completed(tasks, timeout=60))


def test_as_completed_in_a_task(batch: Batch) -> None:
    tasks = [batch.function(submit_and_wait, batch) for _ in range(2)]
    batch.compile(tasks).run(timeout=60)
    assert [task.get() for task in tasks] == [[0, 1, 2]] * 2


# -- copies and debugging --------------------------------


def test_again(batch: Batch, tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    first = batch.function(count, path, reads=batch.read(path), writes=batch.write(path))
    second = batch.function(same, first)
    program = batch.compile([first, second], name="mine")
    program.run(timeout=60)
    with pytest.raises(LifecycleError, match=r"starts once: again\(\) returns a fresh copy"):
        program.run()
    copy = program.again()
    assert (copy.name, copy.state, len(copy.tasks)) == ("mine", "created", 2)
    assert {task.uid for task in copy.tasks}.isdisjoint(task.uid for task in program.tasks)
    copy.run(timeout=60)
    assert (program.get(), copy.get()) == ([1, 1], [2, 2])
    with pytest.raises(LifecycleError, match=r"again\(\) returns a fresh one"):
        one = batch.function(same, 1)
        one.run(timeout=60)
        one.start()
    again = one.again()
    again.run(timeout=60)
    assert again.get() == 1
    other = Batch(batch.client)
    task = other.function(same, 1)
    other.close()
    with pytest.raises(LifecycleError):
        task.again()
    other.join(timeout=60)


def count(path: Path) -> int:
    number = int(path.read_text()) + 1
    path.write_text(str(number))
    return number


def divide(a: float, b: float) -> float:
    return a / b


async def divide_later(a: float, b: float) -> float:
    return a / b


def test_debug(batch: Batch) -> None:
    one = batch.function(same, 1)
    for function in (divide, divide_later):
        bad = batch.function(function, one, 0)
        behind = batch.function(same, bad)
        if one.state == "created":
            batch.compile([one, bad, behind]).run(timeout=60)
        else:
            batch.compile([bad, behind]).run(timeout=60)
        with pytest.raises(ZeroDivisionError) as caught:
            bad.debug()
        assert caught.traceback[-1].name == function.__name__
        with pytest.raises(LifecycleError, match="is skipped: debug 'divide"):
            behind.debug()
    with pytest.raises(LifecycleError, match="only a task that has failed"):
        one.debug()
    with pytest.raises(LifecycleError, match="call debug\\(\\) of a member"):
        batch.compile([batch.function(same, 1)]).debug()


# -- typos -----------------------------------------------


def test_typos_in_keywords(batch: Batch) -> None:
    with pytest.raises(SpecError, match=r"read= is neither .* did you mean reads=\?"):
        batch.function(same, 1, read=[batch.read("a")])
    assert batch.function(dict, read=1).name == "dict"
    for call, hint in (
        (lambda: batch.options(retry=3), "retries"),  # type: ignore[call-arg]
        (lambda: batch.process("true", write=[]), "writes"),  # type: ignore[call-arg]
        (lambda: batch.compile([], checks=None), "check"),  # type: ignore[call-arg]
        (lambda: Batch(num_worker=1), "num_workers"),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match=rf"did you mean {hint}=\?"):
            call()


def test_a_cancelled_task_is_no_failure(batch: Batch) -> None:
    task = batch.function(same, 1)
    assert task.cancel()
    with pytest.raises(TaskCancelled):
        task.get()
    wait_until(lambda: task.state == "cancelled")


def submit_failures(batch: Batch) -> str:
    # The filters of the test suite, which workers have as well, hide these warnings.
    warnings.simplefilter("default", BatchWarning)
    batch.compile([batch.function(fail, n) for n in range(2)]).start()
    return "done"


def test_failures_that_a_task_has_not_looked_at_are_in_its_stderr(batch: Batch) -> None:
    task = batch.options(isolation="fresh").function(submit_failures, batch)
    task.run(timeout=60)
    assert task.get() == "done"
    assert "TasksFailedWarning: 2 tasks failed:\n  'fail[0]' (0): ValueError: 0\n" in (
        task.stderr.get()
    )

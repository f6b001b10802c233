"""Tasks that wait in the background: what starts them, in which order, and how they end."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from support.programs import (
    Outcome,
    act,
    make_root,
    random_program,
    result_of,
    run_sequentially,
    snapshot,
)
from support.waiting import wait_for_file

from daskbatch import (
    Batch,
    BatchPoolExecutor,
    CommunicationDomain,
    CommunicationObject,
    DependencyFailed,
    GraphError,
    LifecycleError,
    SerializationError,
    ServiceLost,
    SubmitAfterCloseError,
    TaskCancelled,
    as_executor,
)
from daskbatch.batch.task import Task

Lazy = Callable[..., Callable[..., Task]]

#: One argument, and what it reads and writes.
CALL = """
import_args: [f]
args: [x, reads, writes]
type: function
executables: [{target: f, args: [x]}]
reads: [{files: [reads]}]
writes: [{files: [writes]}]
"""

#: One argument.
PURE = "{import_args: [f], args: [x], type: function, executables: [{target: f, args: [x]}]}"


def lazy_on(batch: Batch, directory: Path) -> Lazy:
    def lazy(function: Any, text: str = PURE) -> Callable[..., Task]:
        path = directory / "lazy.yml"
        path.write_text(text)
        return batch.import_func(path, function)

    return lazy


@pytest.fixture
def lazy(batch: Batch, tmp_path: Path) -> Lazy:
    """Import a function whose calls wait in the background."""
    return lazy_on(batch, tmp_path)


def same(value: Any) -> Any:
    return value


def fail(value: Any) -> None:
    raise ValueError(value)


def append(what: tuple[Path, str]) -> str:
    """Add a line to a file; return the contents of the file."""
    path, line = what
    with path.open("a") as file:
        file.write(f"{line}\n")
    return path.read_text()


# -- what starts them ---------------------------------------------------------------------


def test_nothing_runs_before_it_is_needed(batch: Batch, lazy: Lazy, tmp_path: Path) -> None:
    file = tmp_path / "file"
    tasks = [lazy(append, CALL)((file, "x"), file, file) for _ in range(3)]
    batch.function(same, 1).run(timeout=60)
    assert [task.state for task in tasks] == ["queued"] * 3
    assert "3 tasks left" in repr(batch)
    assert not file.exists()
    batch.fence(timeout=60)
    assert [task.state for task in tasks] == ["done"] * 3


async def wait_on(task: Task) -> Any:
    return await task


TRIGGERS: dict[str, Callable[[Batch, Task], Any]] = {
    "get": lambda batch, task: task.get(timeout=60),
    "result.get": lambda batch, task: task.result.get(timeout=60),
    "stdout.get": lambda batch, task: task.stdout.get(timeout=60),
    "stderr.get": lambda batch, task: task.stderr.get(timeout=60),
    "wait": lambda batch, task: task.wait(timeout=60),
    "start": lambda batch, task: task.start(),
    "run": lambda batch, task: task.run(timeout=60),
    "await": lambda batch, task: asyncio.run(wait_on(task)),
    "fence": lambda batch, task: batch.fence(timeout=60),
    "a task": lambda batch, task: batch.function(same, [task]).start(),
    "a program": lambda batch, task: batch.compile(
        [batch.function(same, {1: task.stdout})]
    ).start(),
    "a process": lambda batch, task: batch.process("echo", task.result).run(timeout=60),
    "an executor": lambda batch, task: as_executor(batch).submit(same, task).result(timeout=60),
    "a map": lambda batch, task: list(as_executor(batch).map(same, [task, 2], timeout=60)),
}


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_when_one_is_needed_all_are_started(batch: Batch, lazy: Lazy, trigger: str) -> None:
    call = lazy(same)
    first, second, third = call(1), call(2), call(3)
    TRIGGERS[trigger](batch, second)
    assert not {task.state for task in (first, second, third)} & {"created", "queued"}
    for task in (first, second, third):
        task.wait(timeout=60)
    assert [task.get() for task in (first, second, third)] == [1, 2, 3]


def test_a_task_of_a_template_takes_those_of_others(batch: Batch, lazy: Lazy) -> None:
    one = lazy(same)(1)
    other = lazy(sum, PURE)([one, one.result, batch_started(batch)])
    third = batch.function(same, [other, one])
    third.start()
    assert third.get(timeout=60) == [12, 1]


def batch_started(batch: Batch) -> Task:
    task = batch.function(same, 10)
    task.start()
    return task


def test_what_was_never_started_cannot_be_taken(batch: Batch, lazy: Lazy) -> None:
    alone = batch.function(same, 1)
    member = batch.function(same, 1)
    batch.compile([member], name="program")
    for task, which in (
        (alone, "start 'same' first"),
        (member, "the compiled task 'program' first"),
    ):
        with pytest.raises(LifecycleError, match=which):
            lazy(same)(task)
    with Batch(batch.client) as other, pytest.raises(GraphError, match="another Batch"):
        lazy(same)(other.function(same, 1))


def test_close_runs_what_nobody_has_needed(batch: Batch, tmp_path: Path) -> None:
    with Batch(batch.client) as other:
        lazy_on(other, tmp_path)(append, CALL)((tmp_path / "a", "x"), tmp_path, tmp_path / "a")
        kept = lazy_on(other, tmp_path)(same)(1)
        call = lazy_on(other, tmp_path)(same)
    assert (tmp_path / "a").read_text() == "x\n"
    assert kept.get() == 1
    with pytest.raises(SubmitAfterCloseError):
        call(1)


def test_a_batch_without_background_leaves_them_alone(batch: Batch, tmp_path: Path) -> None:
    with Batch(batch.client, background_batching=False) as other:
        task = lazy_on(other, tmp_path)(same)(1)
        assert task.state == "created"
        other.fence(timeout=60)
        with pytest.raises(LifecycleError, match="has not been started"):
            task.get()
        other.compile([task]).run(timeout=60)
        assert task.get() == 1


def test_who_compiles_them_is_told_how(batch: Batch, lazy: Lazy) -> None:
    with pytest.raises(LifecycleError, match="background_batching=False"):
        batch.compile([lazy(same)(1)])


def test_each_may_be_started_once_by_name_also_when_another_was_needed_before(
    batch: Batch, lazy: Lazy
) -> None:
    tasks = [lazy(same)(number) for number in range(5)]
    for task in tasks:
        task.start()
    for task in tasks:
        with pytest.raises(LifecycleError, match="a task starts once"):
            task.start()
    tasks = [lazy(fail)(number) for number in range(5)]
    for task in tasks:
        task.run(timeout=60)
    assert {task.state for task in tasks} == {"failed"}


def test_of_threads_that_start_one_at_once_one_succeeds(batch: Batch, lazy: Lazy) -> None:
    together = threading.Barrier(4)

    def start(task: Task) -> bool:
        together.wait(30)
        try:
            task.start()
        except LifecycleError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        for task in map(lazy(same), range(50)):
            assert sum(threads.map(start, [task] * 4)) == 1


def test_waiting_has_its_time(batch: Batch, lazy: Lazy, tmp_path: Path) -> None:
    task = lazy(wait_for_file)(tmp_path / "go")
    for wait in (task.wait, task.get, task.stdout.get, batch.fence):
        with pytest.raises(TimeoutError):
            wait(timeout=0.01)
    assert task.state in ("waiting", "running")
    (tmp_path / "go").touch()
    assert task.get(timeout=60) == "go"


def test_all_that_waits_is_one_submission(
    batch: Batch, lazy: Lazy, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    submit = batch._session.dispatcher.submit

    def count(records: Sequence[Any], *args: Any) -> None:
        sizes.append(len(records))
        submit(records, *args)

    monkeypatch.setattr(batch._session.dispatcher, "submit", count)
    tasks = [lazy(same)(0)]
    call = lazy(same)
    tasks += [call(number) for number in range(1, 10_000)]
    tasks[5].wait(timeout=60)
    assert [task.get(timeout=60) for task in tasks] == list(range(10_000))
    assert sizes == [10_000]


# -- order --------------------------------------------------------------------------------


def test_order_holds_across_flushes(batch: Batch, lazy: Lazy, tmp_path: Path) -> None:
    file, go = tmp_path / "file", tmp_path / "go"
    first = lazy(wait_for_file, CALL)(go, tmp_path / "in", file)
    first.start()
    tasks = []
    for number in range(20):
        tasks.append(lazy(append, CALL)((file, str(number)), tmp_path / "in", file))
        tasks[-1].start()
    others = lazy(same, CALL)("free", tmp_path / "in", tmp_path / "other")
    assert others.get(timeout=60) == "free"
    assert not file.exists()
    go.touch()
    assert tasks[-1].get(timeout=60).split() == [str(number) for number in range(20)]


def test_a_write_waits_for_reads_of_an_earlier_flush(
    batch: Batch, lazy: Lazy, tmp_path: Path
) -> None:
    file, go = tmp_path / "file", tmp_path / "go"
    file.write_text("old\n")
    # More than one by one would be waited for.
    reads = [lazy(wait_for_file, CALL)(go, file, tmp_path / f"out-{n}") for n in range(20)]
    reads[0].start()
    write = lazy(append, CALL)((file, "new"), tmp_path / "in", file)
    write.start()
    batch.function(same, 1).start()
    assert write.state == "waiting"
    go.touch()
    assert write.get(timeout=60) == "old\nnew\n"
    assert {task.state for task in reads} == {"done"}


def test_accesses_that_are_added_while_it_waits_count(
    batch: Batch, lazy: Lazy, tmp_path: Path
) -> None:
    file, go = tmp_path / "file", tmp_path / "go"
    first = lazy(wait_for_file)(go)
    first.write(tmp_path, "file")
    second = lazy(append)((file, "x"))
    second.read(file)
    second.start()
    with pytest.raises(TimeoutError):
        second.wait(timeout=0.05)
    with pytest.raises(LifecycleError, match="has been started"):
        second.write(file)
    go.touch()
    assert second.get(timeout=60) == "x\n"


def act_on(what: tuple[Any, ...]) -> str:
    root, step, values = what
    return act(root, step, *values)


@pytest.mark.parametrize("seed", range(6))
def test_programs_in_random_pieces_end_as_their_sequential_run(
    batch: Batch, lazy: Lazy, tmp_path: Path, seed: int
) -> None:
    batch.fence(timeout=60)
    rng = random.Random(seed)
    steps = random_program(rng, rng.choice([20, 60, 150]), seconds=rng.choice([0, 0.002, 0.02]))
    expected = run_sequentially(make_root(tmp_path / "expected"), steps)
    root = make_root(tmp_path / "found")
    call = lazy(act_on)
    tasks: list[Task] = []
    for step in steps:
        task = call((str(root), step, [tasks[number].result for number in step.arguments]))
        for name in step.reads:
            task.read(root, name)
        for name in step.writes:
            task.write(root, name)
        tasks.append(task)
        if rng.random() < 0.1:
            rng.choice(tasks).wait(timeout=60)
        elif rng.random() < 0.1:
            tasks[-1].start()
    assert Outcome([result_of(task) for task in tasks], snapshot(root)) == expected


# -- how they end -------------------------------------------------------------------------


@pytest.mark.parametrize("flushed", [False, True])
def test_a_failure_is_passed_on_until_a_fence(
    batch: Batch, lazy: Lazy, tmp_path: Path, flushed: bool
) -> None:
    file = tmp_path / "file"
    failed = lazy(fail, CALL)("boom", tmp_path / "in", file)
    if flushed:
        failed.wait(timeout=60)
    reads = lazy(same, CALL)("read", file, tmp_path / "out")
    with pytest.raises(
        DependencyFailed, match=r"because 'fail' \('boom'\) failed: ValueError: boom"
    ):
        reads.get(timeout=60)
    with pytest.raises(ValueError, match="boom"):
        failed.get()
    batch.fence(timeout=60)
    assert lazy(same, CALL)("read", file, tmp_path / "out").get(timeout=60) == "read"


@pytest.mark.parametrize("flushed", [False, True])
def test_one_that_is_cancelled_does_not_run(
    batch: Batch, lazy: Lazy, tmp_path: Path, flushed: bool
) -> None:
    file, go = tmp_path / "file", tmp_path / "go"
    first = lazy(wait_for_file, CALL)(go, tmp_path / "in", file)
    cancelled = lazy(append, CALL)((file, "x"), tmp_path / "in", file)
    if flushed:
        cancelled.start()
    assert cancelled.cancel()
    assert cancelled.state == "cancelled"
    taking = lazy(same)(cancelled)
    reads = lazy(append, CALL)((file, "y"), file, tmp_path / "out")
    writes = lazy(append, CALL)((file, "z"), tmp_path / "in", file)
    for task in (taking, reads):
        with pytest.raises(DependencyFailed, match="was cancelled"):
            task.get(timeout=60)
    # What it had waited for is waited for all the same.
    with pytest.raises(TimeoutError):
        writes.wait(timeout=0.05)
    go.touch()
    assert writes.get(timeout=60) == "z\n"
    assert first.get() == "go"
    with pytest.raises(TaskCancelled):
        cancelled.get()
    with pytest.raises(LifecycleError, match="cancelled already"):
        cancelled.start()


def test_results_of_before_a_fence_are_arguments_after_it(batch: Batch, lazy: Lazy) -> None:
    done, failed = lazy(same)(5), lazy(fail)("boom")
    batch.fence(timeout=60)
    assert lazy(same)([done, done.stdout]).get(timeout=60) == [5, ""]
    with pytest.raises(DependencyFailed, match="boom"):
        lazy(same)(failed).get(timeout=60)


def test_terminate_cancels_what_waits(batch: Batch, tmp_path: Path) -> None:
    other = Batch(batch.client)
    task = lazy_on(other, tmp_path)(same)(1)
    other.terminate()
    assert task.state == "cancelled"
    with pytest.raises(TaskCancelled):
        task.get(timeout=60)


def test_a_block_that_raises_cancels_what_waits(batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(KeyError), Batch(batch.client) as other:
        task = lazy_on(other, tmp_path)(same)(1)
        raise KeyError
    assert task.state == "cancelled"


def test_a_batch_that_is_dropped_drops_what_waits(batch: Batch, tmp_path: Path) -> None:
    other = Batch(batch.client)
    file = tmp_path / "file"
    lazy_on(other, tmp_path)(append, CALL)((file, "x"), tmp_path / "in", file)
    there = weakref.ref(other._context)
    gc.disable()
    try:
        del other
        assert there() is None
    finally:
        gc.enable()
    assert not file.exists()


def test_what_is_over_leaves_nothing(batch: Batch, lazy: Lazy) -> None:
    def count() -> int:
        gc.collect()
        return sys.getallocatedblocks()

    call = lazy(same)

    def work(rounds: int) -> None:
        for _ in range(rounds):
            tasks = [call(number) for number in range(1000)]
            batch.fence(timeout=60)
            del tasks

    work(3)
    before = count()
    work(5)
    # A block for each task would be one too many.
    assert count() - before < 3000


def test_what_waits_does_not_keep_the_batch_that_it_knows(batch: Batch, tmp_path: Path) -> None:
    other = Batch(batch.client)
    lazy_on(other, tmp_path)(lambda value, keeps=other: value)(1)
    there = weakref.ref(other._context)
    del other
    gc.collect()
    assert there() is None


EXIT = """
import sys
from daskbatch import Batch

batch = Batch(num_workers=1)
call = batch.import_func(sys.argv[1], print)
tasks = [call(number) for number in range(4)]
tasks[0].cancel()
"""


def test_at_the_end_of_the_program_what_waits_is_counted(tmp_path: Path) -> None:
    (tmp_path / "lazy.yml").write_text(PURE)
    done = subprocess.run(
        [sys.executable, "-c", EXIT, tmp_path / "lazy.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "3 tasks were given up, because the program ended; call close()" in done.stderr


def test_on_a_cluster_that_is_gone_they_fail(batch: Batch, tmp_path: Path) -> None:
    client = Client(batch.client.scheduler.address, set_as_default=False)
    other = Batch(client)
    tasks = [lazy_on(other, tmp_path)(same)(number) for number in range(2)]
    client.close()
    for task in tasks:
        with pytest.raises(ServiceLost):
            task.get(timeout=60)
    other.terminate()


class Hook:
    """Calls a function when it is pickled."""

    def __init__(self, do: Callable[[], Any]) -> None:
        self._do = do

    def __reduce__(self) -> Any:
        self._do()
        return str, ()


def hooked(do: Callable[[], Any]) -> Callable[[Any], Any]:
    """Make a function that calls another one when it is pickled."""
    hook = Hook(do)
    return lambda value: (value, hook)[0]


def test_a_function_that_cannot_be_sent_is_an_error_of_its_tasks_alone(
    batch: Batch, lazy: Lazy
) -> None:
    good = lazy(same)(1)
    bad = [lazy(hooked(do))(1) for do in (lambda: sys.exit(3), good.get)]
    assert good.get(timeout=60) == 1
    for task in bad:
        with pytest.raises(SerializationError):
            task.get(timeout=60)


class Incomparable(Hashable):
    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError


def test_channels_that_cannot_be_compared_hang_nothing(batch: Batch, lazy: Lazy) -> None:
    thing = CommunicationObject(CommunicationDomain(), "thing")
    tasks = [lazy(same)(number) for number in range(3)]
    for task in tasks:
        task.write(thing, Incomparable())
    for task in tasks:
        with pytest.raises(ArithmeticError):
            task.get(timeout=60)
    assert lazy(same)(5).get(timeout=60) == 5


# -- Ctrl-C -------------------------------------------------------------------------------


def test_an_interrupt_loses_nothing(batch: Batch, lazy: Lazy) -> None:
    call = lazy(same)
    for delay in (0.0005, 0.002, 0.005, 0.01, 0.02, 0.04):
        tasks = [call(number) for number in range(3_000)]
        alarm = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            alarm.start()
            tasks[0].start()
            alarm.join()
            threading.Event().wait(10)
        assert [task.get(timeout=60) for task in tasks] == list(range(3_000))


def test_an_interrupt_in_the_middle_of_it_comes_behind_it(
    batch: Batch, lazy: Lazy, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = batch._session.submit

    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.01)
        submit(*args)

    monkeypatch.setattr(batch._session, "submit", interrupted)
    tasks = [lazy(same)(number) for number in range(3)]
    with pytest.raises(KeyboardInterrupt):
        tasks[0].get()
    assert not {task.state for task in tasks} & {"created", "queued"}
    assert [task.get(timeout=60) for task in tasks] == [0, 1, 2]


def test_an_interrupt_is_heard_while_functions_are_pickled(batch: Batch, lazy: Lazy) -> None:
    def interrupt() -> None:
        if not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)

    interrupted: list[bool] = []
    tasks = [lazy(same)(1), lazy(hooked(interrupt))(2), lazy(same)(3)]
    with pytest.raises(KeyboardInterrupt):
        tasks[0].get()
    assert {task.state for task in tasks} == {"queued"}
    assert tasks[2].get(timeout=60) == 3
    assert tasks[0].get(timeout=60) == 1


# -- threads ------------------------------------------------------------------------------


def test_each_thread_keeps_its_order_and_nothing_is_lost(
    batch: Batch, lazy: Lazy, tmp_path: Path
) -> None:
    call = lazy(append, CALL)
    shared = tmp_path / "shared"

    def work(thread: int) -> list[Task]:
        dice = random.Random(thread)
        tasks = []
        for number in range(60):
            tasks.append(call((shared, f"{thread} {number}"), tmp_path / "in", shared))
            if dice.random() < 0.3:
                dice.choice(tasks).wait(timeout=60)
            if dice.random() < 0.05:
                batch.fence(timeout=60)
        return tasks

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(work, range(4)))
    batch.fence(timeout=60)
    assert {task.state for tasks in made for task in tasks} == {"done"}
    lines = [line.split() for line in shared.read_text().splitlines()]
    for thread in range(4):
        assert [int(n) for t, n in lines if int(t) == thread] == list(range(60))


def test_several_threads_need_the_same_tasks_at_once(batch: Batch, lazy: Lazy) -> None:
    call = lazy(same)
    for _ in range(5):
        together = threading.Barrier(6, timeout=30)
        tasks = [call(number) for number in range(300)]

        def need(thread: int, tasks: list[Task] = tasks, at: Any = together) -> Any:
            at.wait()
            mine = tasks[thread::6]
            if thread % 3 == 0:
                return [task.get(timeout=60) for task in mine]
            # Whoever has them started: when these are, those are, too.
            taking = [batch.function(same, task) for task in mine]
            if thread % 3 == 1:
                batch.compile(taking).start()
            for task in taking if thread % 3 == 2 else ():
                task.start()
            return [task.get(timeout=60) for task in taking]

        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(need, range(6)))
        assert found == [list(range(300))[thread::6] for thread in range(6)]


def test_who_needs_one_that_another_thread_is_starting_comes_behind_it(
    batch: Batch, lazy: Lazy, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = batch._session.submit
    starting, go = threading.Event(), threading.Event()

    def slowly(*args: Any) -> None:
        if threading.current_thread() is starter:
            starting.set()
            assert go.wait(30)
        submit(*args)

    monkeypatch.setattr(batch._session, "submit", slowly)
    task = lazy(same)(1)
    starter = threading.Thread(target=task.start)
    starter.start()
    assert starting.wait(30)
    threading.Timer(0.05, go.set).start()
    taking = batch.function(same, task)
    taking.start()
    assert taking.get(timeout=60) == 1
    starter.join()


def test_a_fence_waits_for_what_another_thread_is_about_to_start(batch: Batch, lazy: Lazy) -> None:
    pickling, go = threading.Event(), threading.Event()

    def slowly() -> None:
        pickling.set()
        assert go.wait(30)

    task = lazy(hooked(slowly))(1)
    starter = threading.Thread(target=task.start)
    starter.start()
    assert pickling.wait(30)
    threading.Timer(0.05, go.set).start()
    batch.fence(timeout=60)
    assert task.state == "done"
    starter.join()


def test_a_callback_of_a_future_may_need_them(batch: Batch, lazy: Lazy) -> None:
    task = lazy(same)(1)
    found: list[Any] = []
    with as_executor(batch) as executor:
        executor.submit(same, 0).add_done_callback(lambda _: found.append(task.get(timeout=60)))
    batch.fence(timeout=60)
    assert found == [1]


# -- executors ----------------------------------------------------------------------------


def test_tasks_take_calls_that_take_tasks(batch: Batch, lazy: Lazy) -> None:
    call = lazy(same)
    with as_executor(batch) as executor, BatchPoolExecutor(cluster=batch.client) as alien:
        value: Any = 0
        for number in range(200):
            value = executor.submit(same, [value]) if number % 2 else call([value])
        found = value.result(timeout=60)
        depth = 0
        while isinstance(found, list):
            (found,) = found
            depth += 1
        assert (found, depth) == (0, 200)
        foreign = alien.submit(same, 1)
        with pytest.raises(GraphError, match="another Batch"):
            call(foreign)


def test_a_call_that_waits_for_its_turn_holds_up_only_what_takes_it(
    batch: Batch, lazy: Lazy, tmp_path: Path
) -> None:
    with BatchPoolExecutor(cluster=batch.client, max_workers=1) as executor:
        call = lazy_on(executor.batch, tmp_path)(same)
        first = executor.submit(wait_for_file, tmp_path / "go")
        second = executor.submit(same, 2)
        before, taking, behind = call(1), call(second), call(3)
        assert before.get(timeout=60) == 1
        assert taking.state == "queued"
        (tmp_path / "go").touch()
        assert behind.get(timeout=60) == 3
        assert taking.get(timeout=60) == 2
        assert first.result(timeout=60) == "go"

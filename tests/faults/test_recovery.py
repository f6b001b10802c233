"""Which tasks run again when a worker is killed, and which must not: one test for each rule."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
from distributed import LocalCluster
from support.waiting import wait_until

from daskbatch import Batch, DependencyFailed, WorkerLost
from daskbatch.batch.task import Task

#: A value of this size stays on its worker. Bytes.
LARGE = 200_000

BEFORE, AFTER = "before", "after"


@pytest.fixture(scope="module")
def killed_batch() -> Iterator[Batch]:
    """A Batch with two workers, which are killed."""
    with Batch(num_workers=2) as batch:
        yield batch


@pytest.fixture
def batch(killed_batch: Batch) -> Iterator[Batch]:
    yield killed_batch
    killed_batch.fence(timeout=20)


@pytest.fixture
def one_block() -> Iterator[Batch]:
    """A Batch with one worker, which receives many tasks at a time even if they are long."""
    with dask.config.set({"daskbatch.block-budget": "60s"}):
        batch = Batch(num_workers=1)
    yield batch
    batch.terminate()


# -- what tasks do ----------------------------------------------------------------------


def note(root: Path, name: str) -> int:
    """Record that a task runs in this process; return how many times it has run."""
    file = os.open(root / f"{name}.runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{os.getpid()}\n".encode())
    os.close(file)
    return len(runs(root, name))


def runs(root: Path, name: str) -> list[int]:
    """Return the processes in which a task has begun to run."""
    path = root / f"{name}.runs"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def gate(root: Path, name: str, *_: Any) -> int:
    """Run until `let_through` is called for this name, or the worker is killed."""
    count = note(root, name)
    wait_until((root / f"{name}.go").exists, name)
    return count


def write(root: Path, name: str, text: str, size: int = 0) -> str:
    note(root, name)
    (root / "data").write_text(text)
    return text.ljust(size)


def read(root: Path, name: str, size: int = 0, *_: Any) -> str:
    note(root, name)
    return (root / "data").read_text().ljust(size)


def large(root: Path, name: str, *_: Any) -> str:
    note(root, name)
    return name.ljust(LARGE)


# -- what tests do ----------------------------------------------------------------------


def let_through(root: Path, name: str) -> None:
    (root / f"{name}.go").touch()


def kill_under(root: Path, name: str, count: int = 1) -> None:
    """Kill the worker that runs a task, once the task runs for the `count`-th time."""
    wait_until(lambda: len(runs(root, name)) == count, name)
    kill(runs(root, name)[-1])


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    # The fork server has the exit code first.
    process.wait(30)


def has_ended(process: psutil.Process) -> bool:
    # An orphan that nobody reaps stays as a zombie.
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def lost(task: Task) -> WorkerLost:
    with pytest.raises(WorkerLost) as caught:
        task.get(timeout=60)
    return caught.value


def make_writer(batch: Batch, root: Path, name: str, text: str, size: int = 0) -> Task:
    access = batch.write(root, "data")
    return batch.function(write, root, name, text, size, writes=[access], name=name)


def make_reader(batch: Batch, root: Path, name: str, size: int = 0, *more: Any) -> Task:
    access = batch.read(root, "data")
    return batch.function(read, root, name, size, *more, reads=[access], name=name)


def block_of(tasks: Sequence[Task]) -> int:
    """Return the block of these tasks, which must be the same for all."""
    (block,) = {task._record.block for task in tasks}
    assert block is not None
    return block.number


# -- what has finished ------------------------------------------------------------------


@pytest.mark.parametrize("reads", [False, True], ids=["WAW", "WAR and WAW"])
def test_a_finished_writer_does_not_run_again_after_a_later_write(
    batch: Batch, tmp_path: Path, reads: bool
) -> None:
    first = make_writer(batch, tmp_path, "first", BEFORE, LARGE)
    between = [make_reader(batch, tmp_path, "between", LARGE)] if reads else []
    second = make_writer(batch, tmp_path, "second", AFTER)
    batch.compile([first, *between, second]).run(timeout=60)
    assert (tmp_path / "data").read_text() == AFTER
    for pid in {pid for name in ("first", "between") for pid in runs(tmp_path, name)}:
        kill(pid)
    assert "was lost with its worker, and the task does not run again" in str(lost(first))
    for task in between:
        lost(task)
    # Nor for somebody who takes its result, or reads what it once wrote.
    taker = batch.function(len, first.result)
    taker.run(timeout=60)
    with pytest.raises(DependencyFailed) as caught:
        taker.get()
    assert caught.value.root == "first"
    third = make_reader(batch, tmp_path, "third")
    third.run(timeout=60)
    assert (second.get(timeout=60), third.get(timeout=60)) == (AFTER, AFTER)
    assert [len(runs(tmp_path, name)) for name in ("first", "second")] == [1, 1]
    assert (tmp_path / "data").read_text() == AFTER


@pytest.mark.parametrize(
    "asked_first",
    [
        False,
        True,
    ],
)
def test_a_lost_value_of_a_writer_is_lost_to_who_asks_for_it_alone(
    batch: Batch, tmp_path: Path, asked_first: bool
) -> None:
    writer = make_writer(batch, tmp_path, "writer", BEFORE, LARGE)
    closed = batch.function(gate, tmp_path, "closed", name="closed")
    reader = make_reader(batch, tmp_path, "reader", 0, closed.result)
    access = batch.write(tmp_path, "data")
    over = batch.function(write, tmp_path, "over", AFTER, writes=[access])
    over.read(tmp_path, "nothing")
    batch.compile([writer, closed, reader, over]).start()
    writer.wait(timeout=60)
    kill(runs(tmp_path, "writer")[0])
    if asked_first:
        lost(writer)
        assert reader.state == "waiting"
    let_through(tmp_path, "closed")
    assert (reader.get(timeout=60), over.get(timeout=60)) == (BEFORE, AFTER)
    lost(writer)
    assert len(runs(tmp_path, "writer")) == 1


def test_a_lost_value_is_made_again(batch: Batch, tmp_path: Path) -> None:
    asked = batch.function(large, tmp_path, "asked")
    taken = batch.function(large, tmp_path, "taken", asked.result)
    batch.compile([asked, taken]).run(timeout=60)
    for pid in {*runs(tmp_path, "asked"), *runs(tmp_path, "taken")}:
        kill(pid)
    taker = batch.function(len, taken.result)
    taker.run(timeout=60)
    assert taker.get(timeout=60) == LARGE
    assert asked.get(timeout=60) == "asked".ljust(LARGE)
    assert taken.get(timeout=60) == "taken".ljust(LARGE)
    # What the first had returned may have come here while the second ran.
    assert len(runs(tmp_path, "asked")) in (1, 2)
    assert len(runs(tmp_path, "taken")) == 2


def test_what_was_read_is_read_again_unless_it_was_written_since(
    batch: Batch, tmp_path: Path
) -> None:
    writer = make_writer(batch, tmp_path, "writer", BEFORE)
    reader = make_reader(batch, tmp_path, "reader", LARGE)
    batch.compile([writer, reader]).run(timeout=60)
    kill(runs(tmp_path, "reader")[-1])
    assert reader.get(timeout=60) == BEFORE.ljust(LARGE)
    assert len(runs(tmp_path, "reader")) == 2
    again = make_reader(batch, tmp_path, "again", LARGE)
    again.run(timeout=60)
    # In a submission of its own, too.
    make_writer(batch, tmp_path, "over", AFTER).run(timeout=60)
    kill(runs(tmp_path, "again")[-1])
    assert "was lost with its worker, and the task does not run again" in str(lost(again))
    assert len(runs(tmp_path, "again")) == 1
    assert len(runs(tmp_path, "writer")) == 1


def test_a_restart_ends_what_is_unfinished_and_results_are_computed_again(
    batch: Batch, tmp_path: Path
) -> None:
    """`Client.restart` of Dask cancels all keys, also those that a graph of ours refers to."""
    finished, taken = (batch.function(large, tmp_path, name) for name in ("one", "other"))
    argument = np.ones(LARGE)
    before = batch.function(np.sum, argument)
    batch.compile([finished, taken, before]).run(timeout=60)
    running = batch.function(gate, tmp_path, "running")
    running.start()
    wait_until(lambda: len(runs(tmp_path, "running")) == 1, "begun")
    batch.client.restart()
    assert "Client.restart has restarted the workers" in str(lost(running))
    assert finished.get(timeout=60) == "one".ljust(LARGE)
    tasks = [batch.function(len, taken.result), batch.function(np.sum, argument)]
    batch.compile(tasks).run(timeout=60)
    assert [task.get() for task in tasks] == [LARGE, LARGE]
    assert [len(runs(tmp_path, name)) for name in ("one", "other", "running")] == [2, 2, 1]


# -- what runs --------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_what_writes_what_it_reads_is_lost(batch: Batch, tmp_path: Path, isolation: Any) -> None:
    both = batch.read(tmp_path, "data"), batch.write(tmp_path, "data")
    options = batch.options(reads=both[:1], writes=both[1:], name="both", isolation=isolation)
    task = options.function(gate, tmp_path, "task")
    behind = make_reader(batch, tmp_path, "behind")
    after = make_writer(batch, tmp_path, "after", AFTER)
    batch.compile([task, behind, after]).start()
    wait_until(lambda: bool(runs(tmp_path, "task")), "begun")
    ran = psutil.Process(runs(tmp_path, "task")[0])
    if isolation == "process":
        parent = ran.parent()
        assert parent is not None
        kill(parent.pid)
    else:
        kill(ran.pid)
    error = lost(task)
    with pytest.raises(DependencyFailed):
        behind.get(timeout=60)
    assert after.get(timeout=60) == AFTER
    assert has_ended(ran)
    assert len(runs(tmp_path, "task")) == 1
    assert not runs(tmp_path, "behind")
    for found in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(found, WorkerLost)
        assert str(found.worker).startswith("tcp://")
        assert found.exitcode == -signal.SIGKILL
        assert isinstance(found.memory, int)
        assert found.memory_limit is None or found.memory < found.memory_limit
        assert not found.out_of_memory
        assert found.attempt == 1
        assert "task 'both' was lost with its worker tcp://" in str(found)
        assert "ended by SIGKILL" in str(found)
        assert "does not run again: it writes what it reads" in str(found)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("accesses", ["none", "reads", "writes", "both"])
def test_what_may_run_again_does(
    batch: Batch, tmp_path: Path, accesses: str, isolation: Any
) -> None:
    task = batch.options(isolation=isolation).function(gate, tmp_path, "task")
    if accesses in ("reads", "both"):
        task.read(tmp_path, "data")
    if accesses in ("writes", "both"):
        task.write(tmp_path, "other")
    task.start()
    wait_until(lambda: bool(runs(tmp_path, "task")), "begun")
    ran = psutil.Process(runs(tmp_path, "task")[0])
    parent = ran.parent()
    assert parent is not None
    kill(parent.pid if isolation == "process" else ran.pid)
    wait_until(lambda: len(runs(tmp_path, "task")) == 2, "begun again")
    assert has_ended(ran)
    let_through(tmp_path, "task")
    assert task.get(timeout=60) == 2


def test_at_the_third_death_a_task_is_given_up_alone(one_block: Batch, tmp_path: Path) -> None:
    batch = one_block
    gated = ["fatal", "hardy"]
    names = [f"before-{n}" for n in range(5)] + gated + [f"{n}" for n in range(50)]
    tasks = {}
    # The hardy one runs behind the fatal one, also if both are placed in blocks of their own.
    for name in names:
        tasks[name] = batch.function(
            gate if name in gated else note,
            *(tmp_path, name),
            writes=[batch.write(tmp_path, name, *(["shared"] if name in gated else []))],
        )
    fatal, hardy = tasks.pop("fatal"), tasks.pop("hardy")
    program = [*list(tasks.values())[:5], fatal, hardy, *list(tasks.values())[5:]]
    batch.compile(program, check=None).start()
    block_of([fatal, hardy, tasks["before-4"], tasks["0"]])
    for count in (1, 2, 3):
        kill_under(tmp_path, "fatal", count)
    error = lost(fatal)
    assert error.attempt == 3
    assert "3 workers have died under it" in str(error)
    # It has waited in the same block, and has not lost one of its lives.
    for count in (1, 2):
        kill_under(tmp_path, "hardy", count)
    let_through(tmp_path, "hardy")
    assert hardy.get(timeout=60) == 3
    assert {task.get(timeout=60) for task in tasks.values()} == {1}
    assert {len(runs(tmp_path, name)) for name in tasks} == {1}
    assert len(runs(tmp_path, "fatal")) == 3


def tick(root: Path, number: int, *_: Any) -> int:
    time.sleep(0.001)
    note(root, str(number))
    return number


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_of_a_block_that_was_killed_nothing_runs_twice(
    one_block: Batch, tmp_path: Path, isolation: Any
) -> None:
    batch, count = one_block, 300
    tasks = [
        batch.options(
            reads=batch.read(tmp_path, str(number)),
            writes=batch.write(tmp_path, str(number)),
            isolation=isolation,
        ).function(tick, tmp_path, number)
        for number in range(count)
    ]
    batch.compile(tasks).start()
    assert len({task._record.block for task in tasks}) < 10
    for number in (20, 90, 200):
        wait_until(lambda number=number: bool(runs(tmp_path, str(number))), str(number))
        for pid in batch.client.run(os.getpid).values():
            kill(pid)
    finished = 0
    for number, task in enumerate(tasks):
        try:
            assert task.get(timeout=60) == number
            assert len(runs(tmp_path, str(number))) == 1
            finished += 1
        except WorkerLost:
            assert len(runs(tmp_path, str(number))) < 2
    assert finished >= count - 3


# -- clusters of others -----------------------------------------------------------------


def test_two_batches_on_one_worker_are_told_apart(tmp_path: Path) -> None:
    with (
        dask.config.set({"daskbatch.block-budget": "60s"}),
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        Batch(cluster) as one,
        Batch(cluster) as other,
    ):
        tasks = []
        # The blocks have the same numbers; one task runs as the second of its block.
        for batch, name, before in ((one, "one", 1), (other, "other", 0)):
            both = batch.read(tmp_path, name), batch.write(tmp_path, name)
            program = [
                *(
                    batch.function(note, tmp_path, f"{name}-{number}", writes=both[1:])
                    for number in range(before)
                ),
                batch.function(gate, tmp_path, name, reads=both[:1], writes=both[1:]),
            ]
            batch.compile(program).start()
            tasks.append(program[-1])
        for name in ("one", "other"):
            wait_until(lambda name=name: bool(runs(tmp_path, name)), name)
        assert tasks[0]._record.block.number == tasks[1]._record.block.number
        kill_under(tmp_path, "one")
        for task in tasks:
            assert lost(task).attempt == 1
        names = ("one", "other", "one-0")
        assert [len(runs(tmp_path, name)) for name in names] == [1, 1, 1]


def devour(root: Path) -> int:
    note(root, "devour")
    hoard = []
    while True:
        hoard.append(bytearray(b"x") * (20 << 20))
        time.sleep(0.02)


def test_a_worker_that_ran_out_of_memory(tmp_path: Path) -> None:
    limit = 600 << 20
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit=limit, dashboard_address=":0"
        ) as cluster,
        Batch(cluster) as batch,
    ):
        both = batch.read(tmp_path, "data"), batch.write(tmp_path, "data")
        task = batch.function(devour, tmp_path, reads=both[:1], writes=both[1:])
        task.start()
        error = lost(task)
        assert error.out_of_memory
        assert error.memory_limit == limit
        assert error.memory is not None
        assert error.memory > limit // 2
        assert "out of memory" in str(error)
        assert len(runs(tmp_path, "devour")) == 1
        after = batch.function(len, "abc")
        after.run(timeout=60)
        assert after.get() == 3

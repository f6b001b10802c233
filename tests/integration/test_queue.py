"""A queue that tasks and clients share: its methods, and what happens when a user of it dies."""

from __future__ import annotations

import os
import pickle
import queue as standard
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.caught import Caught, blocked
from support.waiting import wait_until

from daskbatch import (
    Batch,
    DDict,
    LifecycleError,
    Queue,
    SerializationError,
    ServiceLost,
    SpecError,
    TaskCancelled,
    TaskTimeout,
)


def worker_of(queue: Queue) -> str:
    found = re.search(r"tcp://[^<]+", queue._repr_html_())
    assert found
    return found[0]


# -- in one process ---------------------------------------------------------------------


def test_first_in_first_out(batch: Batch) -> None:
    queue = batch.queue()
    for item in (1, "two", None, [3]):
        queue.put(item)
    assert [queue.get() for _ in range(4)] == [1, "two", None, [3]]


def test_sizes(batch: Batch) -> None:
    queue = batch.queue(maxsize=2)
    assert (queue.qsize(), queue.empty(), queue.full()) == (0, True, False)
    queue.put("a")
    assert (queue.qsize(), queue.empty(), queue.full()) == (1, False, False)
    queue.put("b")
    assert (queue.qsize(), queue.empty(), queue.full()) == (2, False, True)
    queue.get()
    assert not queue.full()


@pytest.mark.parametrize("maxsize", [0, -1])
def test_without_a_limit(batch: Batch, maxsize: int) -> None:
    queue = batch.queue(maxsize=maxsize)
    for number in range(1000):
        queue.put_nowait(number)
    assert not queue.full()
    assert queue.qsize() == 1000


@pytest.mark.parametrize("maxsize", ["1", 1.5, None, True])
def test_a_wrong_maxsize(batch: Batch, maxsize: Any) -> None:
    with pytest.raises(SpecError, match="maxsize= must be a whole number"):
        batch.queue(maxsize=maxsize)


def test_nothing_there(batch: Batch) -> None:
    queue = batch.queue()
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    with pytest.raises(standard.Empty):
        queue.get(block=False)
    for timeout in (0, 0.1, timedelta(seconds=0.1)):
        with pytest.raises(standard.Empty):
            queue.get(timeout=timeout)


def test_no_room(batch: Batch) -> None:
    queue = batch.queue(maxsize=1)
    queue.put("a")
    with pytest.raises(standard.Full):
        queue.put_nowait("b")
    with pytest.raises(standard.Full):
        queue.put("b", block=False)
    for timeout in (0, 0.1, timedelta(seconds=0.1)):
        with pytest.raises(standard.Full):
            queue.put("b", timeout=timeout)
    # What did not go in never does.
    assert queue.get() == "a"
    assert queue.empty()


def test_a_timeout_is_kept(batch: Batch) -> None:
    queue = batch.queue()
    begin = time.monotonic()
    with pytest.raises(standard.Empty):
        queue.get(timeout=0.3)
    assert 0.3 <= time.monotonic() - begin < 30


@pytest.mark.parametrize("method", ["put", "get"])
def test_a_negative_timeout(batch: Batch, method: str) -> None:
    queue = batch.queue(maxsize=1)
    arguments = ["a"] if method == "put" else []
    with pytest.raises(ValueError):
        getattr(queue, method)(*arguments, timeout=-1)


def test_a_getter_waits_for_an_item(batch: Batch) -> None:
    queue = batch.queue()
    getter = Caught(queue.get)
    blocked(getter)
    queue.put("a")
    assert getter.result() == "a"


def test_a_putter_waits_for_room(batch: Batch) -> None:
    queue = batch.queue(maxsize=1)
    queue.put("a")
    putter = Caught(queue.put, "b")
    blocked(putter)
    assert queue.get() == "a"
    assert putter.result() is None
    assert queue.get() == "b"


def test_each_waiting_getter_has_one(batch: Batch) -> None:
    queue = batch.queue()
    getters = [Caught(queue.get) for _ in range(20)]
    blocked(*getters[:1])
    for number in range(20):
        queue.put(number)
    assert sorted(getter.result() for getter in getters) == list(range(20))


def test_task_done_and_join(batch: Batch) -> None:
    queue = batch.queue()
    queue.join()
    for _ in range(3):
        queue.put("a")
    joining = Caught(queue.join)
    for _ in range(3):
        queue.get()
        blocked(joining)
        queue.task_done()
    assert joining.result() is None
    with pytest.raises(ValueError, match="more often"):
        queue.task_done()


def test_join_has_a_timeout(batch: Batch) -> None:
    queue = batch.queue()
    queue.put("a")
    with pytest.raises(TimeoutError, match="not done"):
        queue.join(timeout=0.1)


def test_what_is_put_is_a_copy(batch: Batch) -> None:
    queue = batch.queue()
    item = [1]
    queue.put(item)
    item.append(2)
    assert queue.get() == [1]


def test_large_arrays(batch: Batch) -> None:
    queue = batch.queue()
    array = np.arange(2_500_000)
    for factor in range(3):
        queue.put(array * factor)
    array[:] = 0
    for factor in range(3):
        found = queue.get()
        found += 1  # it is the taker's own
        assert np.array_equal(found, np.arange(2_500_000) * factor + 1)


def test_what_cannot_be_pickled_leaves_no_trace(batch: Batch) -> None:
    queue = batch.queue(maxsize=1)
    with pytest.raises(SerializationError, match="lock"):
        queue.put(threading.Lock())
    assert queue.empty()
    queue.join()
    queue.put_nowait("a")
    assert queue.get() == "a"


class Spoilt:
    """Cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


def test_what_cannot_be_unpickled_is_told_to_who_takes_it(batch: Batch) -> None:
    queue = batch.queue()
    queue.put(Spoilt())
    queue.put("a")
    with pytest.raises(SerializationError, match="not a number.* and is lost"):
        queue.get()
    assert queue.get() == "a"


def test_items_of_one_producer_stay_in_order_from_thread_to_thread(batch: Batch) -> None:
    queue = batch.queue(maxsize=3)
    turns = [threading.Semaphore(int(not number)) for number in range(4)]

    def produce(which: int) -> None:
        for number in range(which, 200, 4):
            turns[which].acquire()
            queue.put(number)
            turns[(which + 1) % 4].release()

    producers = [Caught(produce, which) for which in range(4)]
    assert [queue.get(timeout=30) for _ in range(200)] == list(range(200))
    assert [producer.result() for producer in producers] == [None] * 4


# -- its end ----------------------------------------------------------------------------


def test_close_tells_who_waits(batch: Batch) -> None:
    empty, full = batch.queue(), batch.queue(maxsize=1)
    full.put("a")
    waiting = [Caught(empty.get), Caught(full.put, "b"), Caught(full.join)]
    blocked(*waiting)
    empty.close()
    full.close()
    for each in waiting:
        assert isinstance(each.result(5), LifecycleError)


def test_after_close(batch: Batch) -> None:
    queue = batch.queue()
    other = pickle.loads(pickle.dumps(queue))
    queue.put("a")
    queue.close()
    queue.close()
    for each in (queue, other):
        uses = (each.get, each.get_nowait, each.qsize, each.empty, each.full)
        for use in (*uses, each.task_done, each.join):
            with pytest.raises(LifecycleError, match="has been closed"):
                use()
        with pytest.raises(LifecycleError, match="has been closed"):
            each.put("a")


def test_with_closes(batch: Batch) -> None:
    with batch.queue() as queue:
        queue.put("a")
    with pytest.raises(LifecycleError):
        queue.get()


# -- which one it is --------------------------------------------------------------------


def test_the_same_name_is_the_same_queue(batch: Batch) -> None:
    with Queue(batch.client, maxsize=2, name="letters") as queue:
        other = Queue(batch.client, name="letters")
        assert other == queue
        assert other.name == "letters"
        assert hash(other) == hash(queue)
        assert "letters" in repr(queue)
        other.put("a")
        assert queue.get() == "a"
        with pytest.raises(SpecError, match="maxsize=2"):
            Queue(batch.client, maxsize=3, name="letters")
        with pytest.raises(SpecError, match="letters"):
            DDict(batch.client, name="letters")
    with Queue(batch.client, name="letters") as another:
        assert another != queue
        assert another.empty()


def test_without_a_name(batch: Batch) -> None:
    one, other = batch.queue(), batch.queue()
    assert one != other
    assert one != "queue"
    assert one.name is None
    assert len({one, other, pickle.loads(pickle.dumps(one))}) == 2


def test_a_pickle_is_the_same_queue(batch: Batch) -> None:
    queue = batch.queue(maxsize=2)
    copy = pickle.loads(pickle.dumps(queue))
    assert copy == queue
    copy.put("a")
    copy.put("b")
    assert queue.full()
    assert queue.get() == "a"


def make_in_task() -> None:
    Queue(name="made in a task").put("a")


def test_a_task_makes_one(batch: Batch) -> None:
    task = batch.function(make_in_task)
    task.run(timeout=60)
    task.get()
    with Queue(batch.client, name="made in a task") as queue:
        assert queue.get_nowait() == "a"


def test_its_html(batch: Batch) -> None:
    queue = batch.queue()
    queue.put("a")
    assert "<td>1</td>" in queue._repr_html_()


# -- tasks ------------------------------------------------------------------------------


def produce(queue: Queue, producer: int, count: int) -> None:
    for number in range(count):
        queue.put((producer, number))


def consume(queue: Queue) -> list[tuple[int, int]]:
    taken = []
    while (item := queue.get()) is not None:
        taken.append(item)
        queue.task_done()
    queue.task_done()
    return taken


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_more_wait_than_there_are_slots(batch: Batch, isolation: Any) -> None:
    queue = batch.queue(maxsize=5)
    near = batch.options(isolation=isolation)
    consumers = [near.function(consume, queue) for _ in range(5)]
    producers = [near.function(produce, queue, number, 40) for number in range(3)]
    for task in consumers + producers:  # all that wait come first
        task.start()
    for task in producers:
        task.get(timeout=60)
    for _ in consumers:
        queue.put(None)
    queue.join(timeout=60)
    taken = [task.get(timeout=60) for task in consumers]
    assert sorted(item for some in taken for item in some) == [
        (producer, number) for producer in range(3) for number in range(40)
    ]
    for some in taken:
        for producer in range(3):
            mine = [number for who, number in some if who == producer]
            assert mine == sorted(mine)


def get_all(queue: Queue) -> list[Any]:
    found = []
    while not queue.empty():
        found.append(queue.get_nowait())
    return found


def test_as_a_channel_it_orders_tasks(batch: Batch) -> None:
    queue = batch.queue()
    puts = [
        batch.function(produce, queue, number, 3, writes=[batch.write(queue)])
        for number in range(2)
    ]
    gets = batch.function(get_all, queue, reads=[batch.read(queue)])
    program = batch.compile([*puts, gets])
    program.run(timeout=60)
    assert gets.get() == [(producer, number) for producer in range(2) for number in range(3)]


def test_it_has_no_channels_within(batch: Batch) -> None:
    queue = batch.queue()
    with pytest.raises(SpecError, match="as a whole"):
        batch.read(queue, "a")


def get_one(queue: Queue, started: Path) -> Any:
    started.touch()
    return queue.get()


def put_one(queue: Queue, started: Path) -> None:
    started.touch()
    queue.put("not wanted any more")


def await_file(path: Path) -> None:
    wait_until(path.exists)
    # So that it is likely to wait by now; the tests hold in any case.
    time.sleep(0.1)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_getter_that_is_stopped_takes_nothing(
    batch: Batch, tmp_path: Path, isolation: Any, how: str
) -> None:
    queue = batch.queue(maxsize=3)
    limit = 1.0 if how == "timeout" else None
    tasks = [
        batch.options(isolation=isolation, timeout=limit).function(
            get_one, queue, tmp_path / str(number)
        )
        for number in range(2)
    ]
    for task in tasks:
        task.start()
    for number, task in enumerate(tasks):
        if how == "cancel":
            await_file(tmp_path / str(number))
            task.cancel()
        with pytest.raises(TaskCancelled if how == "cancel" else TaskTimeout):
            task.get(timeout=60)
    for number in range(3):
        queue.put(number, timeout=10)
    assert queue.full()
    assert [queue.get(timeout=10) for _ in range(3)] == [0, 1, 2]
    queue.put("room again", timeout=10)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_putter_that_is_stopped_puts_nothing(
    batch: Batch, tmp_path: Path, isolation: Any
) -> None:
    queue = batch.queue(maxsize=1)
    queue.put("a")
    task = batch.options(isolation=isolation).function(put_one, queue, tmp_path / "started")
    task.start()
    await_file(tmp_path / "started")
    task.cancel()
    with pytest.raises(TaskCancelled):
        task.get(timeout=60)
    assert queue.get() == "a"
    queue.put("b", timeout=10)
    assert queue.get() == "b"
    with pytest.raises(standard.Empty):
        queue.get(timeout=0.3)


#: A template whose calls wait in the background until they are needed.
TEMPLATE = """
import_args: [f]
args: [queue, count]
type: function
executables: [{target: f, args: [queue, count]}]
"""

Later = Callable[..., None]


@pytest.fixture
def later(batch: Batch, tmp_path: Path) -> Later:
    """Call a function with a queue and a count, in the background."""
    path = tmp_path / "later.yml"
    path.write_text(TEMPLATE)

    def later(mode: str, function: Callable[..., Any], queue: Queue, count: int) -> None:
        getattr(batch.import_func(path, function)(queue, count), mode)(queue)

    return later


def put_many(queue: Queue, count: int) -> None:
    for number in range(count):
        queue.put(number)


def get_many(queue: Queue, count: int) -> None:
    for _ in range(count):
        queue.get()
        queue.task_done()


def test_what_waits_in_the_background_is_started_and_not_waited_for(
    batch: Batch, later: Later
) -> None:
    queue = batch.queue(maxsize=1)
    later("write", put_many, queue, 3)
    found = Caught(lambda: [queue.get(timeout=30) for _ in range(3)])
    assert found.result() == [0, 1, 2]


@pytest.mark.parametrize(("method", "expected"), [("qsize", 1), ("empty", False), ("full", True)])
def test_who_asks_for_its_size_has_started_what_waits_in_the_background(
    batch: Batch, later: Later, method: str, expected: Any
) -> None:
    queue = batch.queue(maxsize=1)
    later("write", put_many, queue, 2)
    ask = getattr(queue, method)
    assert Caught(wait_until, lambda: ask() == expected).result() is None
    assert [queue.get(timeout=30) for _ in range(2)] == [0, 1]


def test_who_waits_for_room_has_started_what_waits_in_the_background(
    batch: Batch, later: Later
) -> None:
    queue = batch.queue(maxsize=1)
    later("read", get_many, queue, 2)
    putter = Caught(put_many, queue, 3)
    assert putter.result() is None
    assert queue.get() == 2


def test_who_joins_has_started_what_waits_in_the_background(batch: Batch, later: Later) -> None:
    queue = batch.queue()
    put_many(queue, 2)
    later("read", get_many, queue, 2)
    queue.join(timeout=30)
    assert queue.empty()


# -- users that die -------------------------------------------------------------------

PROGRAM = """if True:
    import pickle, sys
    with open(sys.argv[1], "rb") as file:
        queue = pickle.load(file)
    queue.qsize()
    print("ready", flush=True)
    {use}
"""


def begin_elsewhere(queue: Queue, use: str, directory: Path) -> subprocess.Popen[str]:
    """Use a queue in another process, and wait until that is likely to wait in the queue."""
    (directory / "queue").write_bytes(pickle.dumps(queue))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(use=use), directory / "queue"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    # So that it is likely to wait by now; the tests hold in any case.
    time.sleep(0.3)
    assert process.poll() is None
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_getter_that_is_killed_takes_nothing(batch: Batch, tmp_path: Path) -> None:
    queue = batch.queue()
    processes = [begin_elsewhere(queue, "queue.get()", tmp_path) for _ in range(2)]
    getter = Caught(queue.get)
    for process in processes:
        kill(process)
    queue.put(0)
    assert getter.result() == 0  # not after those that are gone
    for number in range(1, 5):
        queue.put(number)
    assert [queue.get(timeout=10) for _ in range(4)] == [1, 2, 3, 4]
    assert queue.empty()


def test_a_putter_that_is_killed_puts_nothing(batch: Batch, tmp_path: Path) -> None:
    queue = batch.queue(maxsize=1)
    queue.put("a")
    process = begin_elsewhere(queue, "queue.put('not wanted any more')", tmp_path)
    putter = Caught(queue.put, "b")
    blocked(putter)
    kill(process)
    assert queue.get() == "a"
    assert queue.get(timeout=30) == "b"
    assert putter.result() is None
    with pytest.raises(standard.Empty):
        queue.get(timeout=0.3)
    queue.put("c", timeout=30)


def test_one_who_dies_with_an_item_has_taken_it(batch: Batch, tmp_path: Path) -> None:
    queue = batch.queue(maxsize=1)
    queue.put("a")
    use = "print(queue.get(), queue.get(), flush=True); sys.stdin.read()"
    process = begin_elsewhere(queue, use, tmp_path)
    queue.put("b", timeout=10)
    assert process.stdout is not None
    assert process.stdout.readline() == "a b\n"
    kill(process)
    queue.put("c", timeout=10)
    assert queue.get(timeout=10) == "c"


@pytest.mark.slow
def test_the_death_of_its_worker_is_told_to_all() -> None:
    with Batch(num_workers=2) as batch:
        empty = batch.queue()
        full = Queue(batch.client, maxsize=1, name="full")
        full.put("a")
        pids = batch.client.run(os.getpid)
        waiting = [Caught(empty.get), Caught(full.put, "b"), Caught(full.join)]
        blocked(*waiting)
        for worker in {worker_of(empty), worker_of(full)}:
            os.kill(pids[worker], signal.SIGKILL)
        for each in waiting:
            assert isinstance(each.result(), ServiceLost), each.found
        for use in (empty.get_nowait, full.get_nowait, full.qsize, empty.get):
            with pytest.raises(ServiceLost, match="is lost"):
                use()
        # The name is free once it is closed.
        full.close()
        batch.client.wait_for_workers(2, timeout=30)
        with Queue(batch.client, name="full") as again:
            again.put("b")
            assert again.get() == "b"


def get_or_lost(queue: Queue, started: Path) -> str:
    started.touch()
    try:
        queue.get()
    except ServiceLost:
        return "lost"
    return "taken"


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_the_death_of_its_worker_is_told_to_tasks(tmp_path: Path, isolation: Any) -> None:
    with Batch(num_workers=2) as batch:
        queue = batch.queue()
        pids = batch.client.run(os.getpid)
        (other,) = set(pids) - {worker_of(queue)}
        tasks = [
            batch.options(workers=[other], isolation=isolation).function(
                get_or_lost, queue, tmp_path / str(number)
            )
            for number in range(3)
        ]
        for task in tasks:
            task.start()
        for number in range(3):
            await_file(tmp_path / str(number))
        os.kill(pids[worker_of(queue)], signal.SIGKILL)
        assert [task.get(timeout=30) for task in tasks] == ["lost"] * 3

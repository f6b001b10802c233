"""Graphs of short tasks run in open blocks, and nothing that holds for other tasks changes."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from support.cluster_info import workers_of
from support.dying import die_once, mix
from support.waiting import wait_for_file, wait_until

import daskbatch.cluster.open_links as open_links
from daskbatch import Batch, DependencyFailed, TaskCancelled, TaskCrashed, TaskTimeout
from daskbatch.cluster.dask_backend import ClusterBackend
from daskbatch.command_line.doctor import Level, check_direct_connections
from daskbatch.dispatch.open_blocks import open_block
from daskbatch.dispatch.open_blocks.feeder import OpenBlocks
from daskbatch.worker.open_blocks import frame_link
from daskbatch.worker.open_blocks.messages import NewMembers

WIDTH, STEPS = 6, 25

#: A graph: for each task the positions of those whose values it takes.
Graph = list[tuple[int, ...]]


def stencil(width: int = WIDTH, steps: int = STEPS) -> Graph:
    graph: Graph = []
    for step in range(steps):
        for x in range(width):
            before = range(max(0, x - 1), min(width, x + 2)) if step else ()
            graph.append(tuple((step - 1) * width + each for each in before))
    return graph


def random_graph(seed: int, count: int = 150) -> Graph:
    rng = random.Random(seed)
    return [
        tuple(rng.sample(range(max(0, n - 12), n), rng.randrange(min(n, 4) + 1)))
        for n in range(count)
    ]


def expected_of(graph: Graph) -> list[int]:
    values: list[int] = []
    for number, inputs in enumerate(graph):
        values.append(mix(number, *(values[each] for each in inputs)))
    return values


def make(
    batch: Batch, graph: Graph, function: Callable[..., Any] = mix, *first: object
) -> list[Any]:
    """Make the tasks of a graph; `first` are the first arguments of each."""
    tasks: list[Any] = []
    for number, inputs in enumerate(graph):
        values = (tasks[each].result for each in inputs)
        tasks.append(batch.function(function, *first, number, *values))
    return tasks


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the members that are sent to open blocks."""
    sent = 0
    encode = open_block.encode_members

    def count(new: NewMembers) -> bytes:
        nonlocal sent
        sent += len(new.members)
        return encode(new)

    monkeypatch.setattr(open_block, "encode_members", count)
    return lambda: sent


@pytest.fixture(params=["thread", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    """Where tasks run."""
    return str(request.param)


@pytest.fixture
def factory(isolation: str, batch: Batch) -> Any:
    """Make tasks that run there."""
    return batch.options(isolation=isolation)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Note each time that open blocks are not used in a test; a pause may end before the test."""
    look = OpenBlocks.is_paused.fget
    assert look is not None

    def look_and_note(self: OpenBlocks) -> bool:
        found: bool = look(self)
        if found:
            _pauses.append(self)
        return found

    monkeypatch.setattr(OpenBlocks, "is_paused", property(look_and_note))
    yield
    _pauses.clear()


#: The open blocks that were paused during this test.
_pauses: list[OpenBlocks] = []


def is_paused(batch: Batch) -> bool:
    """Return whether the machine was too slow to connect in time: other blocks were used."""
    open_blocks = batch._session.dispatcher.table.open_blocks
    return open_blocks in _pauses or open_blocks.is_paused


@pytest.mark.parametrize("graph", [stencil(), random_graph(1), random_graph(2)])
def test_values_are_those_of_a_sequential_run(
    batch: Batch, factory: Any, graph: Graph, members: Callable[[], int]
) -> None:
    tasks = make(factory, graph)
    batch.compile(tasks).run(timeout=60)
    assert [task.get() for task in tasks] == expected_of(graph)
    assert members() or is_paused(batch)


def append(path: str, number: int) -> None:
    with Path(path).open("a") as file:
        file.write(f"{number}\n")


def read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def nap(number: int) -> int:
    time.sleep(0.015)
    return number


def test_independent_tasks_that_are_not_short_are_sent_one_by_one(
    batch: Batch, factory: Any, members: Callable[[], int]
) -> None:
    for _ in range(2):  # at first it is not known how long they take
        before = members()
        tasks = [factory.function(nap, number) for number in range(40)]
        batch.compile(tasks).run(timeout=60)
        assert [task.get() for task in tasks] == list(range(40))
    # If something else wanted a slot meanwhile, the rest shares Dask keys.
    gave_way = batch._session.dispatcher.table.open_blocks._crowded.lasts
    assert members() - before == 40 or is_paused(batch) or gave_way


def test_reads_and_writes_of_files_keep_their_order(
    batch: Batch, isolation: str, tmp_path: Path, members: Callable[[], int]
) -> None:
    rng = random.Random(3)
    root = tmp_path / "with a space ü"
    root.mkdir()
    content = {str(root / f"file {n}"): "" for n in range(5)}
    tasks, expected = [], []
    for number in range(150):
        path = rng.choice(list(content))
        if rng.random() < 0.4:
            content[path] += f"{number}\n"
            expected.append(None)
            access: Any = {"reads": batch.read(path), "writes": batch.write(path)}
            factory = batch.options(isolation=isolation, **access)
            tasks.append(factory.function(append, path, number))
        else:
            expected.append(content[path])
            factory = batch.options(isolation=isolation, reads=batch.read(path))
            tasks.append(factory.function(read, path))
    batch.compile(tasks).run(timeout=60)
    assert [task.get() for task in tasks] == expected
    assert {path: read(path) for path in content} == content
    assert members() or is_paused(batch)


def fail_at_40(number: int, *values: int) -> int:
    if number == 40:
        raise ValueError("number 40 fails")
    return mix(number, *values)


def test_what_needs_a_failed_task_is_skipped_and_the_rest_runs(batch: Batch, factory: Any) -> None:
    graph = random_graph(4)
    tasks = make(factory, graph, fail_at_40)
    batch.compile(tasks).run(timeout=60, check=False)
    needs = {40}
    values = expected_of(graph)
    for number, inputs in enumerate(graph):
        if number == 40:
            with pytest.raises(ValueError, match="number 40 fails"):
                tasks[number].get()
        elif needs & set(inputs):
            needs.add(number)
            with pytest.raises(DependencyFailed, match=r"'fail_at_40\[40\]' \(40\) failed"):
                tasks[number].get()
        else:
            assert tasks[number].get() == values[number]


def produce(number: int, *values: bytes) -> bytes:
    sizes = (10, 100_000, 2_000_000)
    return bytes([number % 251]) * sizes[number % 3] + b"".join(each[:1] for each in values)


def test_large_values_arrive_whole(batch: Batch, factory: Any) -> None:
    graph = random_graph(5, 40)
    tasks = make(factory, graph, produce)
    batch.compile(tasks).run(timeout=60)
    values: list[bytes] = []
    for number, inputs in enumerate(graph):
        values.append(produce(number, *(values[each] for each in inputs)))
    assert [task.get() for task in tasks] == values


def add_to(array: Any, number: int) -> Any:
    array += number
    return int(array.sum())


def test_large_arguments_are_mapped_and_each_task_has_a_copy(
    batch: Batch, factory: Any, members: Callable[[], int]
) -> None:
    array = np.ones(200_000)
    for number in range(12):
        task = factory.function(add_to, array, number)
        batch.compile([task]).start()
        assert task.get(60) == 200_000 * (number + 1)
    assert array.sum() == 200_000
    assert members() >= 8 or is_paused(batch)


def test_tasks_with_options_take_part(batch: Batch, members: Callable[[], int]) -> None:
    graph = stencil(5, 8)
    addresses = sorted(workers_of(batch.client))
    factories = [
        batch,
        batch.options(isolation="process"),
        batch.options(retries=2),
        batch.options(priority=1),
        batch.options(workers=addresses[:1]),
        batch.options(workers=addresses[1:]),
    ]
    tasks: list[Any] = []
    for number, inputs in enumerate(graph):
        factory = factories[number % len(factories) if number % 4 == 0 else 0]
        values = (tasks[each].result for each in inputs)
        tasks.append(factory.function(mix, number, *values))
    batch.compile(tasks).run(timeout=60)
    assert [task.get() for task in tasks] == expected_of(graph)


def where(*_: Any) -> int:
    return os.getpid()


def test_a_chain_on_alternating_workers_stays_on_them(
    batch: Batch, members: Callable[[], int]
) -> None:
    addresses = sorted(workers_of(batch.client))
    factories = [batch.options(workers=[each]) for each in addresses]
    tasks = [factories[0].function(where)]
    for number in range(1, 60):
        tasks.append(factories[number % 2].function(where, tasks[-1].result))
    batch.compile(tasks).run(timeout=60)
    found = [task.get() for task in tasks]
    assert members() >= 60 or is_paused(batch)
    assert len(set(found[0::2])) == len(set(found[1::2])) == 1
    assert found[0] != found[1]


def say(number: int, *values: int) -> int:
    print(f"number {number}")
    return number


def test_each_task_has_its_own_output(batch: Batch, factory: Any) -> None:
    tasks = make(factory, stencil(4, 10), say)
    batch.compile(tasks).run(timeout=60)
    assert [task.stdout.get() for task in tasks] == [f"number {n}" for n in range(40)]


def pass_gate(gate: str, number: int, *values: int) -> int:
    if number == 20:
        Path(gate).with_suffix(".begun").touch()
        wait_for_file(Path(gate))
    return mix(number, *values)


def test_a_running_and_waiting_tasks_are_cancelled(
    batch: Batch, factory: Any, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    graph = stencil(6, 15)
    tasks = make(factory, graph, pass_gate, str(gate))
    program = batch.compile(tasks)
    program.start()
    wait_for_file(gate.with_suffix(".begun"))
    program.cancel()
    program.wait(timeout=60)
    for task in tasks[20:21] + tasks[-6:]:
        with pytest.raises((TaskCancelled, DependencyFailed)):
            task.get(timeout=60)


def submit_inside(batch: Batch, number: int, *values: int) -> int:
    if number % 7:
        return number
    inner = batch.function(mix, 0, number)
    inner.start()
    return number if inner.get(timeout=60) == 31 * number else -1


def test_a_task_may_wait_for_others_inside(batch: Batch, factory: Any) -> None:
    tasks = make(factory, stencil(4, 8), submit_inside, batch)
    batch.compile(tasks).run(timeout=60)
    assert [task.get() for task in tasks] == list(range(32))


def sleep_long(number: int, *values: int) -> None:
    while True:
        time.sleep(0.01)


def test_the_time_limit_of_a_task_in_a_thread_holds(batch: Batch) -> None:
    limited = batch.options(timeout=0.2, isolation="thread")
    first = [batch.function(mix, number) for number in range(3)]
    slow = limited.function(sleep_long, 1, *(each.result for each in first))
    last = batch.function(mix, 2, first[0].result)
    batch.compile([*first, slow, last]).run(timeout=60, check=False)
    with pytest.raises(TaskTimeout):
        slow.get()
    assert last.get() == mix(2, 0)


def test_a_task_that_ends_its_process_fails_alone(
    batch: Batch, tmp_path: Path, members: Callable[[], int]
) -> None:
    # No other task needs one of those that fail.
    graph = [tuple(each for each in inputs if each % 21) for inputs in random_graph(6, 100)]
    factory = batch.options(isolation="process", retries=1)
    tasks = make(factory, graph, die_once, str(tmp_path))
    batch.compile(tasks).run(timeout=120, check=False)
    values: list[int] = []
    for number, inputs in enumerate(graph):
        values.append(mix(number, *(values[each] for each in inputs)))
        if number % 21 == 0:
            with pytest.raises(TaskCrashed, match=r"ended by SIGKILL"):
                tasks[number].get()
        else:
            assert tasks[number].get() == values[number]
        info = tasks[number].info
        assert info.attempts == 1 + (number % 7 == 0)
        assert info.pid is not None
    assert members() >= 80 or is_paused(batch)


def mix_in_time(number: int, *values: int) -> int:
    """Do what `mix` does, for one test: how long it takes is not known before."""
    return mix(number, *values)


def sleep_in_time(number: int, *values: int) -> None:
    sleep_long(number, *values)


def test_the_time_limit_of_an_isolated_task_holds(batch: Batch, members: Callable[[], int]) -> None:
    limited = batch.options(timeout=0.2, isolation="process")
    first = [batch.function(mix_in_time, number) for number in range(3)]
    slow = limited.function(sleep_in_time, 1, *(each.result for each in first))
    quick = [limited.function(mix_in_time, number, first[0].result) for number in range(20)]
    batch.compile([*first, slow, *quick]).run(timeout=60, check=False)
    with pytest.raises(TaskTimeout, match=r"longer than its timeout of 0.2 s"):
        slow.get()
    assert [each.get() for each in quick] == [mix(number, 0) for number in range(20)]
    assert members() >= 20 or is_paused(batch)


def surroundings_of(number: int, *values: Any) -> tuple[int, str, str]:
    print(f"by {os.getpid()}")
    return os.getpid(), os.getcwd(), os.environ.get("OPEN_BLOCK", "")


def test_isolated_tasks_have_their_directory_and_environment(
    batch: Batch, tmp_path: Path, members: Callable[[], int]
) -> None:
    directory = tmp_path / "with a space ü"
    directory.mkdir()
    factory = batch.options(cwd=str(directory), env={"OPEN_BLOCK": "yes"})
    tasks = make(factory, stencil(4, 10), surroundings_of)
    batch.compile(tasks).run(timeout=60)
    workers = set(batch.client.run(os.getpid).values())
    for task in tasks:
        pid, *rest = task.get()
        assert rest == [str(directory), "yes"]
        assert pid not in workers
        assert task.info.pid == pid
        assert task.stdout.get() == f"by {pid}"
    assert members() or is_paused(batch)


def tell_and_wait(directory: str, number: int, *values: int) -> float:
    began = time.time()
    if number == 10:
        Path(directory, "pid").write_text(str(os.getpid()))
        wait_for_file(Path(directory, "gate"))
    return began


def test_it_is_known_where_and_since_when_an_isolated_task_runs(
    batch: Batch, tmp_path: Path, members: Callable[[], int]
) -> None:
    tasks = make(batch.options(isolation="process"), stencil(4, 6), tell_and_wait, str(tmp_path))
    program = batch.compile(tasks)
    program.start()
    wait_until(lambda: tasks[10].info.started is not None)
    wait_for_file(tmp_path / "pid")
    assert tasks[10].info.pid == int((tmp_path / "pid").read_text())
    (tmp_path / "gate").touch()
    program.wait(timeout=60)
    for task in tasks:
        info = task.info
        assert info.started is not None
        assert info.ended is not None
        assert info.started <= task.get() <= info.ended
    assert members() or is_paused(batch)


def put(queue: Any, number: int) -> None:
    queue.put(number)


def take(queue: Any) -> int:
    return int(queue.get(timeout=50))


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_held_tasks_run_while_all_that_is_sent_waits_for_them(
    isolation: str, members: Callable[[], int]
) -> None:
    with Batch(num_workers=1) as batch:
        factory = batch.options(isolation=isolation)
        queue = batch.queue()
        for _ in range(10):  # from now on it is known that they are short
            factory.function(put, queue, 0).run(timeout=60)
            factory.function(take, queue).run(timeout=60)
        before = members()
        taker, putter = factory.function(take, queue), factory.function(put, queue, 7)
        taker.start()
        wait_until(lambda: members() > before or is_paused(batch))
        putter.start()
        assert taker.get(timeout=60) == 7


def rest_and_wait(path: str) -> str:
    time.sleep(0.2)
    wait_for_file(Path(path))
    return "waited"


def test_held_tasks_use_a_worker_that_joins(tmp_path: Path) -> None:
    """Also while nothing else happens: the only slot runs a task that is known to be long."""
    gate = tmp_path / "gate"
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Batch(cluster) as batch,
    ):
        gate.touch()
        # From now on it is known how long the tasks take.
        known = [batch.function(rest_and_wait, str(gate)), *make(batch, stencil(4, 10))]
        batch.compile(known).run(timeout=60)
        gate.unlink()
        long = batch.function(rest_and_wait, str(gate))
        tasks = make(batch, stencil(4, 10))
        program = batch.compile([long, *tasks])
        program.start()
        wait_until(lambda: long.state == "running")
        # Until what was sent behind it has come back.
        blocks = batch._session.dispatcher.table.open_blocks
        wait_until(lambda: not any(each.is_open for each in blocks._by_number.values()))
        cluster.scale(2)
        try:
            tasks[-1].wait(timeout=50)
        finally:
            gate.touch()
        program.wait(timeout=60)
        assert long.get() == "waited"
        assert [task.get() for task in tasks] == expected_of(stencil(4, 10))


def touch(path: str) -> None:
    Path(path).touch()


def wait_for_touch(path: str, number: int, *values: int) -> int:
    if number == 90:
        wait_for_file(Path(path))
    return mix(number, *values)


def test_another_client_gets_a_slot_meanwhile(batch: Batch, factory: Any, tmp_path: Path) -> None:
    # The program ends only after the other client's task has run, which needs a slot.
    path = tmp_path / "touched"
    graph = stencil(6, 30)
    tasks = make(factory, graph, wait_for_touch, str(path))
    program = batch.compile(tasks)
    program.start()
    future = batch.client.submit(touch, str(path), pure=False)
    future.result(timeout=60)
    program.wait(timeout=60)
    assert [task.get() for task in tasks] == expected_of(graph)


def test_without_direct_connections_the_ordinary_way_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = threading.Event()

    def refuse(*args: Any, **kwargs: Any) -> socket.socket:
        tried.set()
        raise OSError("a firewall is in the way")

    monkeypatch.setattr(open_links, "connect_to_server", refuse)
    graph = stencil()
    with Batch(num_workers=2) as batch:
        tasks = make(batch, graph)
        batch.compile(tasks).run(timeout=60)
        assert [task.get() for task in tasks] == expected_of(graph)
        assert tried.is_set()
        finding = check_direct_connections(batch)
        assert finding.level is Level.NOTE
        assert "a firewall is in the way" in finding.text


def test_doctor_says_that_workers_can_be_reached(batch: Batch) -> None:
    finding = check_direct_connections(batch)
    assert finding.level is Level.GOOD or is_paused(batch)


@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cut_connection_costs_no_task(
    silent: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Link] = []
    made_link = open_links.FrameLink

    class Link(made_link):  # type: ignore[valid-type,misc]
        """A connection that can be cut so that both ends only notice that nothing arrives."""

        is_cut = False

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

        def _send_some(self) -> None:
            if self.is_cut:
                self._unsent.clear()
            else:
                super()._send_some()

        def receive(self) -> list[bytes]:
            if self.is_cut:
                time.sleep(0.01)
                return []
            return super().receive()

    monkeypatch.setattr(open_links, "FrameLink", Link)
    monkeypatch.setattr(frame_link, "SILENCE_LIMIT_SECONDS", 1.0)
    gate = tmp_path / "gate"
    graph = stencil(6, 20)
    with Batch(num_workers=2) as batch:
        tasks = make(batch, graph, pass_gate, str(gate))
        program = batch.compile(tasks)
        program.start()
        wait_for_file(gate.with_suffix(".begun"))
        assert made or is_paused(batch)
        for each in made:
            if silent:
                each.is_cut = True
            elif not each.broken:
                each.sock.shutdown(socket.SHUT_RDWR)
        gate.touch()
        program.wait(timeout=60)
        assert [task.get() for task in tasks] == expected_of(graph)


def kill_at_50(path: str, number: int, *values: int) -> int:
    if number == 50 and not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), 9)
    return mix(number, *values)


def test_a_worker_that_dies_costs_no_task(tmp_path: Path) -> None:
    graph = stencil()
    with Batch(num_workers=2) as batch:
        tasks = make(batch, graph, kill_at_50, str(tmp_path / "died"))
        batch.compile(tasks).run(timeout=100)
        assert [task.get() for task in tasks] == expected_of(graph)


def test_an_idle_open_block_does_not_keep_its_slot(batch: Batch) -> None:
    # Whatever is submitted next, in any way, finds both slots.
    tasks = make(batch, stencil(4, 10))
    batch.compile(tasks).run(timeout=60)
    futures = batch.client.map(mix, range(4), pure=False)
    assert batch.client.gather(futures) == [mix(n) for n in range(4)]


def test_the_listener_of_the_backend_receives_no_report_after_the_end() -> None:
    with Batch(num_workers=1) as batch:
        tasks = make(batch, stencil(4, 5))
        batch.compile(tasks).run(timeout=60)
        backend = batch._session._backend
        assert isinstance(backend, ClusterBackend)
    assert not backend.open_links._links

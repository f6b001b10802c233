"""Large programs run without a recursion limit, quadratic time or warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from daskbatch import Batch, BatchWarning


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The paths that they declare are only names.
        warnings.simplefilter("ignore", BatchWarning)
        yield


def count(*args: object) -> int:
    return len(args)


def increment(number: int) -> int:
    return number + 1


def total(*numbers: int) -> int:
    return sum(numbers)


def test_a_hundred_thousand_tasks(batch: Batch) -> None:
    program = batch.compile([batch.function(increment, number) for number in range(100_000)])
    program.run(timeout=100)
    assert program.get() == list(range(1, 100_001))


def test_a_chain_of_twenty_thousand_by_argument(batch: Batch) -> None:
    tasks = [batch.function(increment, 0)]
    for _ in range(19_999):
        tasks.append(batch.function(increment, tasks[-1]))
    batch.compile(tasks).run(timeout=100)
    assert tasks[-1].get() == 20_000


def test_a_chain_of_twenty_thousand_by_one_file(batch: Batch) -> None:
    read, write = batch.read("/some/file"), batch.write("/some/file")
    tasks = [batch.function(count, n, reads=[read], writes=[write]) for n in range(20_000)]
    program = batch.compile(tasks)
    assert sum(len(waits) for waits in program.graph.waits.values()) == 19_999
    program.run(timeout=100)
    assert program.state == "done"


@pytest.mark.parametrize("nested", [False, True])
def test_a_fan_in_of_twenty_thousand(batch: Batch, nested: bool) -> None:
    tasks = [batch.function(increment, number) for number in range(20_000)]
    last = batch.function(sum, tasks) if nested else batch.function(total, *tasks)
    batch.compile([*tasks, last]).run(timeout=100)
    assert last.get() == sum(range(1, 20_001))


def test_a_fan_out_of_twenty_thousand(batch: Batch) -> None:
    first = batch.function(increment, 0)
    tasks = [batch.function(total, first, number) for number in range(20_000)]
    program = batch.compile([first, *tasks])
    program.run(timeout=100)
    assert program.get() == [1, *range(1, 20_001)]


def test_a_task_with_five_thousand_accesses(batch: Batch) -> None:
    names = [f"file-{number}" for number in range(5_000)]
    writers = [batch.function(count, writes=[batch.write("/d", name)]) for name in names]
    reads_all = batch.function(count, reads=[batch.read("/d", *names)])
    reads_directory = batch.function(count, reads=[batch.read("/d")])
    writes_all = batch.function(count, writes=[batch.write("/d", *names)])
    writes_directory = batch.function(count, writes=[batch.write("/d")])
    program = batch.compile([*writers, reads_all, reads_directory, writes_all, writes_directory])
    program.run(timeout=100)
    assert program.state == "done"


def test_many_readers_and_many_writers_of_a_directory(batch: Batch) -> None:
    """N readers of a directory before M writers in it wait by N + M edges, not N times M."""
    writers = [batch.function(count, writes=[batch.write("/d", f"{n}")]) for n in range(1000)]
    readers = [batch.function(count, reads=[batch.read("/d")]) for _ in range(1000)]
    again = [batch.function(count, writes=[batch.write("/d", f"{n}")]) for n in range(1000)]
    program = batch.compile([*writers, *readers, *again])
    assert sum(len(waits) for waits in program.graph.waits.values()) <= 5000
    program.run(timeout=100)
    assert program.state == "done"


def test_a_deep_and_narrow_program(batch: Batch) -> None:
    """Rows of twenty tasks, each of which takes values from the row before."""
    row = [batch.function(increment, number) for number in range(20)]
    tasks = list(row)
    for _ in range(500):
        row = [batch.function(max, *row[max(0, n - 1) : n + 2], 0) for n in range(20)]
        tasks += row
    program = batch.compile(tasks)
    program.run(timeout=100)
    assert row[0].get() == 20


def test_arguments_that_many_tasks_share_are_sent_once(batch: Batch) -> None:
    shared = bytearray(10_000_000)
    tasks = [batch.function(_length_and_first, _Buffer(shared)) for _ in range(500)]
    program = batch.compile(tasks)
    program.run(timeout=100)
    assert program.get() == [(10_000_000, 0)] * 500


class _Buffer:
    """An object with a large buffer, like a NumPy array."""

    def __init__(self, content: bytearray) -> None:
        self.content = content

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        import pickle

        return _Buffer, (pickle.PickleBuffer(self.content),)


def _length_and_first(buffer: _Buffer) -> tuple[int, int]:
    first = buffer.content[0]
    buffer.content[0] = 1  # each task has a copy of its own
    return len(buffer.content), first

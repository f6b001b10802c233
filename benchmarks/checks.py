"""Times 10,000 small tasks with the default checks, with ``check=None``, and without any check.

The client's CPU time is what counts: it is the client that small tasks wait for, and the elapsed
time of a loaded machine says little. "Without" switches off what the client does for a check, and
sends no declared files to the workers, so that these look for none.

The ways are timed in turn, each round in another order, and each time is divided by that of another
way in the same round. The median of these ratios counts; the quartiles show how far noise reaches.
``python checks.py 21`` takes 21 rounds.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from common import Table

from daskbatch import Batch, Task
from daskbatch.batch import compiled
from daskbatch.dispatch import lower
from daskbatch.dispatch.task_record import TaskRecord

COUNT = 10_000
ROUNDS = 9

#: What the checks may cost: at most 3 % more.
MOST = 1.03

#: For each way, its times in seconds.
Times = dict[str, list[float]]


def step(number: int) -> int:
    return number


def plain(batch: Batch, _: str) -> list[Task]:
    return [batch.function(step, number) for number in range(COUNT)]


def declaring(batch: Batch, directory: str) -> list[Task]:
    return [
        batch.function(
            step,
            number,
            reads=[
                batch.read(directory, f"in-{number}"),
                batch.read(directory, f"out-{number // 7}"),
            ],
            writes=[batch.write(directory, f"out-{number}")],
        )
        for number in range(COUNT)
    ]


def declare_nothing(record: TaskRecord, rules: int) -> None:
    """Take the place of `lower.declared_files`; a mock of the library would take longer."""


@contextmanager
def without_checks() -> Iterator[None]:
    with (
        mock.patch.object(compiled, "numbered", nullcontext),
        mock.patch.object(lower, "declared_files", declare_nothing),
    ):
        yield


def run(batch: Batch, make: Callable[[Batch, str], list[Task]], directory: str, way: str) -> float:
    """Return the CPU time of the client for one program."""
    gc.collect()
    switched_off: Any = without_checks() if way == "without" else contextlib.nullcontext()
    with switched_off:
        began = time.process_time()
        program = batch.compile(make(batch, directory), check="warn" if way == "warn" else None)
        program.run(check=True)
        return time.process_time() - began


def compare(batch: Batch, make: Callable[[Batch, str], list[Task]], directory: str) -> Times:
    """Return the times of each way, one a round."""
    ways = ["warn", "none", "without"]
    times: Times = {way: [] for way in ways}
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS):
        for way in ways:
            times[way].append(run(batch, make, directory, way))
        ways = [*ways[1:], ways[0]]
    return times


def show_ratio(table: Table, what: str, times: Times, way: str) -> None:
    ratios = [ours / theirs for ours, theirs in zip(times["warn"], times[way], strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    table.row_at_most(what, median, "×", MOST)
    table.row("  quartiles of this: lower", lower)
    table.row("  quartiles of this: upper", upper)


def main() -> None:
    table = Table(f"{COUNT} small tasks: the client's CPU time with the default checks")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory, Batch(num_workers=2) as batch:
        for number in range(COUNT):
            Path(directory, f"in-{number}").touch()
            Path(directory, f"out-{number}").touch()
        for what, make in (("without accesses", plain), ("two reads and a write each", declaring)):
            run(batch, make, directory, "warn")
            times = compare(batch, make, directory)
            table.row(f"{what}: seconds", statistics.median(times["warn"]), "s")
            show_ratio(table, f"{what}: to check=None", times, "none")
            show_ratio(table, f"{what}: to no check at all", times, "without")
    table.end()


if __name__ == "__main__":
    main()

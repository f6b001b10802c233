"""Times 10,000 small tasks with the default checks, with ``check=None``, and without any check.

The client's CPU time is what counts: it is the client that small tasks wait for, and the elapsed
time of a loaded machine says little. "Without" switches off what the client does for a check, and
sends no declared files to the workers, so that these look for none. The ways are timed in turn, and
the median of the ratios of neighbouring runs is shown.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
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


def main() -> None:
    table = Table(f"{COUNT} small tasks: the client's CPU time with the default checks")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory, Batch(num_workers=2) as batch:
        for number in range(COUNT):
            Path(directory, f"in-{number}").touch()
            Path(directory, f"out-{number}").touch()
        for what, make, most in (
            ("without accesses", plain, 1.03),
            ("two reads and a write each", declaring, 1.10),
        ):
            run(batch, make, directory, "warn")
            ways = ("warn", "none", "without")
            times = [[run(batch, make, directory, way) for way in ways] for _ in range(ROUNDS)]
            to_none, to_without = (
                statistics.median(row[0] / row[index] for row in times) for index in (1, 2)
            )
            table.row(f"{what}: seconds", min(row[0] for row in times), "s")
            table.row_at_most(f"{what}: to check=None", to_none, "×", most)
            table.row_at_most(f"{what}: to no check at all", to_without, "×", most)
    table.end()


if __name__ == "__main__":
    main()

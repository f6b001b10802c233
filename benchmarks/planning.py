"""Times building and compiling tasks of three accesses each: the time per task must not grow."""

from __future__ import annotations

import gc
import time

from common import Table

from daskbatch import Batch

SIZES = (1_000, 10_000, 100_000)


def step(number: int) -> int:
    return number


def build(batch: Batch, count: int) -> float:
    gc.collect()
    began = time.perf_counter()
    tasks = [
        batch.function(
            step,
            number,
            reads=[
                batch.read("/data/in", f"file-{number}"),
                batch.read("/data", f"f-{number // 7}"),
            ],
            writes=[batch.write("/data", f"f-{number}")],
        )
        for number in range(count)
    ]
    program = batch.compile(tasks)
    took = time.perf_counter() - began
    assert sum(program.graph.counts().values()) >= count - 10
    return took


def main() -> None:
    table = Table("build and compile tasks of three accesses")
    with Batch(num_workers=1) as batch:
        build(batch, 100)
        for count in SIZES:
            each = 1e6 * min(build(batch, count) for _ in range(3)) / count
            table.row_at_most(f"{count}: µs a task", each, "µs", most=60)
    table.end()


if __name__ == "__main__":
    main()

"""Times 10 000 no-ops with and without a log directory, and the truth of the times of a slot.

The two Batches run in turn, so that the load of the machine falls on both.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from common import WORKERS, Table

from daskbatch import Batch

COUNT = 10_000
ROUNDS = 15


def noop(number: int) -> int:
    return number


def seconds_of(batch: Batch) -> float:
    # Else a collection of all objects, which takes half as long as the tasks, falls into every
    # second round, and so always into those of the same Batch.
    gc.collect()
    began = time.perf_counter()
    tasks = [batch.function(noop, number) for number in range(COUNT)]
    batch.compile(tasks).run()
    assert [task.result.get() for task in tasks] == list(range(COUNT))
    return time.perf_counter() - began


def cost_of_log(table: Table) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        Batch(num_workers=WORKERS) as plain,
        Batch(num_workers=WORKERS, log_dir=Path(directory, "log")) as logged,
    ):
        seconds_of(plain)
        seconds_of(logged)
        without, with_log = [], []
        for _ in range(ROUNDS):
            without.append(seconds_of(plain))
            with_log.append(seconds_of(logged))
            # What is left to be formatted belongs to neither of them.
            while list(Path(directory, "log").glob("events.pending-*")):
                time.sleep(0.01)
    table.row("10 000 no-ops, a second", COUNT / statistics.median(without), "/s")
    ratio = statistics.median(w / o for w, o in zip(with_log, without, strict=True))
    table.row_at_most("with log_dir, the time over that without", ratio, "×", 1.10)
    table.row("the same, the fastest rounds", min(with_log) / min(without), "×")


def truth_of_times(table: Table) -> None:
    """Compare the sum of `seconds` by slot with the time from the first start to the last end."""
    with Batch(num_workers=WORKERS) as batch:
        batch.function(time.sleep, 0.2).run()
        tasks = [batch.function(time.sleep, 1.0) for _ in range(8)]
        batch.compile(tasks).run()
        slices = defaultdict(list)
        for task in tasks:
            info = task.info
            slices[info.worker].append((info.started, info.ended, info.seconds))
    missing = 0.0
    for some in slices.values():
        some.sort()
        assert all(after[0] >= before[1] - 1e-5 for before, after in pairwise(some))
        wall = some[-1][1] - some[0][0]
        missing = max(missing, 1 - sum(seconds for _, _, seconds in some) / wall)
    table.row_at_most("wall clock of a slot that no task accounts for", 100 * missing, "%", 2.0)


def main() -> None:
    table = Table("records of a run")
    cost_of_log(table)
    truth_of_times(table)
    table.end()


if __name__ == "__main__":
    main()

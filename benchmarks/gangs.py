"""Times tasks of two slots against the same tasks of one slot, one after another.

Each task is submitted and waited for before the next one. Two slots of one host may cost a task
at most 10 ms more.
"""

from __future__ import annotations

import statistics
from time import perf_counter, sleep

from common import Table

from daskbatch import Batch
from daskbatch.batch.options import TaskFactory

COUNT = 200

#: So long after a gang, nothing of its slots is held any more. Seconds.
_COLD_PAUSE = 0.3


def increment(number: int) -> int:
    return number + 1


def milliseconds(options: TaskFactory, count: int, pause: float = 0.0) -> float:
    """Return the median time from the start of a task to its result."""
    took = []
    for number in range(count):
        sleep(pause)
        began = perf_counter()
        task = options.function(increment, number)
        task.start()
        assert task.get(timeout=60) == number + 1
        took.append(perf_counter() - began)
    return 1000 * statistics.median(took)


def main() -> None:
    table = Table("Tasks of two slots, submitted and waited for one after another")
    with Batch(num_workers=2) as batch:
        for isolation in ("thread", "process"):
            one = batch.options(isolation=isolation)
            two = batch.options(isolation=isolation, cores=2)
            for options in (one, two):
                milliseconds(options, 20)
            for name, count, pause in (
                ("one after another", COUNT // 4, 0.0),
                ("after a pause", 10, _COLD_PAUSE),
            ):
                # By turns, so that a disturbance hits both.
                pairs = [
                    (milliseconds(one, count, pause), milliseconds(two, count, pause))
                    for _ in range(4)
                ]
                single = statistics.median(pair[0] for pair in pairs)
                both = statistics.median(pair[1] for pair in pairs)
                table.row(f"{isolation}, {name}: one slot", single, "ms")
                table.row(f"{isolation}, {name}: two slots", both, "ms")
                table.row_at_most(f"{isolation}, {name}: more", both - single, "ms", 10)
    table.end()


if __name__ == "__main__":
    main()

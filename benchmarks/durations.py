"""Times long tasks of unknown durations, alone and among short ones.

Compared with the time that two workers need for the work alone: half of the sum, or the time of a
list schedule (each task, in order, goes to the worker that is free first).
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

from common import WORKERS, Table

from daskbatch import Batch

#: How many draws of durations there are for each number of tasks with a heavy tail.
DRAWS = 7


def new_nap() -> Callable[[float], float]:
    """Make a new function, so that no durations of its calls have been learnt."""
    scope: dict[str, Callable[[float], float]] = {"__name__": "__main__"}  # type: ignore[dict-item]
    exec("import time\ndef nap(seconds):\n    time.sleep(seconds)\n    return seconds\n", scope)
    return scope["nap"]


def noop(number: float) -> float:
    return number


def list_schedule(durations: Sequence[float]) -> float:
    """Return the makespan of a list schedule, in seconds."""
    free = [0.0] * WORKERS
    for duration in durations:
        first = min(range(WORKERS), key=free.__getitem__)
        free[first] += duration
    return max(free)


def makespan(batch: Batch, calls: Sequence[tuple[Callable[[float], float], float]]) -> float:
    began = time.perf_counter()
    tasks = [batch.function(function, argument) for function, argument in calls]
    program = batch.compile(tasks)
    program.run()
    took = time.perf_counter() - began
    assert program.state == "done"
    return took


def heavy_tailed(count: int, rng: random.Random) -> list[float]:
    """Return durations from 5 to 400 ms, most of them short."""
    return [min(0.4, max(0.005, 0.008 * rng.paretovariate(1.1))) for _ in range(count)]


def main() -> None:
    rng = random.Random(7)
    table = Table("long tasks on two workers")
    with Batch(num_workers=WORKERS) as batch:
        makespan(batch, [(noop, 0)])
        for count in (50, 100, 200):
            took = makespan(batch, [(new_nap(), 0.1)] * count)
            share = 100 * count * 0.1 / WORKERS / took
            table.row(f"{count} of 100 ms: work", share, "%", least=97 if count == 100 else None)
        for count in (100, 200, 400):
            ratios = []
            # One schedule may end with a long task by chance, so there are several.
            for _ in range(DRAWS):
                durations = heavy_tailed(count, rng)
                nap = new_nap()
                took = makespan(batch, [(nap, duration) for duration in durations])
                ratios.append(took / list_schedule(durations))
            table.row_at_most(
                f"{count} of 5 to 400 ms: makespan over the list schedule's, median of {DRAWS}",
                statistics.median(ratios),
                "×",
                most=1.05,
            )
            table.row("… the shortest and the longest one", min(ratios), "×")
            table.row("", max(ratios), "×")
        for count in (1_000, 10_000, 30_000):
            nap, durations = new_nap(), heavy_tailed(200, rng)
            calls = [(noop, float(number)) for number in range(count)]
            calls += [(nap, 0.1)] * 100 + [(nap, duration) for duration in durations]
            rng.shuffle(calls)
            times = [argument for function, argument in calls if function is nap]
            took = makespan(batch, calls)
            table.row(
                f"300 long ones among {count} short ones: work of the long ones",
                100 * sum(times) / WORKERS / took,
                "%",
                least=95 if count == 1_000 else None,
            )
            table.row_at_most(
                "… and makespan over the list schedule of the long ones",
                took / list_schedule(times),
                "×",
                most=1.10,
            )
    table.end()


if __name__ == "__main__":
    main()

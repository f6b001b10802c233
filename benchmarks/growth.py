"""Times 1000 tasks of 0.1 s on a cluster that grows from 0 to 8 slots, beside `client.map`.

The tasks sleep, so that eight slots need no eight processors. One worker joins in each step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from common import Table
from distributed import Client, LocalCluster

from daskbatch import Batch

TASKS, SECONDS, SLOTS = 1000, 0.1, 8

#: The seconds from one worker that joins to the next.
STEPS_SECONDS = 0.2, 1.0


def nap(number: int) -> int:
    time.sleep(SECONDS)
    return number


def by_map(client: Client) -> float:
    began = time.perf_counter()
    assert client.gather(client.map(nap, range(TASKS), pure=False)) == list(range(TASKS))
    return time.perf_counter() - began


def by_batch(client: Client) -> float:
    with Batch(client) as batch:
        began = time.perf_counter()
        tasks = [batch.function(nap, number) for number in range(TASKS)]
        batch.compile(tasks).run()
        assert [task.get() for task in tasks] == list(range(TASKS))
        return time.perf_counter() - began


def while_growing(run: Callable[[Client], float], step_seconds: float) -> float:
    """Run a program while the cluster grows; return how long the program took."""
    with (
        LocalCluster(
            n_workers=0, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):

        def grow() -> None:
            for count in range(1, SLOTS + 1):
                cluster.scale(count)
                time.sleep(step_seconds)

        growing = threading.Thread(target=grow)
        growing.start()
        try:
            return run(client)
        finally:
            growing.join()


def main() -> None:
    table = Table("a cluster that grows from 0 to 8 slots")
    for step_seconds in STEPS_SECONDS:
        others = while_growing(by_map, step_seconds)
        ours = while_growing(by_batch, step_seconds)
        what = f"a worker every {step_seconds:g} s: the time of client.map, {others:.1f} s"
        table.row_at_most(what, ours / others, "×", most=1.2)
    table.end()


if __name__ == "__main__":
    main()

"""Measures what two clients of one cluster get that run at the same time: half each.

Each client is a process. While both have tasks, the share of a client is the time of its tasks
among the time of all. The tasks of one pair of programs are independent; those of the other pair
are stencils, which run in open blocks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from common import WORKERS, Table, own_cluster

CLIENT = """
import json, sys, time
from daskbatch import Batch
def nap(seconds, *inputs):
    time.sleep(seconds)
    return 1
kind, address, steps, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
WIDTH = 8
batch = Batch(address)
def make(steps, seconds):
    tasks = []
    for position in range(steps * WIDTH):
        step, x = divmod(position, WIDTH)
        near = range(max(0, x - 1), min(WIDTH, x + 2)) if step and kind == "stencil" else ()
        inputs = [tasks[(step - 1) * WIDTH + each].result for each in near]
        tasks.append(batch.function(nap, seconds, *inputs))
    return batch.compile(tasks), tasks
make(4, seconds)[0].run()  # it is known now how long they take
program, tasks = make(steps, seconds)
print("ready", flush=True)
input()
began = time.time()
program.run()
assert program.state == "done"
times = [(task.info.started, task.info.ended) for task in tasks]
times = [each for each in times if each[0] is not None]  # it may be unknown
print(json.dumps([began, times]))
"""


def share(kind: str, steps: int, seconds: float) -> tuple[float, float]:
    """Return the share of one client, and that of both in the time of the slots."""
    with own_cluster() as address:
        clients = [
            subprocess.Popen(
                [sys.executable, "-c", CLIENT, kind, address, str(steps), str(seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for each in clients:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        time.sleep(0.5)  # the open blocks of the first programs have ended
        for each in clients:
            assert each.stdin is not None
            each.stdin.write("\n")
            each.stdin.flush()
        found = [json.loads(each.communicate()[0]) for each in clients]
    times = [some for _, some in found]
    # While both had tasks to run.
    begin = max(began for began, _ in found)
    end = min(max(ended for _, ended in some) for some in times)
    had = [
        sum(max(0.0, min(ended, end) - max(began, begin)) for began, ended in some)
        for some in times
    ]
    return had[0] / sum(had), sum(had) / ((end - begin) * WORKERS)


def main() -> None:
    table = Table("two clients at once on two workers")
    for kind, steps, seconds in (("flat", 20, 0.05), ("flat", 150, 0.005), ("stencil", 400, 0.005)):
        one, both = share(kind, steps, seconds)
        what = f"{kind}, {steps * 8} tasks of {seconds * 1e3:g} ms"
        table.row_at_most(f"{what}: the larger share over a half", 2 * max(one, 1 - one), "×", 1.1)
        table.row(f"{what}: share of the slots' time in tasks", 100 * both, "%")
    table.end()


if __name__ == "__main__":
    main()

"""Times programs of up to a million no-ops, flat and as a stencil: time and memory must be linear.

Each client is a separate process, without its cluster, so that only the client's memory counts. A
stencil is eight tasks wide, and each task takes the values of its neighbours in the step before.
For comparison, plain Dask clients run smaller stencils: as a graph, of which only the last value is
kept; by `submit`, with a future for each task, as ours has a handle; and by `delayed`. The memory
of `delayed` grows with the square: 10 000 tasks would take minutes, and gigabytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import NamedTuple

from common import Table, own_cluster

SIZES = (10_000, 100_000, 1_000_000)

#: A small run uses some memory again that the first program of 400 tasks has left: 1 MB of 10.
_MAX_MEMORY_RATIO = 1.15

#: The stencils of plain Dask clients, and the stencil of ours whose peak is compared with theirs.
DASK_SIZES = {"graph": 10_000, "submit": 10_000, "delayed": 4_000}
COMPARED_SIZE = 100_000

_MEASURE = """
import json, resource, sys, time
def noop(*inputs): return 1
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
WIDTH = 8
def neighbours(position):
    step, x = divmod(position, WIDTH)
    if not step:
        return []
    return [(step - 1) * WIDTH + y for y in (x - 1, x, x + 1) if 0 <= y < WIDTH]
kind, address, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
"""

OURS = f"""{_MEASURE}
from daskbatch import Batch
batch = Batch(address)
# A first program of each form: modules are loaded, and durations are known.
for some in (400, count):
    before, began, cpu = peak(), time.perf_counter(), time.process_time()
    tasks = []
    for position in range(some):
        inputs = neighbours(position) if kind == "stencil" else []
        tasks.append(batch.function(noop, *[tasks[each].result for each in inputs]))
    program = batch.compile(tasks)
    program.run()
    assert program.state == "done" and tasks[-1].result.get() == 1
    took, cpu, most = time.perf_counter() - began, time.process_time() - cpu, peak()
print(json.dumps([took, cpu, most, most - before]))
"""

DASKS = f"""{_MEASURE}
import dask
from dask.task_spec import Task, TaskRef
from distributed import Client
client = Client(address)
before, began, cpu = peak(), time.perf_counter(), time.process_time()
if kind == "graph":
    keys = [f"noop-{{position}}" for position in range(count)]
    graph = {{
        key: Task(key, noop, *[TaskRef(keys[each]) for each in neighbours(position)])
        for position, key in enumerate(keys)
    }}
    assert client.get(graph, keys[-1]) == 1
else:
    tasks = []
    delayed = dask.delayed(noop, pure=False)
    for position in range(count):
        inputs = [tasks[each] for each in neighbours(position)]
        if kind == "submit":
            tasks.append(client.submit(noop, *inputs, pure=False))
        else:
            tasks.append(delayed(*inputs))
    assert client.gather(tasks if kind == "submit" else client.compute(tasks)) == [1] * count
took, cpu, most = time.perf_counter() - began, time.process_time() - cpu, peak()
print(json.dumps([took, cpu, most, most - before]))
"""


class Cost(NamedTuple):
    """What a run has cost the client: seconds, its processor time, MB at most, MB added."""

    seconds: float
    cpu_seconds: float
    peak: float
    added: float


def measure(program: str, kind: str, count: int) -> Cost:
    """Run a program in a client, which is a process."""
    with own_cluster() as address:
        done = subprocess.run(
            [sys.executable, "-c", program, kind, address, str(count)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Cost(*json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--kinds", nargs="*", default=("flat", "stencil"))
    arguments = parser.parse_args()
    table = Table("programs of no-ops: what a task costs the client")
    for kind in arguments.kinds:
        costs: dict[int, Cost] = {}
        for count in arguments.sizes:
            cost = costs[count] = measure(OURS, kind, count)
            what = f"{kind}, {count} tasks"
            table.row(f"{what}: {cost.seconds:.1f} s", cost.seconds / count * 1e6, "us")
            table.row(f"{what}: processor time", cost.cpu_seconds / count * 1e6, "us")
            table.row(f"{what}: {cost.added:.0f} MB", cost.added / count * 2**20, "bytes")
            first = costs[arguments.sizes[0]]
            if cost is not first:
                more = count / arguments.sizes[0]
                table.row_at_most(
                    f"{what}: processor time of a task over the first",
                    *(cost.cpu_seconds / first.cpu_seconds / more, "×", 1.25),
                )
                table.row_at_most(
                    f"{what}: memory of a task over the first",
                    *(cost.added / first.added / more, "×", _MAX_MEMORY_RATIO),
                )
        ours = costs.get(COMPARED_SIZE)
        if kind == "stencil" and ours is not None:
            for form, count in DASK_SIZES.items():
                dasks = measure(DASKS, form, count)
                table.row(f"Dask, {form}, {count} tasks", dasks.seconds / count * 1e6, "us")
                peaks = f"{ours.peak:.0f} and {dasks.peak:.0f} MB"
                what = f"peak for {COMPARED_SIZE} over that of Dask's {form} ({peaks})"
                if form == "delayed":
                    table.row_at_most(what, ours.peak / dasks.peak, "×", 1.0)
                else:
                    table.row(what, ours.peak / dasks.peak)
    table.end()


if __name__ == "__main__":
    main()

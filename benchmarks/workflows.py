"""Runs graphs of real scientific workflows, made by WfCommons, whose tasks wait by files.

Each task reads the files of the tasks before it, takes 20 ms, and writes a file. The files show
whether a read came too early: each names the task that wrote it. With ``reuse``, a file name is
used again once all readers of the file come before in the program, so that writes wait for reads
and for writes (WAR, WAW).

The makespan is compared with max(critical path, work / slots) of the durations that the tasks have
measured, and with Dask's graph of the same tasks. No schedule can be shorter than that, but not
every graph has one that is as short. So the shortest schedule of tasks of one duration is compared
with it, too; see `two_slots`. Needs the extra `workflows`.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import tempfile
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common import WORKERS, Table, raw_dask
from dask.task_spec import Task as DaskTask
from dask.task_spec import TaskRef
from distributed import Client
from two_slots import fewest_steps

from daskbatch import Batch

WORKFLOWS = ("montage", "epigenomics", "genome", "blast", "cycles", "seismology")
TASKS = 300
TASK_SECONDS = 0.02

#: When a task began and ended.
Times = tuple[float, float]


class Step(NamedTuple):
    """A task of a workflow.

    Parameters
    ----------
    before : tuple of int
        The tasks whose files it reads.
    after : tuple of int
        The tasks that must be over, since it overwrites what they wrote or read.
    output : str
        The file that it writes.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    output: str


def step(root: str, number: int, inputs: list[tuple[str, int]], output: str, *_: Any) -> Times:
    """Read the inputs, check who has written them, take a while, and write the output."""
    began = time.perf_counter()
    for name, writer in inputs:
        found = Path(root, name).read_text()
        if found != f"{writer} is done":
            raise RuntimeError(f"task {number} has read {found!r} in place of the file of {writer}")
    time.sleep(TASK_SECONDS)
    Path(root, output).write_text(f"{number} is only begun")
    Path(root, output).write_text(f"{number} is done")
    return began, time.perf_counter()


def make_workflow(name: str, reuse: bool, tasks: int = TASKS) -> list[Step]:
    """Return the tasks of a workflow, each after those that it waits for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        import wfcommons
        from wfcommons.wfchef import recipes

        random.seed(f"{name} {tasks}")
        recipe = getattr(recipes, f"{name.capitalize()}Recipe").from_num_tasks(tasks)
        graph = wfcommons.WorkflowGenerator(recipe).build_workflow()
        logging.disable(logging.NOTSET)
    missing = {node: graph.in_degree(node) for node in graph.nodes}
    ready = deque(sorted(node for node, count in missing.items() if not count))
    order: list[str] = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for each in sorted(graph.successors(node)):
            missing[each] -= 1
            if not missing[each]:
                ready.append(each)
    position = {node: number for number, node in enumerate(order)}
    befores = [tuple(sorted(position[each] for each in graph.predecessors(n))) for n in order]
    readers = [sorted(position[each] for each in graph.successors(node)) for node in order]
    return _with_files(befores, readers, reuse)


def _with_files(
    befores: list[tuple[int, ...]], readers: list[list[int]], reuse: bool
) -> list[Step]:
    steps = []
    #: File names that may be used again, with the writer and the readers to wait for.
    free: deque[tuple[str, tuple[int, ...]]] = deque()
    ends_at: dict[int, list[int]] = {}
    outputs: list[str] = []
    for number, before in enumerate(befores):
        after: tuple[int, ...] = ()
        output = f"file {number}"
        if reuse and free:
            output, after = free.popleft()
        outputs.append(output)
        steps.append(Step(before, after, output))
        ends_at.setdefault(max(readers[number], default=number), []).append(number)
        for writer in ends_at.pop(number, ()):
            free.append((outputs[writer], (writer, *readers[writer])))
    return steps


def bound(steps: list[Step], times: list[Times]) -> float:
    """Return the seconds that no scheduler can beat with these durations."""
    ends: list[float] = []
    for each, (began, ended) in zip(steps, times, strict=True):
        start = max((ends[other] for other in (*each.before, *each.after)), default=0.0)
        ends.append(start + ended - began)
    work = sum(ended - began for began, ended in times)
    return max(max(ends), work / WORKERS)


def shortest(steps: list[Step]) -> float:
    """Return the shortest schedule for two slots, over the bound, if tasks took equally long."""
    best = fewest_steps([{*each.before, *each.after} for each in steps])
    return best / bound(steps, [(0.0, 1.0)] * len(steps))


def by_batch(batch: Batch, steps: list[Step], root: str) -> list[Times]:
    tasks = []
    for number, each in enumerate(steps):
        inputs = [(steps[other].output, other) for other in each.before]
        tasks.append(
            batch.function(
                *(step, root, number, inputs, each.output),
                reads=[batch.read(Path(root, name)) for name, _ in inputs],
                writes=[batch.write(Path(root, each.output))],
            )
        )
    batch.compile(tasks).run()
    return [task.get() for task in tasks]


def by_dask(client: Client, steps: list[Step], root: str) -> list[Times]:
    nonce = uuid.uuid4().hex
    keys = [f"step-{nonce}-{number}" for number in range(len(steps))]
    graph = {}
    for number, each in enumerate(steps):
        inputs = [(steps[other].output, other) for other in each.before]
        waits = [TaskRef(keys[other]) for other in (*each.before, *each.after)]
        graph[keys[number]] = DaskTask(
            keys[number], step, root, number, inputs, each.output, *waits
        )
    return client.get(graph, keys)


#: Runs a workflow in a directory, and returns when each task ran.
Run = Callable[[list[Step], str], list[Times]]


@contextmanager
def ours() -> Iterator[Run]:
    with Batch(num_workers=WORKERS) as batch:
        yield lambda steps, root: by_batch(batch, steps, root)


@contextmanager
def dasks() -> Iterator[Run]:
    with raw_dask() as client:
        yield lambda steps, root: by_dask(client, steps, root)


SYSTEMS = {"daskbatch": ours, "Dask": dasks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workflows", nargs="*", default=WORKFLOWS)
    arguments = parser.parse_args()
    table = Table(f"workflows of {TASKS} tasks of 20 ms, {WORKERS} slots: makespans")
    over_dask = []
    bounds_over_dask = []
    for name in arguments.workflows:
        for reuse in (False, True):
            steps = make_workflow(name, reuse)
            makespans: dict[str, list[float]] = {}
            shares: list[float] = []
            bounds: list[float] = []
            # Each alone: an idle cluster takes processor time, too.
            for who, system in SYSTEMS.items():
                with system() as run:
                    makespans[who] = []
                    for _ in range(arguments.repeat):
                        with tempfile.TemporaryDirectory(prefix="work flow ") as root:
                            times = run(steps, root)
                        makespan = max(e for _, e in times) - min(b for b, _ in times)
                        makespans[who].append(makespan)
                        if who == "daskbatch":
                            bounds.append(bound(steps, times))
                            shares.append(makespan / bounds[-1])
            what = f"{name}, {len(steps)} tasks{', names reused' if reuse else ''}"
            table.row_at_most(f"{what}: over the bound", min(shares), "×", 1.10)
            if WORKERS == 2:
                best = shortest(steps)
                table.row(f"{what}: shortest over the bound", best)
                table.row_at_most(f"{what}: over the shortest", min(shares) / best, "×", 1.10)
            ratio = min(makespans["daskbatch"]) / min(makespans["Dask"])
            table.row(f"{what}: over Dask", ratio)
            over_dask.append(ratio)
            bounds_over_dask.append(min(bounds) / min(makespans["Dask"]))
    # Where Dask is near the bound, nothing can be much faster than Dask.
    least = statistics.geometric_mean(bounds_over_dask)
    table.row("geometric mean of the bounds over Dask", least)
    mean = statistics.geometric_mean(over_dask)
    table.row_at_most("geometric mean over Dask", mean, "×", 0.85)
    table.end()


if __name__ == "__main__":
    main()

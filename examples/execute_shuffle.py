"""Counts the words of Python's standard library by map, shuffle and reduce, as a job.

Each map task reads some source files and writes its counts to files, one for each reduce task, in
the directory of the worker that runs it. This directory stands for the local disk of a machine: the
other tasks find it by the worker's name. A barrier separates the map tasks from the reduce tasks.
Each reduce task prefers the worker that has most of the counts that it needs.

When all map tasks are done, the barrier deletes one output on purpose. The reduce tasks that need
it raise `DependenciesFailed`. The scheduler executes the map task again, and then the reduce tasks.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from distributed import get_worker

from daskbatch import Batch
from daskbatch.execute import DependenciesFailed, ExecutionContext, Job, RmiTask, Task

REDUCERS = 6
FILES_PER_MAP = 10


def part_of(word: str) -> int:
    """Return the number of the reduce task that counts a word: the same in every process."""
    return sum(word.encode()) % REDUCERS


def worker_directory(directory: str, worker: str) -> Path:
    """The directory that only one worker uses."""
    return Path(directory) / f"worker-{worker}"


def count_words(number: int, files: list[str], directory: str) -> list[int]:
    """Map: count the words of some files; write one file of counts for each reduce task."""
    words: list[Counter[str]] = [Counter() for _ in range(REDUCERS)]
    for file in files:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        for word in re.findall(r"[A-Za-z_]+", text):
            words[part_of(word)][word] += 1
    output = worker_directory(directory, str(get_worker().name)) / f"map-{number}"
    output.mkdir(parents=True, exist_ok=True)
    for part, counts in enumerate(words):
        (output / f"{part}.json").write_text(json.dumps(counts))
    return [len(counts) for counts in words]


def add_counts(part: int, locations: dict[int, str], directory: str) -> dict[str, int]:
    """Reduce: add up the counts of one part, from the directories of all workers."""
    total: Counter[str] = Counter()
    missing: list[int] = []
    for number, worker in locations.items():
        try:
            text = (
                worker_directory(directory, worker) / f"map-{number}" / f"{part}.json"
            ).read_text()
        except FileNotFoundError:
            missing.append(number)
        else:
            total.update(json.loads(text))
    if missing:
        # Name no worker: the workers run, only a file is missing.
        raise DependenciesFailed({None: missing})
    return dict(total)


class Mapped(Task):
    """The barrier between map and reduce: n + m dependencies replace n * m."""

    def __init__(self, ctx: ExecutionContext, maps: list[RmiTask], directory: str) -> None:
        super().__init__(ctx, len(maps), name="mapped", group="barrier")
        self.directory = directory
        self.dependencies.update(maps)
        self.lost: Path | None = None

    def execute(self, scheduler: Any, worker: Any) -> None:
        self.set_executing(worker)
        # Simulate an accident: delete the output of the first map task.
        first = min(self.dependencies, key=lambda task: task.id)
        self.lost = worker_directory(self.directory, first.executed_on[-1]) / f"map-{first.id}"
        shutil.rmtree(self.lost)
        self.mark_done()


class Reduce(RmiTask):
    """A reduce task, which prefers the worker that has most of its input."""

    def __init__(
        self, ctx: ExecutionContext, part: int, maps: list[RmiTask], barrier: Mapped
    ) -> None:
        name = f"reduce {part}"
        number = len(maps) + 1 + part
        super().__init__(ctx, number, add_counts, name=name, group="reduce")
        self.part, self.maps = part, maps
        self.directory = barrier.directory
        self.dependencies.add(barrier)

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments of the method, with the present locations of the map outputs."""
        locations = {task.id: task.executed_on[-1] for task in self.maps}
        return self.part, locations, self.directory

    @args.setter
    def args(self, _: Any) -> None:
        pass

    def locality(self, workers: Any) -> list[tuple[Any, int]]:
        """Return, for each worker, the number of words of this part that it has counted."""
        found: Counter[str] = Counter()
        for task in self.maps:
            if task.succeeded:
                found[task.executed_on[-1]] += task.result()[self.part]
        return [(worker, found[worker.name]) for worker in workers]


def make_job(ctx: ExecutionContext, files: list[str], directory: str) -> Job:
    """Make the tasks: n map tasks, a barrier, m reduce tasks."""
    chunks = [files[at : at + FILES_PER_MAP] for at in range(0, len(files), FILES_PER_MAP)]
    maps = [
        RmiTask(ctx, n, count_words, (n, chunk, directory), name=f"map {n}", group="map")
        for n, chunk in enumerate(chunks)
    ]
    barrier = Mapped(ctx, maps, directory)
    reduces = [Reduce(ctx, part, maps, barrier) for part in range(REDUCERS)]
    return Job(ctx, [*maps, barrier, *reduces], name="words")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, help="how many; by default all")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(str(path) for path in library.glob("*.py"))[: given.files]

    with (
        tempfile.TemporaryDirectory() as directory,
        Batch(num_workers=given.workers) as batch,
        ExecutionContext(batch) as ctx,
    ):
        job = make_job(ctx, files, directory)
        total: Counter[str] = Counter()
        for task in ctx.execute(job, order_results=False):
            if task.group == "reduce":
                total.update(task.result())

    expected: Counter[str] = Counter()
    for file in files:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        expected.update(re.findall(r"[A-Za-z_]+", text))
    maps, reduces = job.group("map"), job.group("reduce")
    print(f"{len(files)} files, {len(maps)} map tasks, {len(reduces)} reduce tasks")
    print(f"made again: {', '.join(str(task.name) for task in maps if task.attempts > 1)}")
    print(f"as counted one by one: {total == expected}")
    print("\nword        times")
    for word, count in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:10]:
        print(f"{word:10} {count:6}")


if __name__ == "__main__":
    main()

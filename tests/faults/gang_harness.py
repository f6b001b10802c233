"""Runs random gangs and functions while tasks are cancelled and workers killed, and checks slots.

``PYTHONPATH=tests python -m faults.gang_harness --seeds 0-199`` does so for many seeds. Each task
records in a directory that it uses its slots, and how many slots all tasks use at that moment.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from support.outside import outside_cluster

from daskbatch import Batch, TaskCancelled, WorkerLost
from daskbatch.batch.task import Task

#: The slots of the clusters, all on this host.
SLOTS = 4

#: A run must be over after this time. Seconds.
PATIENCE = 60.0

#: How long a worker lives before it is killed. Seconds.
_START_SECONDS = 2.0


@dataclass(frozen=True)
class Step:
    """A task of a random program."""

    number: int
    #: How many slots it takes.
    cores: int = 1
    isolated: bool = False
    seconds: float = 0.0
    #: The slots of a task that it starts and waits for; 0 for none.
    inner: int = 0
    #: When it is cancelled, in seconds from the start; only isolated tasks are.
    cancelled: float | None = None
    priority: float = 0


def random_program(seed: int) -> list[Step]:
    rng = random.Random(f"gangs {seed}")
    gangs = rng.choice([0.2, 0.5, 0.9])
    waiting = rng.choice([0.0, 0.1, 0.3])
    cancels = rng.choice([0.0, 0.2])
    steps = []
    for number in range(rng.choice([8, 20, 40])):
        isolated = rng.random() < 0.3
        steps.append(
            Step(
                number,
                rng.choice([2, 2, 3, 4]) if rng.random() < gangs else 1,
                isolated,
                rng.choice([0.0, 0.01, 0.05, 0.2]),
                rng.choice([1, 2, 4]) if rng.random() < waiting else 0,
                rng.uniform(0, 1.5) if isolated and rng.random() < cancels else None,
                rng.choice([0, 0, 0, 5]),
            )
        )
    return steps


# -- the tasks ----------------------------------------------------------------------------


class SlotBook:
    """A directory in which running tasks record the slots that they use.

    Parameters
    ----------
    root : str
        The directory.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self._root / "lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def begin(self, name: str, cores: int) -> str:
        """Record that slots are used from now on; return the name of the entry."""
        with self._locked():
            used = cores
            for entry in (self._root / "used").iterdir():
                others = _cores_in_use(entry)
                used += others
                if not others:
                    entry.unlink()
            with open(self._root / "peaks", "a") as file:
                file.write(f"{name} {used}\n")
            entry = self._root / "used" / f"{name}-{uuid.uuid4().hex[:8]}"
            entry.write_text(f"{os.getpid()} {cores}")
            return str(entry)

    def end(self, entry: str) -> None:
        """Record that they are no longer used."""
        with self._locked():
            Path(entry).unlink(missing_ok=True)

    def peak(self) -> int:
        path = self._root / "peaks"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((int(line.split()[1]) for line in lines), default=0)

    def in_use(self) -> list[str]:
        return [entry.name for entry in (self._root / "used").iterdir() if _cores_in_use(entry)]


def _cores_in_use(entry: Path) -> int:
    """Return how many slots an entry stands for; 0 if its process has been killed."""
    try:
        pid, cores = map(int, entry.read_text().split())
        alive = psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ValueError, psutil.Error):  # it may have been killed while it wrote the entry
        return 0
    return cores if alive else 0


def act(root: str, step: Step, batch: Batch | None) -> int:
    """Use the slots of a step for a while; wait for another task in the middle of it."""
    book = SlotBook(root)
    entry = book.begin(str(step.number), step.cores)
    time.sleep(step.seconds / 2)
    if batch is not None and step.inner:
        inner = Step(1000 + step.number, step.inner, seconds=step.seconds)
        task = make(batch, root, inner)
        task.start()
        book.end(entry)
        task.get(timeout=PATIENCE)
        entry = book.begin(f"{step.number}b", step.cores)
    time.sleep(step.seconds / 2)
    book.end(entry)
    return step.number


def make(batch: Batch, root: str, step: Step) -> Task:
    isolation = "process" if step.isolated else "thread"
    options = batch.options(
        cores=step.cores, isolation=isolation, priority=step.priority, name=f"step-{step.number}"
    )
    return options.function(act, root, step, batch if step.inner else None)


# -- runs ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """Counts of what happened, over all runs."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = ", ".join(f"{what} {count}" for what, count in sorted(self.counts.items()))
        return f"{len(self.violations)} violations; {said}"


@contextlib.contextmanager
def cluster_of(shape: str) -> Iterator[Batch]:
    """Return a Batch on workers of this shape: ``"4x1"`` or ``"2x2"``, workers by threads."""
    workers, threads = map(int, shape.split("x"))
    if threads == 1:
        with Batch(num_workers=workers) as batch:
            yield batch
        return
    with (
        outside_cluster(workers, threads) as made,
        Batch(made) as batch,
    ):
        yield batch


def _worker_pids(dask_scheduler: Any) -> list[int]:
    return sorted(each.pid for each in dask_scheduler.workers.values())


def _remaining(dask_scheduler: Any) -> list[str]:
    found = [repr(key) for key in dask_scheduler.tasks if "daskbatch_slot" in str(key)]
    allocator = dask_scheduler.plugins["daskbatch-service"]._gangs
    return found + [str(each) for each in allocator.describe()]


class Run:
    """One run of a random program.

    Parameters
    ----------
    batch : Batch
        Where it runs.
    seed : int
        Which program, and which kills.
    root : Path
        An empty directory.
    seen : dict, optional
        When the process of each worker was seen first; None if no worker is to be killed.
    """

    def __init__(self, batch: Batch, seed: int, root: Path, seen: dict[int, float] | None) -> None:
        self._batch = batch
        self._seed = seed
        self._root = root
        (root / "used").mkdir(parents=True)
        self._steps = random_program(seed)
        self._kills = seen is not None
        self._seen = {} if seen is None else seen
        self._over = threading.Event()
        self.tally = Tally()

    def __call__(self) -> Tally:
        tasks = [make(self._batch, str(self._root), step) for step in self._steps]
        helpers = [threading.Thread(target=self._cancel, args=(tasks,))]
        if self._kills:
            helpers.append(threading.Thread(target=self._kill))
        half = len(tasks) // 2
        for helper in helpers:
            helper.start()
        try:
            self._batch.compile(tasks[:half]).start()
            for task in tasks[half:]:
                task.start()
            deadline = time.monotonic() + PATIENCE
            outcomes = Counter(
                self._outcome(task, step, deadline)
                for task, step in zip(tasks, self._steps, strict=True)
            )
        finally:
            self._over.set()
            for helper in helpers:
                helper.join()
        self.tally.counts.update(outcomes)
        self.tally.counts["runs"] += 1
        self._check()
        return self.tally

    def _outcome(self, task: Task, step: Step, deadline: float) -> str:
        try:
            if task.get(timeout=max(0.1, deadline - time.monotonic())) != step.number:
                self._wrong("another value")
            return "done"
        except TaskCancelled:
            if step.cancelled is None:
                self._wrong(f"step {step.number} was cancelled")
            return "cancelled"
        except WorkerLost:
            return "lost"
        except Exception as error:
            gangs = self._batch.client.run_on_scheduler(_remaining)
            self._wrong(f"step {step}: {error!r}; {task.state}; {gangs}")
            return "other"

    def _wrong(self, what: str) -> None:
        self.tally.violations.append(f"seed {self._seed}: {what}")

    def _cancel(self, tasks: Sequence[Task]) -> None:
        plan = [
            (step.cancelled, task)
            for step, task in zip(self._steps, tasks, strict=True)
            if step.cancelled is not None
        ]
        began = time.monotonic()
        for when, task in sorted(plan, key=lambda entry: entry[0]):
            if self._over.wait(max(0.0, began + when - time.monotonic())):
                return
            task.cancel()

    def _kill(self) -> None:
        rng = random.Random(f"kills {self._seed}")
        for _ in range(rng.choice([1, 2, 3])):
            if self._over.wait(rng.uniform(0.05, 1.0)):
                return
            # Dask's nanny gives up if its worker dies while the nanny still starts it.
            now = time.monotonic()
            pids = [pid for pid, when in self.look().items() if now > when + _START_SECONDS]
            if pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                self.tally.counts["killed"] += 1

    def look(self) -> dict[int, float]:
        """Return when each present worker was seen for the first time."""
        now = time.monotonic()
        pids = self._batch.client.run_on_scheduler(_worker_pids)
        self._seen.update({pid: now for pid in pids if pid not in self._seen})
        return {pid: self._seen[pid] for pid in pids}

    def _check(self) -> None:
        book = SlotBook(str(self._root))
        if book.peak() > SLOTS:
            lines = (self._root / "peaks").read_text()
            self._wrong(f"{book.peak()} slots were in use at once: {lines.split(chr(10))}")
        # A gang of all slots must be able to run: nothing may hold any of them.
        whole = self._batch.options(cores=SLOTS, isolation="thread").function(len, "abc")
        try:
            whole.run(timeout=PATIENCE)
            if whole.get(timeout=PATIENCE) != 3:
                self._wrong("the next task returns something else")
            self._batch.fence(timeout=PATIENCE)
        except Exception as error:
            gangs = self._batch.client.run_on_scheduler(_remaining)
            self._wrong(f"the next gang: {error!r}; {gangs}")
            return
        end = time.monotonic() + 10
        while left := self._batch.client.run_on_scheduler(_remaining):
            if time.monotonic() > end:
                self._wrong(f"remains: {left}")
                break
            time.sleep(0.05)
        if book.in_use():
            self._wrong(f"still in use: {book.in_use()}")


def run_seeds(seeds: Sequence[int], shape: str, root: Path, kills: bool = True) -> Tally:
    """Run the programs of some seeds on one cluster, one after another."""
    tally = Tally()
    seen: dict[int, float] | None = {} if kills else None
    with cluster_of(shape) as batch:
        for seed in seeds:
            run = Run(batch, seed, root / f"{shape}-{seed}", seen)
            if kills:
                run.look()
            done = run()
            tally.counts.update(done.counts)
            tally.violations += done.violations
            print(seed, done, *done.violations, file=sys.stderr, flush=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-9", help="a range such as 0-9")
    parser.add_argument("--shape", default="4x1", help="4x1 or 2x2")
    parser.add_argument("--gentle", action="store_true", help="kill no worker")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    with tempfile.TemporaryDirectory() as root:
        tally = run_seeds(seeds, options.shape, Path(root), not options.gentle)
    print(tally, *tally.violations, sep="\n")
    return bool(tally.violations)


if __name__ == "__main__":
    sys.exit(main())

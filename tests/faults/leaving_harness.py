"""Has workers join, leave, die and freeze at random while a program uses all that they have.

``PYTHONPATH=tests python -m faults.leaving_harness --runs 50`` does so many times. With ``--kills``
some workers also die or freeze; with ``--adapt 300`` the cluster adapts itself for five minutes to
bursts of work. The number of a run determines what happens, and when. Without a
death nothing may be lost, and nothing may run twice.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
from distributed import LocalCluster
from support.waiting import wait_until

from daskbatch import Batch, ServiceLost, WorkerLost
from daskbatch.batch.task import Task
from daskbatch.shared.ddict import DDict
from daskbatch.shared.queue import Queue

#: The most workers, and how many tasks of each kind there are.
MOST_WORKERS, TASKS = 4, 40

#: Keys of each dictionary, and items of each queue.
KEYS, ITEMS = 40, 20

#: A value of this size stays on its worker. Bytes.
LARGE = 200_000

#: After this time a run counts as hanging. Seconds.
LONGEST = 120.0


@dataclass
class Tally:
    """What has happened in some runs, and what should not have."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    #: The longest call of a dictionary with two replicas. Seconds.
    longest_call: float = 0.0


# -- what tasks do ----------------------------------------------------------------------


def append(path: str, seconds: float) -> int:
    """Read and write a file: a second run would be seen."""
    with open(path, "a") as file:
        file.write("begin ")
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write("end ")
    return os.getpid()


def large(number: int) -> bytes:
    return number.to_bytes(4, "little") * (LARGE // 4)


def count(counts: DDict, seconds: float) -> int:
    time.sleep(seconds)
    return int(counts.fetch_add("count"))


# -- one run ----------------------------------------------------------------------------


class Run:
    """One program on one cluster, and what happens to the workers meanwhile."""

    def __init__(
        self, number: int, kills: bool, root: Path, tally: Tally, adapt: float = 0.0
    ) -> None:
        self.number, self.kills, self.root, self.tally = number, kills, root, tally
        #: For how many seconds the cluster adapts itself; 0 if it does not.
        self.adapt = adapt
        self.random = random.Random(number)
        self.over = threading.Event()
        #: Whether a worker has died by our hand.
        self.killed = False

    def complain(self, what: str) -> None:
        self.tally.violations.append(f"run {self.number}: {what}")

    def __call__(self) -> None:
        with (
            LocalCluster(
                n_workers=3, threads_per_worker=1, dashboard_address=":0", memory_limit=0
            ) as self.cluster,
            Batch(self.cluster) as self.batch,
        ):
            wait_until(lambda: self.batch.num_workers == 3, "no workers", LONGEST)
            self.once, self.twice = self.batch.ddict(shards=4), self.batch.ddict(replicas=2)
            self.queues = [self.batch.queue(), self.batch.queue(replicas=2)]
            for key in range(KEYS):
                self.once[key] = self.twice[key] = key
            for queue in self.queues:
                for item in range(ITEMS):
                    queue.put(item)
            self.twice["count"] = 0
            tasks = self.start()
            caller = threading.Thread(target=self.call, daemon=True)
            caller.start()
            if self.adapt:
                self.work_in_bursts()
            else:
                self.disturb()
            deadline = time.monotonic() + LONGEST
            for some in tasks.values():
                for task in some:
                    task.wait(max(1.0, deadline - time.monotonic()))
            self.over.set()
            caller.join(LONGEST)
            self.check(tasks)

    def start(self) -> dict[str, list[Task]]:
        """Start a program: tasks that must not run twice, free ones, and users of a dictionary."""
        batch, rng = self.batch, self.random
        tasks: dict[str, list[Task]] = {"append": [], "large": [], "count": []}
        for number in range(TASKS):
            path = str(self.root / f"ä file {self.number}-{number}")
            Path(path).touch()
            access = {"reads": batch.read(path), "writes": batch.write(path)}
            tasks["append"].append(
                batch.function(append, path, rng.choice([0.01, 0.1, 0.6]), **access)
            )
            tasks["large"].append(batch.function(large, number))
            if not self.kills:
                # A second run of such a task is allowed, and would count twice.
                tasks["count"].append(
                    batch.options(writes=batch.write(self.twice, "count"), reads=None).function(
                        count, self.twice, rng.choice([0.01, 0.1])
                    )
                )
        batch.compile([*tasks["append"], *tasks["large"]]).start()
        for task in tasks["count"]:
            task.start()
        return tasks

    def call(self) -> None:
        """Use the dictionary with two replicas all the time."""
        number = 0
        while not self.over.is_set():
            began = time.monotonic()
            try:
                self.twice["own"] = number
                if self.twice["own"] != number:
                    self.complain(f"the dictionary has forgotten write {number}")
            except ServiceLost as error:
                if not self.killed:
                    self.complain(f"the dictionary: {error}")
                return
            self.tally.longest_call = max(self.tally.longest_call, time.monotonic() - began)
            number += 1
            time.sleep(0.01)

    # -- what happens to workers ----------------------------------------------------------

    def disturb(self) -> None:
        """Scale, retire, signal, kill and freeze workers, a few times."""
        actions = [self.scale, self.scale, self.retire, self.terminate]
        if self.kills:
            actions += [self.kill, self.freeze]
        for _ in range(6):
            self.over.wait(self.random.uniform(0.0, 0.8))
            action = self.random.choice(actions)
            with contextlib.suppress(IndexError):  # there is no worker
                action()
                self.tally.counts[action.__name__] += 1
        self.cluster.scale(3)
        wait_until(lambda: self.batch.num_workers >= 1, "no worker joins", LONGEST)

    def work_in_bursts(self) -> None:
        """Have the cluster grow and shrink, with bursts of tasks that must not run twice."""
        self.cluster.adapt(minimum=1, maximum=MOST_WORKERS, interval="200ms", wait_count=3)
        deadline = time.monotonic() + self.adapt
        burst = 0
        while time.monotonic() < deadline:
            burst += 1
            root = self.root / f"burst {burst}"
            root.mkdir()
            tasks = []
            for number in range(self.random.randint(1, 60)):
                path = str(root / str(number))
                Path(path).touch()
                access = {"reads": self.batch.read(path), "writes": self.batch.write(path)}
                seconds = self.random.choice([0.01, 0.1, 0.5])
                tasks.append(self.batch.function(append, path, seconds, **access))
            self.batch.compile(tasks).run(LONGEST)
            for number, task in enumerate(tasks):
                self.check_append(task, (root / str(number)).read_text())
            self.tally.counts["burst"] += 1
            self.tally.counts[f"{self.batch.num_workers} workers"] += 1
            time.sleep(self.random.uniform(0.0, 3.0))
        self.cluster.adapt(minimum=2, maximum=2)

    def addresses(self) -> list[str]:
        return sorted(self.batch.client.scheduler_info(n_workers=-1)["workers"])

    def scale(self) -> None:
        least = 1 if not self.kills else 2
        self.cluster.scale(self.random.randint(least, MOST_WORKERS))

    def retire(self) -> None:
        self.batch.client.retire_workers([self.random.choice(self.addresses())])

    def pid(self) -> int:
        address = self.random.choice(self.addresses())
        return int(self.batch.client.run(os.getpid, workers=[address])[address])

    def terminate(self) -> None:
        if len(self.addresses()) > 1:
            with contextlib.suppress(ProcessLookupError, KeyError, OSError):
                os.kill(self.pid(), signal.SIGTERM)

    def kill(self) -> None:
        self.killed = True
        with contextlib.suppress(ProcessLookupError, KeyError, OSError):
            os.kill(self.pid(), signal.SIGKILL)

    def freeze(self) -> None:
        with contextlib.suppress(ProcessLookupError, KeyError, OSError):
            pid = self.pid()
            os.kill(pid, signal.SIGSTOP)
            threading.Timer(1.0, _thaw, [pid]).start()

    # -- what holds afterwards --------------------------------------------------------------

    def check(self, tasks: dict[str, list[Task]]) -> None:
        for number, task in enumerate(tasks["append"]):
            text = (self.root / f"ä file {self.number}-{number}").read_text()
            self.check_append(task, text)
        for number, task in enumerate(tasks["large"]):
            try:
                if task.get(LONGEST) != large(number):
                    self.complain(f"{task.name} has another value")
            except Exception as error:
                self.complain(f"{task.name}: {error!r}")
        if tasks["count"]:
            found = sorted(task.get(LONGEST) for task in tasks["count"])
            if found != list(range(TASKS)) or self.twice["count"] != TASKS:
                self.complain(f"counted {found}, and {self.twice['count']}")
        for d, copies in ((self.once, 1), (self.twice, 2)):
            self.check_dictionary(d, copies)
        for queue, copies in zip(self.queues, (1, 2), strict=True):
            self.check_queue(queue, copies)

    def check_append(self, task: Task, text: str) -> None:
        try:
            task.get(LONGEST)
            right = text == "begin end "
        except WorkerLost:
            self.tally.counts["WorkerLost"] += 1
            # A kill may also come after the task has begun, and before its first line.
            right = self.killed and text in ("", "begin ", "begin end ")
        except Exception as error:
            self.complain(f"{task.name}: {error!r}")
            return
        if not right:
            self.complain(f"{task.name} is {task.state}, and has written {text!r}")

    def check_dictionary(self, d: DDict, copies: int) -> None:
        for key in range(KEYS):
            try:
                if d[key] != key:
                    self.complain(f"{d} has {d[key]!r} for {key}")
            except ServiceLost as error:
                self.tally.counts["key lost"] += 1
                if not self.killed:
                    self.complain(f"{d}, {copies} replicas: {error}")
                    return
            except Exception as error:
                self.complain(f"{d}: {error!r}")

    def check_queue(self, queue: Queue, copies: int) -> None:
        found: list[Any] = []
        try:
            for _ in range(ITEMS):
                found.append(queue.get(timeout=LONGEST))
            if found != list(range(ITEMS)) or not queue.empty():
                self.complain(f"{queue} had {found}, and {queue.qsize()} more")
        except ServiceLost as error:
            self.tally.counts["queue lost"] += 1
            if not self.killed:
                self.complain(f"{queue}, {copies} replicas: {error}")
        except Exception as error:
            self.complain(f"{queue}: {found}, then {error!r}")


def _thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def run_many(numbers: Sequence[int], kills: bool, root: Path, adapt: float = 0.0) -> Tally:
    tally = Tally()
    for number in numbers:
        with dask.config.set({"distributed.comm.timeouts.connect": "10s"}):
            try:
                Run(number, kills, root, tally, adapt)()
            except Exception as error:
                tally.violations.append(f"run {number}: {error!r}")
        tally.counts["runs"] += 1
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kills", action="store_true")
    parser.add_argument("--adapt", type=float, default=0.0)
    given = parser.parse_args()
    violations = 0
    for number in range(given.first, given.first + given.runs):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="leaving ") as root:
            tally = run_many([number], given.kills, Path(root), given.adapt)
        print(
            f"run {number}: {time.monotonic() - began:.1f} s, longest call "
            f"{tally.longest_call:.2f} s, {dict(tally.counts)}",
            *tally.violations,
            sep="\n  ",
            flush=True,
        )
        violations += len(tally.violations)
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main())

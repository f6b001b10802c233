"""Has workers join, leave, die and freeze at random while a program uses all that they have.

``PYTHONPATH=tests python -m faults.leaving_harness --runs 50`` does so many times. With ``--kills``
some workers also die or freeze; with ``--adapt 300`` the cluster adapts itself for five minutes to
bursts of work. With ``--links`` the workers are on hosts of network namespaces, whose links are cut
and mended (`faults.links`); this needs root. With ``--clients`` the host of another client is cut
off as well. The number of a run determines what happens, and when.
Without a death nothing may be lost, and nothing may run twice.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
from distributed import LocalCluster
from support.cluster_info import workers_of
from support.scaling import scale
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

#: If no task ends for this time, and nothing happens, that is a stall. A broken link may be one of
#: the causes until it is mended. Seconds.
STALL = 20.0


@dataclass
class Tally:
    """What has happened in some runs, and what should not have."""

    counts: Counter[str] = field(default_factory=Counter)
    #: What has happened, with the time in seconds.
    events: list[str] = field(default_factory=list)
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


def compare(one: bytes, other: bytes) -> tuple[int, int]:
    """Return the numbers of two large values, which may be on other workers."""
    for value in (one, other):
        assert len(value) == LARGE
        assert value == value[:4] * (LARGE // 4)
    return int.from_bytes(one[:4], "little"), int.from_bytes(other[:4], "little")


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
        self.began = time.monotonic()
        #: Whether nothing happens to workers any longer.
        self.is_quiet = False

    def complain(self, what: str) -> None:
        self.note(f"VIOLATION {what}")
        self.tally.violations.append(f"run {self.number}: {what}")

    def note(self, what: str) -> None:
        self.tally.events.append(f"{time.monotonic() - self.began:7.2f} {what}")

    def is_undisturbed(self) -> bool:
        """Return whether all workers and links are as they are to be."""
        return self.is_quiet

    @contextlib.contextmanager
    def open_batch(self) -> Iterator[Batch]:
        """Yield a Batch on a new cluster of three workers."""
        with (
            # Without a limit of the memory, Dask takes no worker away that has values elsewhere.
            LocalCluster(
                n_workers=3, threads_per_worker=1, dashboard_address=":0", memory_limit="2GB"
            ) as self.cluster,
            Batch(self.cluster) as batch,
        ):
            yield batch

    def __call__(self) -> None:
        with self.open_batch() as self.batch:
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
            threading.Thread(target=self.watch, args=[tasks], daemon=True).start()
            if self.adapt:
                self.work_in_bursts()
            else:
                self.disturb()
            self.is_quiet = True
            self.note("nothing happens any longer")
            deadline = time.monotonic() + LONGEST
            faulthandler.dump_traceback_later(LONGEST / 2)
            for some in tasks.values():
                for task in some:
                    task.wait(max(1.0, deadline - time.monotonic()))
            self.note("all tasks are over")
            self.over.set()
            caller.join(LONGEST)
            if caller.is_alive():
                self.complain("a call of the dictionary does not end")
            self.check(tasks)
            faulthandler.cancel_dump_traceback_later()
            self.note("all is looked at")
        self.note("the cluster is closed")

    def start(self) -> dict[str, list[Task]]:
        """Start a program: tasks that must not run twice, free ones, and users of a dictionary."""
        batch, rng = self.batch, self.random
        tasks: dict[str, list[Task]] = {"append": [], "large": [], "compare": [], "count": []}
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
            others = tasks["large"][number], rng.choice(tasks["large"])
            tasks["compare"].append(batch.function(compare, *others))
        batch.compile([*tasks["append"], *tasks["large"], *tasks["compare"]]).start()
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
            took = time.monotonic() - began
            if took > 1.0:
                self.note(f"a call of the dictionary took {took:.2f} s")
            self.tally.longest_call = max(self.tally.longest_call, took)
            number += 1
            time.sleep(0.01)

    def watch(self, tasks: dict[str, list[Task]]) -> None:
        """Notice a stall: workers are there, nothing happens to them, and no task ends."""
        every = [task for some in tasks.values() for task in some]
        over, since = 0, time.monotonic()
        while not self.over.wait(1.0):
            now = sum(task.state not in ("waiting", "running") for task in every)
            if now != over or not self.is_undisturbed() or not self.batch.num_workers:
                over, since = now, time.monotonic()
            elif time.monotonic() - since > STALL:
                stuck = [task for task in every if task.state in ("waiting", "running")]
                why = "; ".join(task.why() for task in stuck[:2])
                self.complain(f"no task has ended for {STALL} s, {len(stuck)} are not over: {why}")
                return

    # -- what happens to workers ----------------------------------------------------------

    def disturb(self) -> None:
        """Scale, retire, signal, kill and freeze workers, a few times."""
        actions = self.actions()
        for _ in range(6):
            self.over.wait(self.random.uniform(0.0, 0.8))
            action = self.random.choice(actions)
            self.note(action.__name__)
            with contextlib.suppress(IndexError):  # there is no worker
                action()
                self.tally.counts[action.__name__] += 1
        self.set_workers(3)
        wait_until(lambda: self.batch.num_workers >= 1, "no worker joins", LONGEST)

    def work_in_bursts(self) -> None:
        """Have the cluster grow and shrink, with bursts of tasks that must not run twice."""
        self.cluster.adapt(minimum=1, maximum=MOST_WORKERS, interval="200ms", wait_count=3)
        deadline = time.monotonic() + self.adapt
        burst, numbers = 0, Counter[int]()
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
            numbers[self.batch.num_workers] += 1
            time.sleep(self.random.uniform(0.0, 3.0))
            numbers[self.batch.num_workers] += 1
        self.cluster.adapt(minimum=2, maximum=2)
        self.tally.counts.update({f"{n} workers": count for n, count in numbers.items()})
        if len(numbers) == 1:
            self.complain("the cluster has neither grown nor shrunk")

    def actions(self) -> list[Callable[[], None]]:
        """Return what may happen."""
        found = [self.scale, self.scale, self.retire, self.terminate]
        return [*found, self.kill, self.freeze] if self.kills else found

    def set_workers(self, count: int) -> None:
        scale(self.cluster, count)

    def addresses(self) -> list[str]:
        return sorted(workers_of(self.batch.client))

    def scale(self) -> None:
        least = 1 if not self.kills else 2
        self.set_workers(self.random.randint(least, MOST_WORKERS))

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
        for number, task in enumerate(tasks["compare"]):
            try:
                if task.get(LONGEST)[0] != number:
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
        execute(Run(number, kills, root, tally, adapt))
    return tally


def execute(run: Run) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "10s"}):
        try:
            run()
        except Exception as error:
            run.complain(f"{error!r}")
    run.tally.counts["runs"] += 1


def report(number: int, tally: Tally, seconds: float) -> None:
    """Print what has happened in a run."""
    print(
        f"run {number}: {seconds:.1f} s, longest call {tally.longest_call:.2f} s, "
        f"{dict(tally.counts)}",
        *(tally.events if tally.violations or "LEAVING_EVENTS" in os.environ else ()),
        *tally.violations,
        sep="\n  ",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kills", action="store_true")
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--clients", action="store_true")
    parser.add_argument("--adapt", type=float, default=0.0)
    given = parser.parse_args()
    numbers = range(given.first, given.first + given.runs)
    if given.links:
        from faults.links import run_on_hosts

        why, violations = run_on_hosts(numbers, given.kills, given.clients)
        if not why:
            return int(violations > 0)
        print(f"links cannot be cut here, so this runs without: {why}", flush=True)
    violations = 0
    for number in numbers:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="leaving ") as root:
            tally = run_many([number], given.kills, Path(root), given.adapt)
        report(number, tally, time.monotonic() - began)
        violations += len(tally.violations)
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main())

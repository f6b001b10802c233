"""Cuts links between hosts at random while a program runs: `leaving_harness` with ``--links``.

The scheduler, each worker and the program are on hosts of their own, which are network namespaces.
The link of a worker is cut, the way between two workers (both alive, and the scheduler reaches
both), or the link of the program. A link that is mended in time may do no harm. A worker that was
cut off for longer counts as dead. Two workers that do not reach each other do no harm at all.

With ``--clients`` another client (`faults.cut_client`) is on one more host, and is cut off: for a
moment, which does no harm, or for longer, and then all of its calls end with an error in bounded
time, and it leaves nothing on the cluster.

``python -m faults.links TOKEN NUMBER KILLS CLIENTS`` does one run, on the program's host.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dask
from distributed import Scheduler
from faults.leaving_harness import MOST_WORKERS, Run, Tally, execute, report
from support.host_cluster import host_cluster
from support.hosts import Hosts
from support.waiting import wait_until

from daskbatch import Batch

#: The host of the program: after those of the scheduler and of the workers.
PROGRAM = MOST_WORKERS + 1

#: The host of the other client, and the number of all hosts.
CLIENT, HOSTS = PROGRAM + 1, PROGRAM + 2

#: How long a link may be broken: `daskbatch.link-timeout`, and Dask's limit (11 s is the least
#: that Dask accepts). Seconds.
LIMIT, DASK_LIMIT = 6, 12

#: How long a link is broken that is mended in time, and another one. Seconds.
SHORT, LONG = (0.2, 2.5), (7.0, 15.0)

#: After this time the other client counts as hanging, and what it has left on the cluster as left
#: for ever. Seconds.
LONGEST_END = 60.0

SETTINGS = {
    "DASK_DASKBATCH__LINK_TIMEOUT": f"{LIMIT}s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{DASK_LIMIT}s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
}


class LinkRun(Run):
    """A run on hosts whose links are cut.

    Parameters
    ----------
    hosts : Hosts
        The hosts; this process is on the last one.
    number, kills, root, tally
        As of a `Run`.
    clients : bool
        Whether another client is cut off.
    """

    def __init__(
        self, hosts: Hosts, number: int, kills: bool, root: Path, tally: Tally, clients: bool
    ) -> None:
        super().__init__(number, kills, root, tally)
        self.hosts = hosts
        self.clients = clients
        #: What is cut at the moment, and the timers that mend it.
        self.broken: dict[object, threading.Timer] = {}

    @contextlib.contextmanager
    def open_batch(self) -> Iterator[Batch]:
        with host_cluster(self.hosts, MOST_WORKERS, self.root, SETTINGS) as self.on_hosts:
            for host in (1, 2, 3):
                self.on_hosts.start_worker(host)
            wait_until(self.on_hosts.answers, "no scheduler", 60)
            try:
                with Batch(self.on_hosts.scheduler_address) as batch:
                    yield batch
            finally:
                for timer in list(self.broken.values()):
                    timer.join()

    def set_workers(self, count: int) -> None:
        self.on_hosts.scale(count, self.batch.client)

    def pid(self) -> int:
        return self.on_hosts.pid_of(self.random.choice(self.addresses()))

    # -- another client ----------------------------------------------------------------------

    def disturb(self) -> None:
        if not self.clients:
            super().disturb()
            return
        program = subprocess.Popen(
            self.hosts.command(
                *(CLIENT, sys.executable, "-m", "faults.cut_client"),
                self.on_hosts.scheduler_address,
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **SETTINGS, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            assert program.stdout is not None
            objects = json.loads(program.stdout.readline())
            seconds = self.random.uniform(*self.random.choice([SHORT, LONG, LONG]))
            self.cut(
                *(CLIENT, seconds),
                lambda: self.hosts.cut(CLIENT),
                lambda: self.hosts.mend(CLIENT),
            )
            super().disturb()
            if CLIENT in self.broken:
                self.broken[CLIENT].join()
            self.end_client(program, objects, seconds > LIMIT / 2)
        finally:
            program.kill()
            program.communicate()

    def end_client(
        self, program: subprocess.Popen[str], objects: list[str], may_fail: bool
    ) -> None:
        """Check how the calls of the other client end, and that nothing of it stays."""
        try:
            said, errors = program.communicate("mended\n", timeout=LONGEST_END)
        except subprocess.TimeoutExpired:
            self.complain("the other client hangs")
            return
        if program.returncode:
            self.complain(f"the other client has failed: {errors}")
            return
        for name, outcome in map(json.loads, said.splitlines()):
            self.tally.counts[f"client {outcome.partition(':')[0]}"] += 1
            if outcome.startswith("failed") and (may_fail or self.killed):
                self.note(f"other client, {name}: {outcome}")
            elif outcome != "right":
                self.complain(f"other client, {name}: {outcome}")
        try:
            wait_until(lambda: not self.remains_of(objects), "it stays", LONGEST_END)
        except AssertionError:
            self.complain(f"of the other client this stays: {self.remains_of(objects)}")

    def remains_of(self, objects: list[str]) -> list[str]:
        """Return what the scheduler has of the other client: itself, tasks, shared objects."""

        def find(dask_scheduler: Scheduler) -> list[str]:
            words = [*objects, "task_of_cut_client"]
            keys = [
                f"{key}, {task.state}, wanted by {[*(task.who_wants or task.waiters or ())]}"
                for key, task in dask_scheduler.tasks.items()
            ]
            clients = [each for each in dask_scheduler.clients if each.startswith("Client-")]
            return [key for key in keys if any(word in key for word in words)] + clients[1:]

        return list(self.batch.client.run_on_scheduler(find))

    # -- what happens to links ---------------------------------------------------------------

    def actions(self) -> list[Callable[[], None]]:
        links = [self.cut_worker, self.cut_from_scheduler, self.cut_pair, self.cut_program]
        return [*super().actions(), *links, self.cut_pair]

    def is_undisturbed(self) -> bool:
        return super().is_undisturbed() and not self.broken

    def seconds(self, may_be_long: bool) -> float:
        """Return for how long a link is cut."""
        is_long = may_be_long and self.random.random() < 0.3
        return self.random.uniform(*(LONG if is_long else SHORT))

    def cut_worker(self) -> None:
        """Cut a worker off from all others."""
        host = self.random.randint(1, MOST_WORKERS)
        seconds = self.seconds(self.kills)
        self.killed = self.killed or seconds > LIMIT / 2
        self.cut(host, seconds, lambda: self.hosts.cut(host), lambda: self.hosts.mend(host))

    def cut_from_scheduler(self) -> None:
        """Cut the way between a worker and the scheduler."""
        host = self.random.randint(1, MOST_WORKERS)
        seconds = self.seconds(self.kills)
        self.killed = self.killed or seconds > LIMIT / 2
        self._cut_between(0, host, seconds)

    def cut_pair(self) -> None:
        """Cut the way between two workers."""
        one, other = self.random.sample(range(1, MOST_WORKERS + 1), 2)
        self._cut_between(min(one, other), max(one, other), self.seconds(True))

    def cut_program(self) -> None:
        """Cut the program off, and wait until it is no longer."""
        seconds = self.seconds(False)
        self.cut(
            PROGRAM, seconds, lambda: self.hosts.cut(PROGRAM), lambda: self.hosts.mend(PROGRAM)
        )
        if PROGRAM in self.broken:
            self.broken[PROGRAM].join()

    def _cut_between(self, one: int, other: int, seconds: float) -> None:
        self.cut(
            (one, other),
            seconds,
            lambda: self.hosts.cut_between(one, other),
            lambda: self.hosts.mend_between(one, other),
        )

    def cut(
        self, what: object, seconds: float, cut: Callable[[], None], mend: Callable[[], None]
    ) -> None:
        if what in self.broken:
            return

        def end() -> None:
            mend()
            del self.broken[what]
            self.note(f"mended {what}")

        self.note(f"cut {what} for {seconds:.2f} s")
        cut()
        self.broken[what] = timer = threading.Timer(seconds, end)
        timer.start()


def run_on_hosts(numbers: Sequence[int], kills: bool, clients: bool = False) -> tuple[str, int]:
    """Do runs, each on new hosts; return why that is not possible, and how many have failed."""
    failed = 0
    for number in numbers:
        hosts = Hosts(HOSTS)
        try:
            try:
                hosts.make()
                hosts.cut_between(1, 2)
                hosts.mend_between(1, 2)
            except (OSError, subprocess.SubprocessError) as error:
                return str(getattr(error, "stderr", None) or error).strip(), failed
            program = (sys.executable, "-m", "faults.links", hosts.token, str(number))
            command = hosts.command(PROGRAM, *program, str(int(kills)), str(int(clients)))
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            failed += subprocess.run(command, env=environment, check=False).returncode != 0
        finally:
            hosts.remove()
    return "", failed


def main() -> int:
    token, number, kills, clients = sys.argv[1:5]
    tally = Tally()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="leaving ") as root,
        dask.config.set(
            {"daskbatch.link-timeout": LIMIT, "distributed.comm.timeouts.tcp": DASK_LIMIT}
        ),
    ):
        hosts = Hosts(HOSTS, token)
        flags = bool(int(kills)), bool(int(clients))
        execute(LinkRun(hosts, int(number), flags[0], Path(root), tally, flags[1]))
        if tally.violations or "LEAVING_EVENTS" in os.environ:
            kept = Path(tempfile.gettempdir()) / f"leaving-{number}-{os.getpid()}.log"
            kept.write_bytes((Path(root) / "cluster.log").read_bytes())
            print(f"the output of the cluster is in {kept}")
    report(int(number), tally, time.monotonic() - began)
    return int(bool(tally.violations))


if __name__ == "__main__":
    sys.exit(main())

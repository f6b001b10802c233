"""A Dask cluster on hosts of network namespaces, whose workers join and leave while a test runs.

Each worker has process ids and shared memory of its own, as on another machine: so values travel
between workers on the network. The methods are for one thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from distributed import Client
from support.cluster_info import workers_of
from support.hosts import Hosts

_PORT = 8786

#: Where all hosts of `Hosts` have their own memory files, and their own numbers of processes.
_APART = 'mount -t tmpfs none /dev/shm; "$@"; exit'


class HostCluster:
    """A scheduler on the first host, and at most one worker on each of the next ones.

    Parameters
    ----------
    hosts : Hosts
        The hosts.
    workers : int
        On how many hosts there may be workers: those after the first one.
    directory : Path
        Where the files and the output of the cluster are.
    settings : mapping
        Added to the environment of scheduler and workers.
    """

    def __init__(
        self, hosts: Hosts, workers: int, directory: Path, settings: Mapping[str, str]
    ) -> None:
        self.hosts = hosts
        self.most = workers
        self.scheduler_address = f"tcp://{hosts.addresses[0]}:{_PORT}"
        self._directory = directory
        self._environment = {**os.environ, **settings}
        self._log = (directory / "cluster.log").open("ab")
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        host = hosts.addresses[0]
        self._scheduler = self._start(
            0,
            *("-m", "distributed.cli.dask_scheduler", "--no-dashboard"),
            *("--host", host, "--port", str(_PORT)),
        )

    def _start(self, host: int, *arguments: str) -> subprocess.Popen[bytes]:
        apart = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc")
        return subprocess.Popen(
            self.hosts.command(host, *apart, "sh", "-c", _APART, "sh", sys.executable, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=self._environment,
            cwd="/",
        )

    def answers(self) -> bool:
        """Return whether the scheduler listens, to a process on one of the hosts."""
        with contextlib.suppress(OSError):
            socket.create_connection((self.hosts.addresses[0], _PORT), 1.0).close()
            return True
        return False

    # -- workers --------------------------------------------------------------------------

    def start_worker(self, host: int) -> None:
        """Start a worker with one slot, and its nanny."""
        self._workers[host] = self._start(
            host,
            *("-m", "distributed.cli.dask_worker", self.scheduler_address, "--no-dashboard"),
            *("--host", self.hosts.addresses[host], "--nthreads", "1", "--memory-limit", "0"),
            *("--local-directory", str(self._directory / f"host {host}")),
        )

    def running(self) -> list[int]:
        """Return the hosts on which a nanny runs."""
        return [host for host, process in self._workers.items() if process.poll() is None]

    def scale(self, count: int, client: Client) -> None:
        """Start workers, or have some retire, so that there are `count`."""
        running = self.running()
        free = [host for host in range(1, self.most + 1) if host not in running]
        for host in free[: max(0, count - len(running))]:
            self.start_worker(host)
        leaving = {self.hosts.addresses[host] for host in running[count:]}
        info = workers_of(client)
        if there := [each for each in info if self.host_address(each) in leaving]:
            client.retire_workers(there)

    @staticmethod
    def host_address(worker: str) -> str:
        """Return the address of the host of a worker."""
        return worker.rpartition("/")[2].partition(":")[0]

    def host_of(self, worker: str) -> int:
        """Return on which host a worker is."""
        return self.hosts.addresses.index(self.host_address(worker))

    def pid_of(self, worker: str) -> int:
        """Return the process of a worker, as the programs of all hosts are numbered here.

        Raises
        ------
        ProcessLookupError
            It does not run.
        """
        with contextlib.suppress(psutil.Error, KeyError):
            root = psutil.Process(self._workers[self.host_of(worker)].pid)
            for each in root.children(recursive=True):
                words = each.cmdline()
                if "--multiprocessing-fork" in words and "spawn_main" in " ".join(words):
                    return each.pid
        raise ProcessLookupError(worker)

    def close(self) -> None:
        """Kill all processes of the cluster; the system kills all in their numbering as well."""
        processes = [*self._workers.values(), self._scheduler]
        for each in processes:
            each.kill()
        for each in processes:
            each.wait(60)
        self._log.close()


@contextlib.contextmanager
def host_cluster(
    hosts: Hosts, workers: int, directory: Path, settings: Mapping[str, str]
) -> Iterator[HostCluster]:
    """Yield a cluster without workers; see `HostCluster`."""
    cluster = HostCluster(hosts, workers, directory, settings)
    try:
        yield cluster
    finally:
        cluster.close()

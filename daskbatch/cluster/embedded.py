"""A cluster on this machine that lives as long as its creator wants it.

Does not know Batches. One process holds the scheduler and the nannies (the *host*), each
worker is a process of one thread. All are started by executing Python anew, so that no
user script is imported a second time and none needs a ``__main__`` guard; yet they see
the creator's directory, environment and `sys.path`.

The host lives on a pipe from its creator: when that closes, because the creator closed it
or died of whatever, host and workers end. They have a session of their own, so that
Ctrl-C at the terminal reaches the creator alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import IO, Any

import dask
import dask.config
import psutil

from daskbatch.dispatch.lower import TOKEN
from daskbatch.errors import ServiceLost
from daskbatch.worker.execution.executable import ADDED_VARIABLE

_START = "import sys, json; s = json.loads(sys.stdin.readline()); sys.path[:] = s['path']; \
from daskbatch.cluster.embedded import host; host(s)"

_START_SECONDS = 60.0
_END_SECONDS = 10.0

#: A directory for sockets has a name of so many bytes at most. One of a socket may have 107, on
#: macOS 103, of which `multiprocessing` needs 32.
_SHORT = 70

#: How often is looked whether a nanny has given up.
_KEEP_UP_SECONDS = 0.5

#: As Dask's nannies do: one thread for each linear algebra call, since every core has a
#: worker. The creator's own settings win.
_WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

#: What differs from Dask's defaults in the host and its workers.
_CONFIG = {
    # Otherwise a task could not use multiprocessing.
    "distributed.worker.daemon": False,
    # Python is started and Dask imported once for all workers.
    "distributed.worker.multiprocessing-method": "forkserver",
    "distributed.nanny.pre-spawn-environ": {},
    # Nobody should steal these, even before one has been seen to run.
    f"distributed.scheduler.default-task-durations.{TOKEN}": "1us",
    # A slot that has nothing to do should not wait a second for work to steal.
    "distributed.scheduler.work-stealing-interval": "100ms",
}


class EmbeddedCluster:
    """A scheduler and workers on this machine.

    Parameters
    ----------
    num_workers : int
        How many worker processes, of one thread each.
    directory : str
        The directory that they work in.
    environment : mapping, optional
        What is added to their environment.

    Raises
    ------
    ServiceLost
        They did not start.
    """

    def __init__(
        self, num_workers: int, directory: str, environment: Mapping[str, str] | None = None
    ) -> None:
        wanted = {**os.environ, **(environment or {})}
        added = [
            name
            for name in (*_WORKER_ENVIRONMENT, "PYTHONHASHSEED", "DASK_INTERNAL_INHERIT_CONFIG")
            if name not in wanted
        ]
        scratch, sockets = _make_places()
        receive, send = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", *["-O"] * sys.flags.optimize, "-c", _START],
                stdin=subprocess.PIPE,
                pass_fds=[send],
                cwd=directory,
                env={
                    **_WORKER_ENVIRONMENT,
                    **wanted,
                    ADDED_VARIABLE: ",".join(added),
                    "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(dask.config.config),
                },
                start_new_session=True,
                text=True,
            )
        except BaseException:
            os.close(receive)
            _remove_places(scratch, sockets)
            raise
        finally:
            os.close(send)
        assert self._process.stdin is not None
        self._pipe: IO[str] = self._process.stdin
        settings = {
            "path": [os.fspath(each) for each in sys.path if isinstance(each, (str, os.PathLike))],
            "workers": num_workers,
            "answer": send,
            "scratch": scratch,
            "sockets": sockets,
        }
        with contextlib.suppress(BrokenPipeError):
            self._pipe.write(json.dumps(settings) + "\n")
            self._pipe.flush()
        self._finalizer = weakref.finalize(self, _end, self._process, self._pipe, scratch, sockets)
        _clusters.add(self)
        try:
            self.address = self._await_address(receive)
        except BaseException:
            self.close()
            raise

    def _await_address(self, receive: int) -> str:
        # A thread, since a pipe cannot be read with a timeout; the host's end closes it.
        lines: list[str] = []

        def read() -> None:
            with open(receive) as answer:
                lines.append(answer.readline())

        reader = threading.Thread(target=read, name="daskbatch-start", daemon=True)
        reader.start()
        reader.join(_START_SECONDS)
        if not lines or not lines[0]:
            raise ServiceLost(
                f"the embedded cluster did not start (exit code {self._process.poll()}); "
                "what its process wrote to stderr says why"
            )
        return str(json.loads(lines[0])["address"])

    def close(self) -> None:
        """End the workers and the scheduler; what runs is given up."""
        self._finalizer()


#: Those that this process has made.
_clusters: weakref.WeakSet[EmbeddedCluster] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Let a forked child of the creator neither end its clusters nor keep them going."""
    for cluster in list(_clusters):
        cluster._finalizer.detach()
        with contextlib.suppress(OSError):
            cluster._pipe.close()
    _clusters.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def _make_places() -> tuple[str, str]:
    """Make a directory for what workers keep, and one for sockets: their names must be short."""
    scratch = tempfile.mkdtemp(prefix="daskbatch-")
    if len(os.fsencode(scratch)) <= _SHORT:
        return scratch, scratch
    try:
        return scratch, tempfile.mkdtemp(prefix="daskbatch-", dir="/tmp")
    except BaseException:
        _remove_places(scratch)
        raise


def _remove_places(*places: str) -> None:
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


def _end(process: subprocess.Popen[str], pipe: IO[str], *places: str) -> None:
    with contextlib.suppress(OSError):
        pipe.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _remove_places(*places)


# -- in the host ------------------------------------------------------------------------


def host(settings: dict[str, Any]) -> None:
    """Be the host: the main function of its process."""
    import multiprocessing
    from multiprocessing import forkserver

    # Started first, the fork server imports Dask while this process does.
    multiprocessing.set_forkserver_preload(["distributed.nanny", "daskbatch.worker.plugin"])
    tempfile.tempdir = settings["sockets"]
    forkserver.ensure_running()
    tempfile.tempdir = None
    dask.config.set(_CONFIG)
    asyncio.run(_serve(settings))


async def _serve(settings: dict[str, Any]) -> None:
    from distributed import LocalCluster

    cluster = await LocalCluster(
        n_workers=settings["workers"],
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        local_directory=settings["scratch"],
        asynchronous=True,
    )
    with open(settings["answer"], "w") as answer:
        answer.write(json.dumps({"address": cluster.scheduler_address}) + "\n")
    keeping_up = asyncio.create_task(_keep_up(cluster, settings["workers"]))
    await asyncio.to_thread(sys.stdin.read)
    keeping_up.cancel()
    # Nobody needs them any more. To ask them politely would take longer, and have them
    # complain of each other's absence.
    _kill_children()
    _remove_places(settings["scratch"], settings["sockets"])
    os._exit(0)


async def _keep_up(cluster: Any, workers: int) -> None:
    """Start workers anew where Dask does not: a nanny gives up if its worker dies as it starts."""
    from distributed.core import Status

    while True:
        await asyncio.sleep(_KEEP_UP_SECONDS)
        gone = [
            name
            for name, nanny in cluster.workers.items()
            if nanny.status in (Status.closed, Status.failed)
        ]
        for name in gone:
            del cluster.workers[name]
        if len(cluster.workers) < workers:
            cluster.scale(workers)


def _kill_children() -> None:
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()

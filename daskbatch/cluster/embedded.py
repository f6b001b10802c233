"""Starts a cluster on this machine that ends with its creator.

One process holds the scheduler and the nannies (the *cluster process*), and each worker is a
process with one thread. All are started by executing Python anew. So no user script is imported
a second time, and none needs a ``__main__`` guard; yet the workers have the creator's directory,
environment and `sys.path`.

The cluster process reads a pipe from its creator. When the pipe closes, because the creator
closed it or died for any reason, the cluster process and the workers end. They are in another
POSIX session than the creator, so that Ctrl-C at the terminal reaches the creator alone.
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

from daskbatch import config
from daskbatch.cluster.growth.worker_range import WorkerRange
from daskbatch.dispatch.key_names import TOKEN
from daskbatch.errors import ServiceLost
from daskbatch.forking import after_fork
from daskbatch.worker.execution.executable import ADDED_VARIABLE
from daskbatch.worker.processes import interpreter
from daskbatch.worker.processes.interpreter import HASH_SEED

#: The program of the cluster process.
_CLUSTER_PROGRAM = """\
import json, sys
settings = json.loads(sys.stdin.readline())
sys.path[:] = settings["path"]
sys.argv[:] = settings["argv"]
from daskbatch.cluster.embedded import run_cluster
run_cluster(settings)
"""

#: How long the cluster process may take to start, and to end once its pipe is closed.
_START_TIMEOUT_SECONDS, _END_TIMEOUT_SECONDS = 60.0, 10.0

#: The longest path of a directory for sockets. The path of a socket may have 107 bytes, on macOS
#: 103, and `multiprocessing` needs 32 of them.
_MAX_SOCKET_DIRECTORY_BYTES = 70

#: The interval at which the cluster process looks for nannies that have given up.
_CHECK_INTERVAL_SECONDS = 0.5

#: How often an elastic cluster is adapted; and it grows if the tasks that wait take longer than
#: this together.
_ADAPT_INTERVAL_SECONDS, _TARGET_SECONDS = 0.25, 0.25

#: As Dask's nannies do: one thread for each linear algebra call, because every core has a
#: worker. The creator's settings take precedence.
_WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

#: What differs from Dask's defaults in the cluster process and its workers.
_CONFIG = {
    # Otherwise a task could not use multiprocessing.
    "distributed.worker.daemon": False,
    # Python is started, and Dask imported, once for all workers.
    "distributed.worker.multiprocessing-method": "forkserver",
    "distributed.nanny.pre-spawn-environ": {},
    # No worker should steal tokens, even before Dask has seen one run.
    f"distributed.scheduler.default-task-durations.{TOKEN}": "1us",
    # An idle slot should not wait a second before it steals work.
    "distributed.scheduler.work-stealing-interval": "100ms",
    # A nanny starts its worker again. This long after each loss, Dask would close the nanny for
    # good if its next worker were just starting.
    "distributed.deploy.lost-worker-timeout": "3650 days",
}

#: What Dask's processes do so often that it takes 6 to 9 % of a core for each of them, also while
#: nothing runs: Dask's own setting, and the one here. Another setting of a user stays.
_LESS_OFTEN = {
    "distributed.admin.tick.interval": ("20ms", "100ms"),
    "distributed.worker.profile.interval": ("10ms", "50ms"),
}


class EmbeddedCluster:
    """A scheduler and workers on this machine. Any thread may use it.

    Parameters
    ----------
    workers : WorkerRange
        The number of worker processes, of one thread each; or the least and the most.
    directory : str
        Their working directory.
    environment : mapping, optional
        Variables that are added to their environment.

    Raises
    ------
    ServiceLost
        The cluster did not start.
    """

    def __init__(
        self,
        workers: WorkerRange,
        directory: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        #: Whether it grows and shrinks.
        self.is_elastic = workers.is_elastic
        wanted = {**os.environ, **(environment or {})}
        added = [
            name
            for name in (*_WORKER_ENVIRONMENT, HASH_SEED, "DASK_INTERNAL_INHERIT_CONFIG")
            if name not in wanted
        ]
        scratch, sockets = _make_directories()
        receive, send = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", *interpreter.command_line_options(), "-c", _CLUSTER_PROGRAM],
                stdin=subprocess.PIPE,
                pass_fds=[send],
                cwd=directory,
                env={
                    **_WORKER_ENVIRONMENT,
                    **interpreter.environment(wanted),
                    ADDED_VARIABLE: ",".join(added),
                    "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(
                        config.portable(dask.config.config)
                    ),
                },
                start_new_session=True,
                text=True,
            )
        except BaseException:
            os.close(receive)
            _remove_directories(scratch, sockets)
            raise
        finally:
            os.close(send)
        assert self._process.stdin is not None
        self._pipe: IO[str] = self._process.stdin
        settings = {
            "path": [os.fspath(each) for each in sys.path if isinstance(each, (str, os.PathLike))],
            "argv": [str(each) for each in sys.argv],
            "interpreter": interpreter.capture(),
            "workers": list(workers),
            "idle": config.get_seconds("idle-timeout"),
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
        """Wait until the cluster process writes the scheduler's address to a pipe."""
        # In a thread, because a pipe cannot be read with a timeout. The pipe closes when the
        # cluster process ends.
        lines: list[str] = []

        def read() -> None:
            with open(receive) as answer:
                lines.append(answer.readline())

        reader = threading.Thread(target=read, name="daskbatch-start", daemon=True)
        reader.start()
        reader.join(_START_TIMEOUT_SECONDS)
        if not lines or not lines[0]:
            raise ServiceLost(
                f"the embedded cluster did not start (exit code {self._process.poll()}); "
                "its process wrote the reason to stderr"
            )
        return str(json.loads(lines[0])["address"])

    def close(self) -> None:
        """End the workers and the scheduler; running tasks are abandoned."""
        self._finalizer()


#: The clusters that this process has started.
_clusters: weakref.WeakSet[EmbeddedCluster] = weakref.WeakSet()


@after_fork
def _leave_to_parent() -> None:
    """Keep a forked child of the creator from ending its clusters, and from keeping them alive."""
    for cluster in list(_clusters):
        cluster._finalizer.detach()
        with contextlib.suppress(OSError):
            cluster._pipe.close()
    _clusters.clear()


def _make_directories() -> tuple[str, str]:
    """Make a directory for the workers' files, and one for sockets, whose path must be short."""
    scratch = tempfile.mkdtemp(prefix="daskbatch-")
    if len(os.fsencode(scratch)) <= _MAX_SOCKET_DIRECTORY_BYTES:
        return scratch, scratch
    try:
        return scratch, tempfile.mkdtemp(prefix="daskbatch-", dir="/tmp")
    except BaseException:
        _remove_directories(scratch)
        raise


def _remove_directories(*directories: str) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _end(process: subprocess.Popen[str], pipe: IO[str], *directories: str) -> None:
    """Close the pipe, wait until the cluster process has ended, and remove its directories."""
    with contextlib.suppress(OSError):
        pipe.close()
    try:
        process.wait(_END_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _remove_directories(*directories)


# -- in the cluster process -------------------------------------------------------------


def run_cluster(settings: dict[str, Any]) -> None:
    """Run the scheduler and the nannies: the main function of the cluster process."""
    import distributed.deploy
    import distributed.nanny  # noqa: F401

    from daskbatch.cluster.fork_server import start_fork_server

    tempfile.tempdir = settings["sockets"]
    os.environ[interpreter.VARIABLE] = settings["interpreter"]
    start_fork_server(
        ["distributed.nanny", "daskbatch.worker.plugin", "daskbatch.worker.processes.inherited"]
    )
    del os.environ[interpreter.VARIABLE]
    tempfile.tempdir = None
    dask.config.set(_CONFIG)
    for name, (dasks, ours) in _LESS_OFTEN.items():
        if dask.config.get(name) == dasks:
            dask.config.set({name: ours})
    seed = {HASH_SEED: os.environ[HASH_SEED]}  # else Dask would give workers another value
    dask.config.set({"distributed.nanny.pre-spawn-environ": seed})
    asyncio.run(_serve(settings))


async def _serve(settings: dict[str, Any]) -> None:
    from distributed import LocalCluster
    from distributed.deploy import Adaptive

    from daskbatch.dashboard.on_demand import DashboardOnDemand, has_pages

    class NannyAdaptive(Adaptive):  # type: ignore[misc]
        """Ends workers by their nannies, which have them leave in good order."""

        async def scale_down(self, workers: Any) -> None:
            await self.cluster.scale_down(workers)

    workers = WorkerRange(*settings["workers"])
    on_demand = has_pages()
    cluster = await LocalCluster(
        n_workers=workers.least,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        local_directory=settings["scratch"],
        asynchronous=True,
        # The pages are loaded when somebody looks at them.
        scheduler_kwargs={"dashboard": False} if on_demand else {},
    )
    if on_demand:
        DashboardOnDemand(cluster.scheduler)
    with open(settings["answer"], "w") as answer:
        answer.write(json.dumps({"address": cluster.scheduler_address}) + "\n")
    if workers.is_elastic:
        cluster.adapt(
            NannyAdaptive,
            minimum=workers.least,
            maximum=workers.most,
            interval=_ADAPT_INTERVAL_SECONDS,
            wait_count=max(1, round(settings["idle"] / _ADAPT_INTERVAL_SECONDS)),
            target_duration=_TARGET_SECONDS,
        )
    replacing = asyncio.create_task(_replace_workers(cluster))
    await asyncio.to_thread(sys.stdin.read)
    replacing.cancel()
    # The creator is gone, so the workers are no longer needed. To close them in order would take
    # longer, and they would log that they have lost each other.
    _kill_children()
    _remove_directories(settings["scratch"], settings["sockets"])
    _remove_semaphores()
    os._exit(0)


async def _replace_workers(cluster: Any) -> None:
    """Replace nannies that have given up: a nanny does so if its worker dies at the start."""
    from distributed.core import Status

    while True:
        await asyncio.sleep(_CHECK_INTERVAL_SECONDS)
        failed = [
            name
            for name, nanny in cluster.workers.items()
            if nanny.status in (Status.closed, Status.failed)
        ]
        for name in failed:
            del cluster.workers[name]
        # Dask may have removed others, and does not start new ones by itself.
        if cluster.worker_spec.keys() - cluster.workers.keys():
            cluster.scale(len(cluster.worker_spec))


def _kill_children() -> None:
    """End all processes but the resource tracker: it removes what they leave in shared memory."""
    from multiprocessing import resource_tracker

    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    for child in psutil.Process().children(recursive=True):
        if child.pid != tracker:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def _remove_semaphores() -> None:
    """Remove the named semaphores of this process, as `multiprocessing` does at a regular end.

    The nannies have six for each worker. The resource tracker would remove them, too, but with a
    warning that they have leaked.
    """
    from multiprocessing import util

    util._run_finalizers(0)  # type: ignore[attr-defined]

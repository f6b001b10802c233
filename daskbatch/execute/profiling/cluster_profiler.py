"""Profiles the processes of a cluster: starts, queries and stops profilers on the workers.

Several threads may use one `ClusterProfiler`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from distributed import Client

from daskbatch.cluster.session import Session
from daskbatch.errors import BatchError, LifecycleError
from daskbatch.execute.workers.worker import Worker
from daskbatch.execute.workers.worker_watch import WorkerSet, WorkerWatch
from daskbatch.threads import start_unless_ending
from daskbatch.worker.profiling import remote

_logger = logging.getLogger("daskbatch")


class WorkerProfile(NamedTuple):
    """The profiles of the processes of one worker.

    Parameters
    ----------
    worker : Worker
        The worker.
    pieces : list of bytes
        The pickled profiles of its process and of its children.
    """

    worker: Worker
    pieces: list[bytes]


class ClusterProfiler:
    """A profiler on all workers of a context and in their children, also on workers that join.

    It runs until `stop`, or until its context or the Batch ends, or this object is deleted.
    Several threads may use it.

    Parameters
    ----------
    connect : callable
        Returns the watch over the workers of the context, and the session on the cluster.
    kind : str
        The kind of the profiler; see `worker.profiling.profilers`.
    """

    def __init__(self, connect: Callable[[], tuple[WorkerWatch, Session]], kind: str) -> None:
        self._connect = connect
        self._kind = kind
        self._lock = threading.Lock()
        self._watch: WorkerWatch | None = None
        #: The workers on which it was started. Those that are paused do not count as connected.
        self._started_on: set[Worker] = set()
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._owner = ""

    @property
    def running(self) -> bool:
        """Whether the profiler has been started and not stopped."""
        return self._watch is not None

    def start(self) -> None:
        """Start on all workers. If it runs already, do nothing.

        Raises
        ------
        BatchError
            A worker cannot profile, because a package is not installed there.
        """
        with self._lock:
            if self._watch is not None:
                return
            watch, session = self._connect()
            # When a client has disconnected, the workers stop the profilers whose owner begins with
            # its topic.
            self._owner = f"{session.topic}/{uuid.uuid4().hex}"
            self._client: Client = session.client
            self._started_on = set(watch.current().by_address.values())
            self._finalizer = weakref.finalize(self, _forget_later, self._client, self._owner)
            self._finalizer.atexit = False
            try:
                self._run(remote.start, None, kind=self._kind, owner=self._owner)
            except BaseException:
                # Some workers may have started it.
                self._finalizer()
                raise
            self._watch = watch
            self._joined = _Joined(self, watch)
            watch.add_listener(self._joined)
        # A worker may have joined before the listener was added.
        self._joined(watch.current())

    def stop(self) -> None:
        """Stop on all workers. If it does not run, do nothing."""
        with self._lock:
            watch, self._watch = self._watch, None
            if watch is None:
                return
            watch.remove_listener(self._joined)
            if self._finalizer is not None:
                self._finalizer.detach()
            with contextlib.suppress(Exception):  # the cluster may have ended, with its profilers
                self._client.run(remote.forget, owner=self._owner, on_error="ignore")

    def collect(self) -> list[WorkerProfile]:
        """Return the profiles of each worker and its children.

        It warns if a process has not answered in time.

        Raises
        ------
        LifecycleError
            The profiler does not run.
        BatchError
            A worker cannot report its profile, or the cluster cannot be reached.
        """
        watch = self._watch
        if watch is None:
            raise LifecycleError("this profiler does not run: call start() first")
        answers = self._run(remote.report, None, kind=self._kind)
        found: list[WorkerProfile] = []
        seen: set[str] = set()
        silent = []
        for worker in sorted(self._started_on | set(watch.current().by_address.values())):
            if worker.address not in answers:
                continue  # it has ended, and its profile with it
            found.append(WorkerProfile(worker, []))
            for process, data in answers[worker.address]:
                if data is None:
                    silent.append(worker.name)
                elif process not in seen:  # workers may share a process
                    seen.add(process)
                    found[-1].pieces.append(data)
        if silent:
            warnings.warn(
                f"the profile is incomplete: processes of the workers {', '.join(silent)} have not "
                "reported in time",
                stacklevel=4,
            )
        return found

    def _run(
        self, function: Any, workers: Iterable[Worker] | None, **kwargs: Any
    ) -> dict[str, Any]:
        """Call a function on some or all workers; returns the answers of those that run on."""
        addresses = None if workers is None else [worker.address for worker in workers]
        try:
            answers: dict[str, Any] = self._client.run(
                function, workers=addresses, on_error="return", **kwargs
            )
        except OSError as error:
            raise BatchError(f"the workers cannot be reached: {error}") from error
        for address, answer in list(answers.items()):
            if isinstance(answer, ImportError):
                raise BatchError(
                    f"the worker at {address} cannot profile: {answer}; install daskbatch there "
                    "with its extra: pip install 'daskbatch[profiling]'"
                ) from answer
            if isinstance(answer, OSError):
                del answers[address]  # the worker has ended, or is about to end
            elif isinstance(answer, BaseException):
                raise BatchError(f"the worker at {address} cannot profile: {answer}") from answer
        return answers

    def _join(self, workers: Sequence[Worker]) -> None:
        """Start on workers that have joined; runs in a separate thread."""
        with self._lock:
            if self._watch is None:
                return
            try:
                self._run(remote.start, workers, kind=self._kind, owner=self._owner)
            except Exception as error:
                names = ", ".join(worker.name for worker in workers)
                _logger.warning("the workers %s have joined and are not profiled: %s", names, error)


class _Joined:
    """Starts a profiler on workers that join, as long as the profiler lives."""

    def __init__(self, profiler: ClusterProfiler, watch: WorkerWatch) -> None:
        self._profiler = weakref.ref(profiler)
        self._watch = weakref.ref(watch)

    def __call__(self, workers: WorkerSet) -> None:
        profiler, watch = self._profiler(), self._watch()
        if profiler is None:
            if watch is not None:
                watch.remove_listener(self)
            return
        if profiler._watch is None:
            return
        new = set(workers.threads) - profiler._started_on
        profiler._started_on |= new
        if new:
            # In another thread: this one runs Dask's event loop, which must not wait.
            threading.Thread(
                target=profiler._join, args=(sorted(new),), name="daskbatch-profile", daemon=True
            ).start()


def _forget_later(client: Client, owner: str) -> None:
    def forget() -> None:
        with contextlib.suppress(Exception):
            client.run(remote.forget, owner=owner, on_error="ignore")

    start_unless_ending(forget, name="daskbatch-profile-end")

"""Profiles the processes of a cluster: starts, queries and stops profilers on the workers.

Several threads may use one `ClusterProfiler`.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Client

from daskbatch.cluster.session import Session
from daskbatch.errors import BatchError, LifecycleError
from daskbatch.execute.workers.worker import Worker
from daskbatch.execute.workers.worker_watch import WorkerSet, WorkerWatch
from daskbatch.worker.profiling import remote

#: For each worker: the pickled profiles of its process and of its children.
Found = list[tuple[Worker, list[bytes]]]


class ClusterProfiler:
    """A profiler on all workers of a context and in their children, also on workers that join.

    It runs until `stop`, or until its context or the Batch ends, or this object is deleted.

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
            self._started_on = set(watch.current().threads)
            self._run(remote.start, self._started_on, kind=self._kind, owner=self._owner)
            self._finalizer = weakref.finalize(self, _forget_later, self._client, self._owner)
            self._finalizer.atexit = False
            self._watch = watch
        self._joined = _Joined(self, watch)
        watch.add_listener(self._joined)

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
                self._run(remote.forget, watch.current().threads, owner=self._owner)

    def collect(self) -> Found:
        """Return the profiles of each worker and its children, one for each process.

        Raises
        ------
        LifecycleError
            The profiler does not run.
        """
        watch = self._watch
        if watch is None:
            raise LifecycleError("this profiler does not run: call start() first")
        workers = {worker.address: worker for worker in watch.current().threads}
        answers = self._run(remote.report, workers.values(), kind=self._kind)
        seen: set[tuple[str, int]] = set()
        found: Found = []
        for address, worker in workers.items():
            pieces = []
            for host, pid, data in answers.get(address) or ():
                if (host, pid) not in seen:
                    seen.add((host, pid))
                    pieces.append(data)
            found.append((worker, pieces))
        return found

    def _run(self, function: Any, workers: Any, **kwargs: Any) -> dict[str, Any]:
        addresses = [worker.address for worker in workers]
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
            if isinstance(answer, BaseException):
                del answers[address]  # the worker has ended, or is about to end
        return answers

    def _join(self, workers: Sequence[Worker]) -> None:
        with self._lock, contextlib.suppress(Exception):
            if self._watch is not None:
                self._run(remote.start, workers, kind=self._kind, owner=self._owner)


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

    with contextlib.suppress(RuntimeError):  # no thread can start while the interpreter ends
        threading.Thread(target=forget, name="daskbatch-profile-end", daemon=True).start()

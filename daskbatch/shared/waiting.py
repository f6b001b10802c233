"""Waits for something that a shared object does not have yet, with the worker slot released.

The thread that waits calls the functions: in clients, in tasks of a Batch, and in plain tasks of
Dask. In a client there is no slot to release.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic
from typing import TypeVar

from distributed import get_worker, rejoin, secede
from distributed.threadpoolexecutor import thread_state as pool_state

from daskbatch.worker.execution.slot import Rejoining
from daskbatch.worker.execution.task_context import current_context, waiting

T = TypeVar("T")

#: How long one request may wait at a server before it returns that there is nothing yet.
_MAX_WAIT_AT_SERVER_SECONDS = 5.0

#: A shorter wait keeps the slot: to regain it would take as long.
_MIN_RELEASE_SECONDS = 0.02

#: How long an idle thread of Dask's pool takes to make room for one that rejoins.
_MIN_REJOIN_SECONDS = 0.05


@contextlib.contextmanager
def without_slot(deadline: float | None) -> Iterator[None]:
    """Release the worker slot of the current task, be it one of a Batch or a plain one of Dask.

    Parameters
    ----------
    deadline : float, optional
        A time of `monotonic`. After it the task no longer waits to regain the slot, but continues
        without one. None waits without limit.
    """
    context = current_context()
    if context is None and getattr(pool_state, "proceed", False) and _is_dask_task():
        secede()
        try:
            yield
        finally:
            _rejoin(deadline)
        return
    with waiting(context, deadline):
        yield


def _rejoin(deadline: float | None) -> None:
    """Do what Dask's `rejoin` does, but not beyond the deadline.

    After the deadline this thread stays outside of the pool, since another thread has its place,
    and ends with its task.
    """
    if deadline is None:
        rejoin()
        return
    rejoining = Rejoining(pool_state.executor, threading.current_thread())
    seconds = max(deadline - monotonic(), _MIN_REJOIN_SECONDS)
    if rejoining.has_place(seconds) or rejoining.withdraw():
        pool_state.proceed = True


def await_answer(ask: Callable[[float], T], deadline: float | None, miss: object = None) -> T:
    """Repeat a request until it succeeds, or the deadline passes, with the slot released meanwhile.

    Waits of at most 20 ms keep the slot, so that a task that polls with short timeouts does not
    lose it.

    Parameters
    ----------
    ask : callable
        Makes the request, and returns the answer; called with the seconds that the server may wait.
    deadline : float, optional
        A time of `monotonic`; None waits without limit.
    miss : object
        The answer that means "not yet"; returned on timeout.
    """
    found = ask(0.0)
    remaining = inf if deadline is None else deadline - monotonic()
    if found is not miss or remaining <= 0:
        return found
    releases = remaining > _MIN_RELEASE_SECONDS
    with without_slot(deadline) if releases else contextlib.nullcontext():
        while found is miss:
            seconds = _MAX_WAIT_AT_SERVER_SECONDS
            if deadline is not None:
                seconds = min(deadline - monotonic(), seconds)
                if seconds <= 0:
                    break
            found = ask(seconds)
    return found


def _is_dask_task() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True

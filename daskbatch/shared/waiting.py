"""Waits for what a shared object does not have yet, and gives the worker slot back meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic
from typing import TypeVar

from distributed import get_worker, rejoin, secede
from distributed.threadpoolexecutor import thread_state as pool_state

from daskbatch.worker.execution.task_context import current, waiting

T = TypeVar("T")

#: How long may be waited at a shard before it says that there is nothing yet. Seconds.
_SLICE = 5.0

#: For so short a wait nobody else is given the slot: it takes as long to have it again. Seconds.
_BRIEF = 0.02

#: In so long a thread of Dask's pool makes way that has nothing to do. Seconds.
_MAKING_WAY = 0.05


@contextlib.contextmanager
def without_slot(deadline: float | None) -> Iterator[None]:
    """Let another task have the slot while this one waits, be it a task of a Batch or of Dask.

    Parameters
    ----------
    deadline : float, optional
        When it no longer waits for a slot to be free, but goes on without. Of `monotonic`.
    """
    host = current()
    if host is None and getattr(pool_state, "proceed", False) and _is_task():
        secede()
        try:
            yield
        finally:
            _rejoin(deadline)
        return
    with waiting(host, deadline):
        yield


def _rejoin(deadline: float | None) -> None:
    """Do what Dask's `rejoin` does, but not beyond a time.

    Then this thread stays outside the pool, where another one has its place by now, and ends with
    its task.
    """
    if deadline is None:
        rejoin()
        return
    pool, this, has_place = pool_state.executor, threading.current_thread(), threading.Event()
    with pool._rejoin_lock:
        pool._rejoin_list.append((this, has_place))
    with contextlib.suppress(RuntimeError):  # the worker closes
        pool.submit(_nothing)
    if not has_place.wait(max(deadline - monotonic(), _MAKING_WAY)):
        with pool._rejoin_lock:
            if not has_place.is_set():
                pool._rejoin_list.remove((this, has_place))
                return
    pool_state.proceed = True


def _nothing() -> None:
    pass


def awaited(ask: Callable[[float], T], deadline: float | None, miss: object = None) -> T:
    """Ask for what may not be there yet, until it is; another task has the slot meanwhile.

    Not where there is nothing to wait for, or hardly: who looks again and again keeps the slot.

    Parameters
    ----------
    ask : callable
        Asks for it; is given how long may be waited there. Seconds.
    deadline : float, optional
        When it is no longer asked for. Of `monotonic`.
    miss : object
        Is answered if it is not there; and given back if the time is up.
    """
    found = ask(0.0)
    left = inf if deadline is None else deadline - monotonic()
    if found is not miss or left <= 0:
        return found
    with without_slot(deadline) if left > _BRIEF else contextlib.nullcontext():
        while found is miss:
            left = _SLICE if deadline is None else deadline - monotonic()
            if left <= 0:
                break
            found = ask(min(left, _SLICE))
    return found


def _is_task() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True

"""Fails a test in which a thread waits for Dask's event loop with a lock that the loop takes.

The event loop takes the lock of a dispatcher, or of a list of workers, whenever it brings news. A
thread that has the lock and asks for something waits for ever if news comes before the answer. That
is rare: without this check no test would notice.
"""

from __future__ import annotations

import threading
import weakref
from functools import cache
from typing import Any

import distributed.utils

from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.execute.workers.worker_watch import WorkerWatch

_locks: weakref.WeakSet[threading.Condition] = weakref.WeakSet()


@cache
def install() -> None:
    """Check each later wait for an event loop in this process; a second call does nothing."""
    make_dispatcher, make_watch = Dispatcher.__init__, WorkerWatch.__init__
    wait = distributed.utils.sync

    def make_noted_dispatcher(self: Dispatcher, *args: Any, **kwargs: Any) -> None:
        make_dispatcher(self, *args, **kwargs)
        _locks.add(self.outcomes.changed)

    def make_noted_watch(self: WorkerWatch, *args: Any, **kwargs: Any) -> None:
        make_watch(self, *args, **kwargs)
        _locks.add(self.changed)

    def wait_checked(*args: Any, **kwargs: Any) -> Any:
        held = [lock for lock in list(_locks) if lock._is_owned()]  # type: ignore[attr-defined]
        assert not held, "waits for Dask's event loop with a lock that the loop takes"
        return wait(*args, **kwargs)

    Dispatcher.__init__ = make_noted_dispatcher  # type: ignore[method-assign]
    WorkerWatch.__init__ = make_noted_watch  # type: ignore[method-assign]
    distributed.utils.sync = wait_checked

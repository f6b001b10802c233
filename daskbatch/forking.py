"""What a forked child does with what its parent had: free locks, and objects left alone.

A child has copies of its parent's objects but none of its threads. A lock that a thread of the
parent held would never be released in the child, and a finalizer that ran in the child would
close connections that are the parent's. Not used by `worker.processes.reaper`, which runs
without the package.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_Hook = TypeVar("_Hook", bound=Callable[[], object])

_inherited: list[Any] = []


def after_fork(hook: _Hook) -> _Hook:
    """Call a function in each child that this process forks; usable as a decorator.

    Parameters
    ----------
    hook : callable
        Called without arguments, in the order of registration, before the child goes on.
    """
    os.register_at_fork(after_in_child=hook)
    return hook


def make_lock() -> threading.Lock:
    """Return a lock for a module's lifetime that is free in each forked child."""
    lock = threading.Lock()
    after_fork(lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock


def make_rlock() -> threading.RLock:
    """Return a reentrant lock for a module's lifetime that is free in each forked child."""
    lock = threading.RLock()
    after_fork(lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock


def keep_inherited(objects: Iterable[Any]) -> None:
    """Keep the parent's objects for good in a child, so that their finalizers never run there."""
    _inherited.extend(objects)

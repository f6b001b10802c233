"""Frees locks in forked children, and keeps the parent's objects from being finalized there.

A forked child has copies of its parent's objects but none of its threads. A lock that a thread
of the parent held would never be released in the child, and a finalizer that ran in the child
would close the parent's connections. `worker.processes.reaper` does not use this module, because
it runs without the package.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_Hook = TypeVar("_Hook", bound=Callable[[], object])

#: The parent's objects, in a child; they are never released.
_inherited: list[Any] = []


def after_fork(hook: _Hook) -> _Hook:
    """Call a function in each child that this process forks; usable as a decorator.

    Parameters
    ----------
    hook : callable
        Called without arguments, before the fork returns in the child. Hooks are called in the
        order of their registration.
    """
    os.register_at_fork(after_in_child=hook)
    return hook


def make_lock() -> threading.Lock:
    """Return a lock for the lifetime of a module, which is free in each forked child."""
    lock = threading.Lock()
    after_fork(lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock


def make_rlock() -> threading.RLock:
    """Return a reentrant lock for the lifetime of a module, which is free in each forked child."""
    lock = threading.RLock()
    after_fork(lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock


def keep_inherited(objects: Iterable[Any]) -> None:
    """Keep the parent's objects in a child for ever, so that no finalizer runs there."""
    _inherited.extend(objects)

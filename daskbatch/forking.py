"""Frees locks and closes sockets in forked children; nothing of the parent is finalized there.

A forked child has copies of its parent's objects but none of its threads. A lock that a thread
of the parent held would never be released in the child, and a finalizer that ran in the child
would close the parent's connections. `worker.processes.reaper` does not use this module, because
it runs without the package.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    import socket

#: What a forked child writes if it returns from the function that has forked it.
_RETURNED = (
    "daskbatch: a process that a task has forked returned from the task's function. It ends here; "
    "let it call sys.exit() or os._exit()"
)

_Hook = TypeVar("_Hook", bound=Callable[[], object])

#: The parent's objects, in a child; they are never released.
_inherited: list[Any] = []

#: How many forks lie between this process and the one that imported this module.
_generation = 0


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


def generation() -> int:
    """Return a number that differs between a process and its forked children."""
    return _generation


@after_fork
def _count_fork() -> None:
    global _generation
    _generation += 1


def end_forked_process(error: BaseException | None) -> NoReturn:
    """End a forked child as Python ends a program, without the parent's threads and exit handlers.

    Parameters
    ----------
    error : BaseException, optional
        What the code that the child has run has raised; None if it has returned, and the child
        would go on with what is the parent's work.
    """
    code: Any = 1
    try:
        if error is None:
            print(_RETURNED, file=sys.stderr)
        elif not issubclass(type(error), SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
        else:
            code = getattr(error, "code", None)
            if code is not None and not isinstance(code, int):
                print(code, file=sys.stderr)
                code = 1
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            os._exit((code or 0) & 0xFF)


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


#: The sockets that a forked child must close. Otherwise the other side would believe that this
#: process lives for as long as the child does.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_in_children(sock: socket.socket) -> None:
    """Have the processes that this one forks close their copy of a socket."""
    _sockets.add(sock)


@after_fork
def _close_inherited() -> None:
    for sock in list(_sockets):
        with contextlib.suppress(OSError):
            os.close(sock.detach())
    _sockets.clear()

"""Starts threads from finalizers, and conditions whose locks Ctrl-C does not leave locked.

A finalizer may run while the interpreter ends. Then no thread runs any longer: from Python 3.12 on,
starting one raises `RuntimeError`; before, it would wait for ever. Any thread may call.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable
from typing import Any


class Condition(threading.Condition):
    """A condition that a signal handler which raises, such as that of Ctrl-C, leaves unlocked.

    The methods by which ``with`` locks and unlocks a `threading.Condition` are written in Python:
    a handler that runs within them raises when the lock is held, and nothing releases it. These
    are the lock's own, within which no handler runs.

    Examples
    --------
    >>> condition = Condition()
    >>> with condition:
    ...     condition.notify_all()
    """

    __enter__ = property(operator.attrgetter("_lock.__enter__"))
    __exit__ = property(operator.attrgetter("_lock.__exit__"))


def start_unless_ending(
    target: Callable[..., object], *args: Any, name: str, daemon: bool = True
) -> bool:
    """Start a thread, unless the interpreter ends; return whether it was started.

    Parameters
    ----------
    target : callable
        What the thread runs.
    *args
        Its arguments.
    name : str
        The name of the thread.
    daemon : bool
        Whether the program may end before the thread does.

    Examples
    --------
    >>> start_unless_ending(id, 0, name="daskbatch-example")
    True
    """
    if sys.is_finalizing():
        return False
    try:
        threading.Thread(target=target, args=args, name=name, daemon=daemon).start()
    except RuntimeError:
        return False
    return True

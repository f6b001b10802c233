"""Starts threads from finalizers, which may run while the interpreter ends.

Then no thread runs any longer. From Python 3.12 on, starting one raises `RuntimeError`; before, it
would wait for ever. Any thread may call.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any


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

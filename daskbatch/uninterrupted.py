"""Lets a thread finish what a stopped task must not leave half done.

A task that runs in a thread is stopped by an exception that is raised at some instruction of it
(`worker.execution.interrupt`). A finalizer, or a function that NumPy calls, runs in the middle of
the task: stopped there, it would leave a lock locked, or memory that nobody knows of. Any thread
may call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import ParamSpec, TypeVar

_Params = ParamSpec("_Params")
_Returned = TypeVar("_Returned")

#: The threads that must not be interrupted now, by their numbers. Using it needs no lock.
uninterrupted_threads: dict[int, bool] = {}


def uninterrupted(function: Callable[_Params, _Returned]) -> Callable[_Params, _Returned]:
    """Have a function run to its end; usable as a decorator.

    Examples
    --------
    >>> uninterrupted(lambda: len(uninterrupted_threads))(), len(uninterrupted_threads)
    (1, 0)
    """

    @wraps(function)
    def run(*args: _Params.args, **kwargs: _Params.kwargs) -> _Returned:
        # An exception that another thread has thrown before is raised at the end of this call, or
        # before it. Nothing is half done then. See `StoppableCaller` for where it can be raised.
        thread = get_ident()
        if thread in uninterrupted_threads:
            return function(*args, **kwargs)
        uninterrupted_threads[thread] = True
        try:
            return function(*args, **kwargs)
        finally:
            del uninterrupted_threads[thread]

    return run

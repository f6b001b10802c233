"""Lets `asyncio` wait for futures of `concurrent.futures` whose call has raised `StopIteration`.

`asyncio.wrap_future` and `loop.run_in_executor` copy the outcome of such a future to a future of
asyncio, which refuses a `StopIteration`: up to Python 3.11 the coroutine would wait for ever. So
asyncio receives what Python makes of a `StopIteration` that a coroutine raises, a `RuntimeError`
with the `StopIteration` as its cause. Any thread may call all functions.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from daskbatch.serialization.safe_text import text_attribute

#: The module whose callbacks copy the outcome of a future to a future of asyncio.
_COPYING_MODULE = "asyncio.futures"


def awaitable_callback(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Return a callback for `Future.add_done_callback`, one that asyncio can use.

    Parameters
    ----------
    callback : callable
        What is to be called with the future; returned as it is, if it does not belong to asyncio.
    """
    if text_attribute(callback, "__module__") != _COPYING_MODULE:
        return callback

    def call(future: Future[Any]) -> None:
        callback(_without_stop_iteration(future))

    return call


def _without_stop_iteration(future: Future[Any]) -> Future[Any]:
    """Return a future that is over; another one if its exception is a `StopIteration`."""
    if future.cancelled():
        return future
    error = future.exception()
    if error is None or not issubclass(type(error), StopIteration):
        return future
    raised = RuntimeError("coroutine raised StopIteration")
    raised.__cause__ = error
    other: Future[Any] = Future()
    other.set_exception(raised)
    return other

"""Has a worker ignore messages that arrive after their receiver has ended.

The scheduler may have sent a message just before it learnt of that. Dask would log an error for a
message without a handler, and close the stream. To be called on the worker's event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def ignore_late_messages(handlers: dict[str, Callable[..., Any]], *operations: str) -> None:
    """Have a worker ignore messages from the scheduler.

    Parameters
    ----------
    handlers : dict
        The handlers of messages of the worker.
    *operations : str
        The names of the messages.
    """
    handlers.update(dict.fromkeys(operations, _ignore))


def _ignore(**message: Any) -> None:
    pass

"""Has a worker ignore messages that arrive after their receiver has ended.

The scheduler may have sent a message just before it learnt of that. Dask would log an error for a
message without a handler, and close the stream. To be called on the worker's event loop.
"""

from __future__ import annotations

from typing import Any

from distributed import Worker


def ignore_late_messages(worker: Worker, *operations: str) -> None:
    """Have a worker ignore messages from the scheduler.

    Parameters
    ----------
    worker : Worker
        The worker.
    *operations : str
        The names of the messages.
    """
    worker.stream_handlers.update(dict.fromkeys(operations, _ignore))


def _ignore(**message: Any) -> None:
    pass

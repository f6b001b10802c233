"""Omits messages of Dask that a client logs only because it has lost its scheduler, or closes.

The caller receives an exception that says what happened. All functions may be called by any thread.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client
from distributed.comm import Comm

#: The connections to schedulers of clients that daskbatch has made.
_connections: weakref.WeakSet[Comm] = weakref.WeakSet()


def omit_lost_connection(client: Client) -> None:
    """Have Dask not log, with a traceback, that it cannot send the next messages of a client."""
    logging.getLogger("distributed.batched").addFilter(_is_of_another_connection)
    stream = client.scheduler_comm
    if stream is not None:
        _connections.add(stream.comm)


def _is_of_another_connection(record: logging.LogRecord) -> bool:
    comm = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return not (isinstance(comm, Comm) and comm in _connections)


@contextmanager
def omit_end_of_reconnecting(client: Client) -> Iterator[None]:
    """Have Dask not log that a client closes which tries to connect again.

    It would say that its attempt was cancelled, with a traceback, or that it has failed for 30 s
    though it was closed before.
    """
    if client.status != "connecting":
        yield
        return
    logger = logging.getLogger("distributed.client")

    def is_another(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        failed = str(record.msg).startswith("Failed to reconnect to scheduler")
        return not (failed or isinstance(error, asyncio.CancelledError))

    logger.addFilter(is_another)
    try:
        yield
    finally:
        logger.removeFilter(is_another)


def omit_timeouts_of_stopped_loops() -> None:
    """Have asyncio not log a timeout in an event loop of Dask that the exit has stopped.

    A connection of Dask waits for its next message with a time limit. If the loop stops between
    this time and the next step of the connection, asyncio says that nobody has seen the timeout.
    """
    logging.getLogger("asyncio").addFilter(_is_not_unseen_timeout)


def _is_not_unseen_timeout(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, TimeoutError) and "never retrieved" in record.getMessage())

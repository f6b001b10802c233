"""Sends messages on the scheduler's streams to workers without a delay.

Used on the scheduler's event loop alone.
"""

from __future__ import annotations

from typing import Any

from distributed import Scheduler


def send_at_once(scheduler: Scheduler, address: str, *messages: dict[str, Any]) -> None:
    """Send messages to a worker, and with them all that Dask is about to send there.

    Dask sends what has gathered for a worker five milliseconds after the last time. What a gang
    waits for would nearly always have to wait for that: the worker has just received a holder.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    address : str
        The worker.
    *messages : dict
        The messages, if any.
    """
    for message in messages:
        scheduler.worker_send(address, message)
    stream = scheduler.stream_comms.get(address)
    if stream is not None:
        stream.next_deadline = None
        stream.waker.set()

"""Accepts the clients of the open blocks of a worker, and passes each connection to its block.

A client proves that it knows the secret (see `worker.handshake`), and then sends the topic and the
number of its block. Another open block, which sends outcomes to this one, adds its own number. Each
connection has a thread while it is made.
"""

from __future__ import annotations

import pickle
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from distributed.comm.addressing import get_address_host
from distributed.core import Status as WorkerStatus

from daskbatch.timeouts import Deadline
from daskbatch.worker.handshake import ServerAddress, connect_to_server
from daskbatch.worker.listener import listen
from daskbatch.worker.open_blocks.frame_link import FrameLink, LinkClosed
from daskbatch.worker.open_blocks.messages import ATTACHED
from daskbatch.worker.open_blocks.open_run import OpenRun

#: How long a client may take to say which block it connects to.
_HELLO_TIMEOUT_SECONDS = 5.0

#: How long it may take to connect to the server of another worker.
_CONNECT_TIMEOUT_SECONDS = 4.0


class OpenServer:
    """Where the clients of a worker's open blocks connect, and the `SlotWatch` of the blocks.

    Any thread may use it.

    Parameters
    ----------
    worker : Worker
        The worker.
    runs : mapping
        The blocks that run, by topic and number.

    Raises
    ------
    OSError
        No port that it may use is free.
    """

    def __init__(self, worker: Any, runs: Mapping[tuple[str, int], object]) -> None:
        self._worker = worker
        self._runs = runs
        address = worker.address
        tls: ssl.SSLContext | None = None
        if address.startswith("tls"):
            tls = worker.security.get_listen_args("worker")["ssl_context"]
        host = "127.0.0.1" if address.startswith("inproc") else get_address_host(address)
        self._service = listen(host, self._attach, tls_context=tls, owner=address)
        self.address = self._service.address

    def close(self) -> None:
        """Accept no more clients; connected ones stay."""
        self._service.close()

    def is_wanted(self) -> bool:
        state = self._worker.state
        return bool(state.ready or state.constrained) or self._worker.status == WorkerStatus.paused

    def is_connected(self) -> bool:
        if self._worker.status not in (WorkerStatus.running, WorkerStatus.paused):
            return False
        stream = self._worker.batched_stream
        return stream is not None and not stream.closed()

    def connect(self, address: ServerAddress) -> socket.socket:
        tls: ssl.SSLContext | None = None
        if address.tls:
            tls = self._worker.security.get_connection_args("worker")["ssl_context"]
        return connect_to_server(address, tls, _CONNECT_TIMEOUT_SECONDS)

    def _attach(self, sock: socket.socket) -> None:
        link = FrameLink(sock)
        try:
            deadline = Deadline(_HELLO_TIMEOUT_SECONDS)
            while not (frames := link.receive()):
                if deadline.passed:
                    raise LinkClosed("the client has not said which block it wants")
                link.wait(deadline.remaining(at_most=1.0) or 0.0)
            topic, block, *peer = pickle.loads(frames[0])
            run = self._runs.get((topic, block))
            if isinstance(run, OpenRun) and peer:
                link.unread(frames[1:])
                if run.attach_peer(peer[0], link):
                    return
            elif isinstance(run, OpenRun):
                link.send(ATTACHED)  # before any report
                if run.attach(link):
                    return
        except Exception:
            pass
        link.close()

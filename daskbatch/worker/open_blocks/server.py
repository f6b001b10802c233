"""Accepts the clients of the open blocks of a worker, and passes each connection to its block.

A client proves that it knows the secret (see `worker.handshake`), and then sends the topic and the
number of its block. The server has a thread, and one for each client while that connects.
"""

from __future__ import annotations

import contextlib
import pickle
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

from distributed.comm.addressing import get_address_host
from distributed.core import Status as WorkerStatus

from daskbatch.forking import close_in_children
from daskbatch.timeouts import Deadline
from daskbatch.worker.handshake import ServerAddress, accept_client
from daskbatch.worker.open_blocks.frame_link import FrameLink, LinkClosed
from daskbatch.worker.open_blocks.messages import ATTACHED
from daskbatch.worker.open_blocks.open_run import OpenRun

#: How long a client may take to say which block it connects to.
_HELLO_TIMEOUT_SECONDS = 5.0

_ERROR_PAUSE_SECONDS = 1.0


class OpenServer:
    """The listening socket of a worker's open blocks, and their `SlotWatch`.

    Any thread may use it.

    Parameters
    ----------
    worker : Worker
        The worker.
    runs : mapping
        The blocks that run, by topic and number.
    """

    def __init__(self, worker: Any, runs: Mapping[tuple[str, int], object]) -> None:
        self._worker = worker
        self._runs = runs
        address = worker.address
        tls: ssl.SSLContext | None = None
        if address.startswith("tls"):
            tls = worker.security.get_listen_args("worker")["ssl_context"]
        host = "127.0.0.1" if address.startswith("inproc") else get_address_host(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._tls = tls
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        close_in_children(self._listener)
        port = self._listener.getsockname()[1]
        self.address = ServerAddress(host, port, secrets.token_bytes(32), tls is not None)
        self._closed = False
        threading.Thread(target=self._listen, name="daskbatch-open-listen", daemon=True).start()

    def close(self) -> None:
        """Accept no more clients; connected ones stay."""
        self._closed = True
        with contextlib.suppress(OSError):
            # `close` alone does not wake a thread that waits in `accept`.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def is_wanted(self) -> bool:
        state = self._worker.state
        return bool(state.ready or state.constrained) or self._worker.status == WorkerStatus.paused

    def is_connected(self) -> bool:
        if self._worker.status not in (WorkerStatus.running, WorkerStatus.paused):
            return False
        stream = self._worker.batched_stream
        return stream is not None and not stream.closed()

    def _listen(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if not self._closed:
                    time.sleep(_ERROR_PAUSE_SECONDS)  # there may be too many open files
                continue
            threading.Thread(
                target=self._accept, args=[sock], name="daskbatch-open-accept", daemon=True
            ).start()

    def _accept(self, sock: socket.socket) -> None:
        accepted = accept_client(sock, self.address.secret, self._tls)
        if accepted is None:
            return
        link = FrameLink(accepted)
        try:
            deadline = Deadline(_HELLO_TIMEOUT_SECONDS)
            while not (frames := link.receive()):
                if deadline.passed:
                    raise LinkClosed("the client has not said which block it wants")
                link.wait(deadline.remaining(at_most=1.0) or 0.0)
            run = self._runs.get(tuple(pickle.loads(frames[0])))
            if isinstance(run, OpenRun):
                link.send(ATTACHED)  # before any report
                if run.attach(link):
                    return
        except Exception:
            pass
        link.close()

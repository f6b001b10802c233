"""Accepts the connections of ranks and their supervisors, each in a thread of its own.

So a stranger that connects and says nothing delays no rank. The thread that starts the ranks makes
the listener, and takes the connections that have proved that they know the secret.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import socket
import threading
from time import sleep
from typing import NamedTuple

from daskbatch.forking import close_in_children
from daskbatch.timeouts import Deadline
from daskbatch.worker.authentication import authenticate_as_server
from daskbatch.worker.local_sockets import listen_locally
from daskbatch.worker.mpi.messages import Hello, MessageKind, MessageReader
from daskbatch.worker.mpi.rank_connection import SetAddress
from daskbatch.worker.ports import listening_socket
from daskbatch.worker.socket_options import tune

#: How long a process that has connected may take to prove that it knows the secret.
_PROOF_TIMEOUT_SECONDS = 10.0

#: How long to wait while there are too many open files or threads.
_SHORTAGE_PAUSE_SECONDS = 0.1

#: How many connections may wait to be accepted.
_BACKLOG = 1024


class Arrival(NamedTuple):
    """A connection of a rank or a supervisor.

    Parameters
    ----------
    sock : socket.socket
        The connection.
    reader : MessageReader
        Reads from it.
    hello : Hello
        What it is for.
    files : list of int
        Descriptors that came with it.
    """

    sock: socket.socket
    reader: MessageReader
    hello: Hello
    files: list[int]

    def discard(self) -> None:
        """Close the connection, and what came with it."""
        self.sock.close()
        for file in self.files:
            os.close(file)


class RankListener:
    """Where the ranks of a set connect. The thread that starts the set uses it.

    Parameters
    ----------
    size : int
        The number of ranks.
    host : str, optional
        The address at which other hosts reach this one, if ranks are on other hosts.

    Attributes
    ----------
    address : SetAddress
        What a rank needs to connect.
    arrivals : queue.SimpleQueue
        The connections that have proved that they know the secret. For each one a byte can be read
        from `fileno()`.
    """

    def __init__(self, size: int, host: str | None) -> None:
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._secret = secrets.token_bytes(32)
        self._sockets: list[socket.socket] = []
        self._closed = False
        self._lock = threading.Lock()  # between `close` and the threads
        self._read, self._write = os.pipe()
        local, port = "", 0
        try:
            if (found := listen_locally(_BACKLOG)) is not None:
                local, sock = found
                self._sockets.append(sock)
                self._accept_from(sock)
            else:
                host = host or "127.0.0.1"
            if host is not None:
                sock = listening_socket(host, _BACKLOG)
                self._sockets.append(sock)
                port = sock.getsockname()[1]
                self._accept_from(sock)
        except BaseException:
            self.close()
            raise
        self.address = SetAddress(
            local, host or "", port, self._secret.hex(), secrets.token_hex(16), size
        )

    def _accept_from(self, sock: socket.socket) -> None:
        """Accept the connections of a listening socket in a thread."""
        close_in_children(sock)
        threading.Thread(
            target=self._accept, args=(sock,), name="daskbatch-rank-listener", daemon=True
        ).start()

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is an arrival."""
        return self._read

    def take(self) -> Arrival | None:
        """Return an arrival; None if there is none."""
        try:
            arrival = self.arrivals.get_nowait()
        except queue.Empty:
            return None
        os.read(self._read, 1)
        return arrival

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                if self._closed:
                    return
                sleep(_SHORTAGE_PAUSE_SECONDS)  # there may be too many open files
                continue
            try:
                threading.Thread(
                    target=self._greet, args=(sock,), name="daskbatch-rank-hello", daemon=True
                ).start()
            except RuntimeError:  # there are too many threads
                sock.close()
                sleep(_SHORTAGE_PAUSE_SECONDS)

    def _greet(self, sock: socket.socket) -> None:
        """Authenticate a process that has connected, and read what it wants."""
        close_in_children(sock)
        try:
            tune(sock)
            sock.settimeout(_PROOF_TIMEOUT_SECONDS)
            if not authenticate_as_server(sock, self._secret, Deadline(_PROOF_TIMEOUT_SECONDS)):
                sock.close()
                return
            reader = MessageReader(sock)
            message = reader.read()
            if message is None or message.kind != MessageKind.HELLO:
                sock.close()
                return
            arrival = Arrival(sock, reader, Hello(*message.fields), message.files)
        except (OSError, EOFError, ValueError):
            sock.close()
            return
        with self._lock:
            if not self._closed:
                self.arrivals.put(arrival)
                os.write(self._write, b".")
                return
        arrival.discard()

    def close(self) -> None:
        """Accept no further connection, and close those that nobody has taken."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._read)
            os.close(self._write)
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # else `accept` would not return
            sock.close()
        with contextlib.suppress(queue.Empty):
            while True:
                self.arrivals.get_nowait().discard()

"""Encodes and reads the messages between a worker and its ranks.

A message has a kind, a few fields, and a body: raw bytes that may be large. On the wire it is::

    kind: uint8   number of files: uint8   size of the fields: uint32   size of the body: uint64
    the pickled fields   body

A Unix socket also carries the descriptors of the files.
Nothing is read from a connection before both sides have proved that they know the secret of the
set. One thread at a time uses a reader, and one at a time sends.
"""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import socket
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

_HEADER = struct.Struct("=BBIQ")

#: How much is read with one system call while no large body is expected.
_READ_BYTES = 1 << 16

#: How many descriptors may arrive with one system call.
_MAX_FILES = 8


class MessageKind(IntEnum):
    """What a message says."""

    #: The first message of each connection: a `Hello`.
    HELLO = 1
    #: The worker wants a rank to run a call: a `RankRequest`.
    RUN = 2
    #: The worker sends a rank the data of a call, since the rank could not open the shared file.
    DATA = 3
    #: The worker gives the slot back to a rank that has finished waiting.
    SLOT = 4
    #: A rank holds the data of a call in a file, which the other ranks of its host may open.
    SHARED = 5
    #: A rank could not open that file.
    NEED_DATA = 6
    #: A rank has run its call: a `Status`, whether it uses MPI, whether processes that the call has
    #: started still run. The body is the packed value.
    OVER = 7
    #: A rank begins to wait, or has finished waiting.
    WAITING = 8
    #: A rank that uses MPI has checked what the call has left: whether the next job may use it.
    CHECKED = 9
    #: A rank is about to call `MPI.Comm.Abort`, with this exit code.
    ABORTING = 10
    #: The supervisor of a rank reports that the rank has ended, with this exit code.
    ENDED = 11


class RankMessage(NamedTuple):
    """A message that was received.

    Parameters
    ----------
    kind : MessageKind
        What it says.
    fields : tuple
        The details.
    body : memoryview
        Raw bytes, which the receiver may change.
    files : list of int
        Descriptors of files, which the receiver closes.
    """

    kind: MessageKind
    fields: tuple[Any, ...]
    body: memoryview
    files: list[int]


class Hello(NamedTuple):
    """What a connection is for.

    Parameters
    ----------
    role : str
        "rank", "supervisor", or, from another host, "stdout" or "stderr" of a rank.
    rank : int
        The rank.
    pid : int
        The process.
    host : str
        The name of its host.
    """

    role: str
    rank: int
    pid: int
    host: str


def encode(
    kind: MessageKind, fields: tuple[Any, ...] = (), body_size: int = 0, file_count: int = 0
) -> bytes:
    """Return a message without its body."""
    data = pickle.dumps(tuple(fields), 5)
    return _HEADER.pack(kind, file_count, len(data), body_size) + data


def send(
    sock: socket.socket,
    kind: MessageKind,
    fields: tuple[Any, ...] = (),
    body: bytes | memoryview = b"",
    files: Sequence[int] = (),
) -> None:
    """Send a whole message over a socket that blocks.

    Raises
    ------
    OSError
        The connection is broken.
    """
    data = encode(kind, fields, len(body), len(files))
    if files:
        sent = socket.send_fds(sock, [data], files)
        data = data[sent:]
    if len(body) <= _READ_BYTES:
        data += body
        body = b""
    if data:
        sock.sendall(data)
    if body:
        sock.sendall(body)


class MessageReader:
    """Reads messages from a socket, whether it blocks or not.

    Parameters
    ----------
    sock : socket.socket
        A connected socket.

    Attributes
    ----------
    sock : socket.socket
        The socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._has_files = sock.family == socket.AF_UNIX
        self._buffer = bytearray()
        #: The message whose body is being received: its kind, number of files, fields, body.
        self._open: tuple[MessageKind, int, tuple[Any, ...], bytearray] | None = None
        self._received = 0
        self._files: list[int] = []

    def read(self) -> RankMessage | None:
        """Return the next message; None if it has not arrived and the socket does not block.

        Raises
        ------
        EOFError
            The other side has closed the connection.
        OSError
            The connection is broken.
        """
        while True:
            message = self._next()
            if message is not None:
                return message
            try:
                self._receive()
            except (BlockingIOError, TimeoutError):
                return None

    def _receive(self) -> None:
        if self._open is not None:
            body = self._open[3]
            with memoryview(body) as view:
                size = self.sock.recv_into(view[self._received :])
            self._received += size
            if not size:
                raise EOFError
            return
        if self._has_files:
            data, ancillary, _, _ = self.sock.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(_MAX_FILES * array.array("i").itemsize)
            )
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    files = array.array("i")
                    files.frombytes(content[: len(content) - len(content) % files.itemsize])
                    self._files += files
        else:
            data = self.sock.recv(_READ_BYTES)
        if not data:
            raise EOFError
        self._buffer += data

    def _next(self) -> RankMessage | None:
        """Return a message that has been received whole."""
        if self._open is None:
            buffer = self._buffer
            if len(buffer) < _HEADER.size:
                return None
            number, files, fields_size, body_size = _HEADER.unpack_from(buffer)
            start = _HEADER.size + fields_size
            if len(buffer) < start:
                return None
            with memoryview(buffer) as view:
                fields = pickle.loads(view[_HEADER.size : start])
            # At the size of the body from the start: it may be large.
            body = bytearray(body_size)
            self._received = min(body_size, len(buffer) - start)
            body[: self._received] = buffer[start : start + self._received]
            del buffer[: start + self._received]
            self._open = MessageKind(number), files, fields, body
        kind, count, fields, body = self._open
        if self._received < len(body):
            return None
        self._open = None
        received, self._files = self._files[:count], self._files[count:]
        return RankMessage(kind, fields, memoryview(body), received)

    def close(self) -> None:
        """Close the descriptors that were received and not returned."""
        for file in self._files:
            with contextlib.suppress(OSError):
                os.close(file)
        self._files.clear()

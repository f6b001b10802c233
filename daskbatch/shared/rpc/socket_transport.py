"""Sends and receives messages over a socket, large parts of them without a copy.

Does not know what they say. A message is a pickle and the buffers that are apart from it.
"""

from __future__ import annotations

import contextlib
import pickle
import select
import socket
import struct
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

from daskbatch.shared.data.codec import empty

# How many buffers there are, and how long the pickle is; the lengths of the buffers follow.
_HEAD = struct.Struct("=Iq")
_LENGTH = struct.Struct("=q")

#: So much is read at once, as long as it is not known how much there is. Bytes.
_GULP = 1 << 16

#: So many pieces does the system take at once.
_PIECES = 512

#: What is called again and again while nothing comes: it may raise, to give it up.
Idle = Callable[[], None]


class ConnectionCut(ConnectionError):
    """The other side has closed the connection."""


def encode(message: object) -> list[Any]:
    """Make the pieces of a message that are to be written one after another."""
    apart: list[PickleBuffer] = []
    data = pickle.dumps(message, 5, buffer_callback=apart.append)
    if not apart:
        return [_HEAD.pack(0, len(data)) + data]
    buffers = [each.raw() for each in apart]
    lengths = b"".join(_LENGTH.pack(each.nbytes) for each in buffers)
    return [_HEAD.pack(len(buffers), len(data)) + lengths + data, *buffers]


class SocketTransport:
    """One end of a connection; whoever has it takes turns with the other end.

    Parameters
    ----------
    sock : socket.socket
        Connected. With a timeout, `idle` is called that often while nothing moves.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""
        self._has_sendmsg = type(sock) is socket.socket

    def send(self, message: object, idle: Idle | None = None) -> None:
        """Send a message.

        Raises
        ------
        OSError
            The connection is broken.
        """
        pieces = encode(message)
        if len(pieces) == 1:
            self._send(memoryview(pieces[0]), idle)
        elif self._has_sendmsg:
            self._send_all(pieces, idle)
        else:
            for piece in pieces:
                self._send(memoryview(piece), idle)

    def _send(self, data: memoryview, idle: Idle | None) -> None:
        while data:
            try:
                sent = self.sock.send(data)
            except TimeoutError:
                if idle is not None:
                    idle()
                continue
            data = data[sent:]

    def _send_all(self, pieces: list[Any], idle: Idle | None) -> None:
        views = [memoryview(each) for each in pieces if memoryview(each).nbytes]
        start = 0
        while start < len(views):
            try:
                sent = self.sock.sendmsg(views[start : start + _PIECES])
            except TimeoutError:
                if idle is not None:
                    idle()
                continue
            while start < len(views) and sent >= views[start].nbytes:
                sent -= views[start].nbytes
                start += 1
            if sent:
                views[start] = views[start][sent:]

    def receive(self, idle: Idle | None = None) -> Any:
        """Wait for a message.

        Raises
        ------
        OSError
            The connection is broken.
        """
        data = self._at_least(_HEAD.size, self._rest, idle)
        count, length = _HEAD.unpack_from(data)
        start = _HEAD.size + count * _LENGTH.size
        end = start + length
        if not count and len(data) >= end:
            self._rest = data[end:]
            return pickle.loads(memoryview(data)[start:end])
        if end <= len(data) or end < _GULP:
            data = self._at_least(end, data, idle)
            main, more = memoryview(data)[start:end], data[end:]
        else:
            data = self._at_least(start, data, idle)
            there = min(len(data), end)
            main, more = empty(length), data[end:]
            main[: there - start] = data[start:there]
            self._fill(main[there - start :], idle)
        buffers = []
        for position in range(count):
            (size,) = _LENGTH.unpack_from(data, _HEAD.size + position * _LENGTH.size)
            buffer = empty(size)
            there = min(size, len(more))
            buffer[:there] = more[:there]
            more = more[there:]
            if there < size:
                self._fill(buffer[there:], idle)
            buffers.append(buffer)
        self._rest = more
        return pickle.loads(main, buffers=buffers)

    def _at_least(self, size: int, data: bytes, idle: Idle | None) -> bytes:
        while len(data) < size:
            try:
                more = self.sock.recv(_GULP)
            except TimeoutError:
                if idle is not None:
                    idle()
                continue
            if not more:
                raise ConnectionCut("the other side has closed the connection")
            data = data + more if data else more
        return data

    def _fill(self, room: memoryview, idle: Idle | None) -> None:
        while room:
            try:
                got = self.sock.recv_into(room)
            except TimeoutError:
                if idle is not None:
                    idle()
                continue
            if not got:
                raise ConnectionCut("the other side has closed the connection")
            room = room[got:]

    def is_cut(self) -> bool:
        """Say whether the other side is gone, at a moment when it has nothing to say."""
        poll = select.poll()
        try:
            poll.register(self.sock, select.POLLIN)
        except (OSError, ValueError):
            return True  # it is this side that has closed it
        return bool(poll.poll(0))

    def close(self) -> None:
        """End the connection, also for one who waits in `receive`."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

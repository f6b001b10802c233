"""Sends and receives messages over a socket; does not copy large buffers.

A message is a pickle of protocol 5 and its out-of-band buffers::

    number of buffers: uint32   size of the pickle: int64   size of each buffer: int64
    pickle   buffers

The highest bit of the number says that the sender can map the receiver's memory. Then both send
references to large buffers, and not the buffers (`memory.shared_buffer`). All this is
in the byte order of the machine, since all workers of a cluster have the same.
"""

from __future__ import annotations

import contextlib
import pickle
import select
import socket
import struct
from collections.abc import Callable, Sequence
from pickle import PickleBuffer
from typing import Any, TypeAlias

from daskbatch.memory.segment import ValueGone
from daskbatch.memory.shared_buffer import by_reference
from daskbatch.shared.data.codec import allocate

#: The number of buffers, and the size of the pickle; the sizes of the buffers follow.
_HEADER = struct.Struct("=Iq")
#: The size of a buffer.
_SIZE = struct.Struct("=q")

#: Added to the number of buffers.
_SHARES_MEMORY = 1 << 31

#: How much is read at once while the size of the message is not known.
_READ_BYTES = 1 << 16

#: How many buffers one call of `sendmsg` sends, at most.
_MAX_BUFFERS_AT_ONCE = 512

#: Called again and again while a caller waits for the other side. It may raise, to end the wait.
IdleCheck: TypeAlias = Callable[[], None]


class ConnectionClosed(ConnectionError):
    """The other side has closed the connection."""


def encode(message: object, shares_memory: bool = False) -> list[Any]:
    """Return the buffers of a message, to be written one after another.

    Parameters
    ----------
    message : object
        The message.
    shares_memory : bool
        Whether the receiver can map this process's memory.
    """
    buffers: list[PickleBuffer] = []
    flag = 0
    if shares_memory:
        flag = _SHARES_MEMORY
        with by_reference():
            data = pickle.dumps(message, 5, buffer_callback=buffers.append)
    else:
        data = pickle.dumps(message, 5, buffer_callback=buffers.append)
    if not buffers:
        return [_HEADER.pack(flag, len(data)) + data]
    views = [each.raw() for each in buffers]
    sizes = b"".join(_SIZE.pack(each.nbytes) for each in views)
    return [_HEADER.pack(flag | len(views), len(data)) + sizes + data, *views]


def _load(data: memoryview, buffers: Sequence[memoryview] = ()) -> Any:
    try:
        return pickle.loads(data, buffers=buffers)
    except ValueGone as error:
        raise ConnectionClosed("the other side has ended, and its memory with it") from error


class SocketTransport:
    """One end of a connection; the two ends take turns.

    `close` may be called by any thread, the other methods by one at a time.

    Parameters
    ----------
    sock : socket.socket
        A connected socket. If it has a timeout, `idle_check` is called at this interval while no
        data arrives or can be sent.
    shares_memory : bool
        Whether the other end can map this process's memory, and this one the other's. If not
        given, the first message that arrives says so.
    """

    def __init__(self, sock: socket.socket, shares_memory: bool = False) -> None:
        self.sock = sock
        self.shares_memory = shares_memory
        #: The bytes that were read beyond the end of the last message.
        self._rest = b""
        self._has_sendmsg = type(sock) is socket.socket

    def send(self, message: object, idle_check: IdleCheck | None = None) -> None:
        """Send a message.

        Raises
        ------
        OSError
            The connection is broken.
        """
        buffers = encode(message, self.shares_memory)
        if len(buffers) == 1:
            self._send(memoryview(buffers[0]), idle_check)
        elif self._has_sendmsg:
            self._send_all(buffers, idle_check)
        else:
            for buffer in buffers:
                self._send(memoryview(buffer), idle_check)

    def _send(self, data: memoryview, idle_check: IdleCheck | None) -> None:
        while data:
            try:
                sent = self.sock.send(data)
            except TimeoutError:
                if idle_check is not None:
                    idle_check()
                continue
            data = data[sent:]

    def _send_all(self, buffers: list[Any], idle_check: IdleCheck | None) -> None:
        views = [memoryview(each) for each in buffers if memoryview(each).nbytes]
        start = 0
        while start < len(views):
            try:
                sent = self.sock.sendmsg(views[start : start + _MAX_BUFFERS_AT_ONCE])
            except TimeoutError:
                if idle_check is not None:
                    idle_check()
                continue
            while start < len(views) and sent >= views[start].nbytes:
                sent -= views[start].nbytes
                start += 1
            if sent:
                views[start] = views[start][sent:]

    def receive(self, idle_check: IdleCheck | None = None) -> Any:
        """Wait for a message, and return it.

        Raises
        ------
        OSError
            The connection is broken.
        """
        data = self._at_least(_HEADER.size, self._rest, idle_check)
        count, length = _HEADER.unpack_from(data)
        if count & _SHARES_MEMORY:
            count ^= _SHARES_MEMORY
            self.shares_memory = True
        start = _HEADER.size + count * _SIZE.size
        end = start + length
        if not count and len(data) >= end:
            # Most messages are small, have no buffers, and have come as a whole.
            self._rest = data[end:]
            return _load(memoryview(data)[start:end])
        if end <= len(data) or end < _READ_BYTES:
            data = self._at_least(end, data, idle_check)
            main, more = memoryview(data)[start:end], data[end:]
        else:
            # The rest of a large pickle is read directly into its place.
            data = self._at_least(start, data, idle_check)
            there = min(len(data), end)
            main, more = allocate(length), data[end:]
            main[: there - start] = data[start:there]
            self._fill(main[there - start :], idle_check)
        buffers = []
        for position in range(count):
            (size,) = _SIZE.unpack_from(data, _HEADER.size + position * _SIZE.size)
            buffer = allocate(size)
            there = min(size, len(more))
            buffer[:there] = more[:there]
            more = more[there:]
            if there < size:
                self._fill(buffer[there:], idle_check)
            buffers.append(buffer)
        self._rest = more
        return _load(main, buffers)

    def _at_least(self, size: int, data: bytes, idle_check: IdleCheck | None) -> bytes:
        """Read until there are `size` bytes or more, `data` included; return them."""
        while len(data) < size:
            try:
                more = self.sock.recv(_READ_BYTES)
            except TimeoutError:
                if idle_check is not None:
                    idle_check()
                continue
            if not more:
                raise ConnectionClosed("the other side has closed the connection")
            data = data + more if data else more
        return data

    def _fill(self, room: memoryview, idle_check: IdleCheck | None) -> None:
        """Read until a buffer is full."""
        while room:
            try:
                count = self.sock.recv_into(room)
            except TimeoutError:
                if idle_check is not None:
                    idle_check()
                continue
            if not count:
                raise ConnectionClosed("the other side has closed the connection")
            room = room[count:]

    def peer_has_closed(self) -> bool:
        """Return whether the connection was closed; to be called when it is not the peer's turn."""
        poll = select.poll()
        try:
            poll.register(self.sock, select.POLLIN)
        except (OSError, ValueError):
            return True  # this side has closed it
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the connection, and wake a thread that waits in `receive`."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

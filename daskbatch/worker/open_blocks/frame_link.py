"""One end of the direct connection of an open block: frames in both directions, never blocking.

A frame is a length (uint32, little endian) and that many bytes; an empty frame only says that the
sender lives. What the system does not take at once stays in a buffer.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from threading import Lock
from time import monotonic

#: How long the sender of a frame says nothing more before it sends an empty frame; and how long the
#: receiver waits for any frame before the connection counts as cut.
PING_INTERVAL_SECONDS = 1.0
SILENCE_LIMIT_SECONDS = 5.0

_LENGTH_BYTES = 4

#: How much is read at once. For more than 128 KiB the C library maps new memory each time, which
#: takes six times as long as to read a short frame.
_READ_BYTES = 1 << 16


#: What a socket raises if it would have to wait.
_WOULD_WAIT = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkClosed(ConnectionError):
    """The other end has closed the connection, or it is broken."""


class FrameLink:
    """One end of a connection. Any thread may call all methods; for `wait`, see there.

    Parameters
    ----------
    sock : socket.socket
        A connected socket, authenticated; it is made non-blocking.
    on_unsent : callable, optional
        Called if not all could be sent at once, or the link is broken: then `flush` is to be
        called once the socket takes more.

    Attributes
    ----------
    heard : float
        When the last bytes arrived, by `monotonic`.
    broken : bool
        Whether nothing more can be sent.
    """

    def __init__(self, sock: socket.socket, on_unsent: Callable[[], None] | None = None) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.heard = monotonic()
        self.broken = False
        self._on_unsent = on_unsent
        self._said = self.heard
        self._send_lock = Lock()
        self._unsent = bytearray()
        #: With TLS, more may have been decrypted than a call returns.
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        #: With TLS the same: sending and receiving change one state.
        self._receive_lock = self._send_lock if self._is_tls else Lock()
        self._received = bytearray()
        self._unread: list[bytes] = []
        self._arrivals: select.poll | None = None

    def send(self, *frames: bytes) -> None:
        """Send frames, as far as the system takes them at once; the rest is kept.

        After an error the link is `broken`, and sends nothing.
        """
        data = b"".join([_with_length(frame) for frame in frames])
        with self._send_lock:
            sent = 0
            if data and not self._unsent:
                sent = self._try_send(data)
                if sent == len(data):
                    return  # the system takes all, as a rule
            self._unsent += data[sent:]
            self._send_some()
        if self._on_unsent is not None and (self._unsent or self.broken):
            self._on_unsent()

    def flush(self) -> bool:
        """Send more of what is kept; return whether nothing is."""
        with self._send_lock:
            self._send_some()
            return not self._unsent

    def _send_some(self) -> None:
        while self._unsent and (sent := self._try_send(self._unsent)):
            del self._unsent[:sent]
        if self.broken:
            self._unsent.clear()

    def _try_send(self, data: bytes | bytearray) -> int:
        """Send some of the data; return how many bytes the system has taken."""
        if self.broken:
            return 0
        try:
            sent = self.sock.send(data)
        except _WOULD_WAIT:
            return 0
        except (OSError, ValueError):
            self.broken = True
            return 0
        self._said = monotonic()
        return sent

    @property
    def has_unsent(self) -> bool:
        """Whether something could not be sent yet."""
        return bool(self._unsent)

    def keep_alive(self) -> bool:
        """Send an empty frame if nothing was sent for a while; return whether the link lives."""
        now = monotonic()
        if now - self._said > PING_INTERVAL_SECONDS and not self._unsent:
            self.send(b"")
        return not self.broken and now - self.heard < SILENCE_LIMIT_SECONDS

    def receive(self) -> list[bytes]:
        """Return the frames that have arrived as a whole; does not wait.

        Raises
        ------
        LinkClosed
            The other end has closed the connection, or it is broken.
        """
        with self._receive_lock:
            try:
                while True:
                    data = self.sock.recv(_READ_BYTES)
                    if not data:
                        break
                    self.heard = monotonic()
                    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
                    if (
                        length == len(data) - _LENGTH_BYTES > 0
                        and not (self._received or self._unread)
                        and not self._is_tls
                    ):
                        return [data[_LENGTH_BYTES:]]  # a single frame, as a rule
                    self._received += data
                    if len(data) < _READ_BYTES and not self._is_tls:
                        return self._take_frames()
            except _WOULD_WAIT:
                return self._take_frames()
            except (OSError, ValueError):
                pass
            frames = self._take_frames()
            if not frames:
                raise LinkClosed("the other side has closed the connection, or it is broken")
            return frames

    def unread(self, frames: Sequence[bytes]) -> None:
        """Have the next `receive` return frames that were received already."""
        with self._receive_lock:
            self._unread += frames

    def _take_frames(self) -> list[bytes]:
        frames, self._unread = self._unread, []
        start, received = 0, self._received
        while len(received) - start >= _LENGTH_BYTES:
            length = int.from_bytes(received[start : start + _LENGTH_BYTES], "little")
            end = start + _LENGTH_BYTES + length
            if len(received) < end:
                break
            if length:
                frames.append(bytes(received[start + _LENGTH_BYTES : end]))
            start = end
        if start:
            del received[:start]
        return frames

    def wait(self, seconds: float, sending: bool = False) -> None:
        """Wait until something arrives, or more can be sent; at most some seconds.

        One thread at a time waits for what arrives.
        """
        if self.broken:
            return
        try:
            if sending:
                poll = select.poll()
                poll.register(self.sock, select.POLLOUT)
            elif self._arrivals is None:
                poll = self._arrivals = select.poll()
                poll.register(self.sock, select.POLLIN)
            else:
                poll = self._arrivals
            poll.poll(seconds * 1e3)
        except (OSError, ValueError):
            pass

    def shut_down(self) -> None:
        """End the connection, and let the thread that receives notice that; it calls `close`.

        The number of a closed socket may be that of the next one, which that thread must not
        confuse.
        """
        self.broken = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; what was kept is lost."""
        self.shut_down()
        self.sock.close()


def _with_length(frame: bytes) -> bytes:
    return len(frame).to_bytes(_LENGTH_BYTES, "little") + frame

"""Encodes and decodes the frames in which a child sends outcomes to its worker.

A frame is a header of fixed size, which has the sizes of what follows: the value, stdout,
stderr. The child may be killed at any moment. A frame that has arrived in part only is never
decoded, so that the worker receives a frame either whole or not at all.
"""

from __future__ import annotations

import os
import select
import struct
from socket import socket
from typing import NamedTuple

from daskbatch.worker.execution.measures import UNKNOWN_CPU
from daskbatch.worker.isolation.control import PIPE_FULL

#: The header: the member, its status, the seconds, when it ended, its processor time, its peak of
#: memory (-1 if it is not known), its attempts; then the bytes of its value, of its stdout and of
#: its stderr; -1 for none.
_HEADER = struct.Struct("=iBfdfqiqqq")

#: How much is read from a pipe with one system call.
_READ_BYTES = 1 << 20

#: How many times one call of `FrameReader.read` reads the pipe at most.
_MAX_READS = 16

#: Pieces up to this size are joined before they are written.
_MAX_JOINED_BYTES = 1 << 16


#: In place of a status: the value says which declared files of the member were not there.
NOTICE = 255


class Frame(NamedTuple):
    """The outcome of a member.

    Parameters
    ----------
    member, status : int
        The member, and its `Status`; or `NOTICE`.
    seconds : float
        How long it ran.
    value : bytes, optional
        Its pickled value or packed exception.
    output : (str, str), optional
        Its stdout and stderr, if it wrote anything.
    ended : float
        When it ended, in seconds since the epoch; 0 if it did not run.
    cpu_seconds : float
        Its processor time; `UNKNOWN_CPU` if it is not known.
    max_memory : int
        The peak of its resident memory in bytes; -1 if it is not known.
    attempts : int
        The number of attempts.
    """

    member: int
    status: int
    seconds: float
    value: bytes | None
    output: tuple[str, str] | None
    ended: float = 0.0
    cpu_seconds: float = UNKNOWN_CPU
    max_memory: int = -1
    attempts: int = 1


def encode(frame: Frame) -> list[bytes]:
    """Return a frame as pieces of bytes: a large value is not copied."""
    member, status, seconds, value, output, *measured = frame
    size = -1 if value is None else len(value)
    if output is None:
        header = _HEADER.pack(member, status, seconds, *measured, size, -1, -1)
        return [header] if value is None else [header, value]
    out, err = (text.encode("utf-8", "surrogatepass") for text in output)
    header = _HEADER.pack(member, status, seconds, *measured, size, len(out), len(err))
    return [header, value or b"", out, err]


class FrameDecoder:
    """Decodes frames from bytes that come in pieces of any size; does no input or output.

    Used by one thread at a time.
    """

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take more bytes; return the frames that they complete."""
        self._data += data
        buffer, start, frames = self._data, 0, []
        last = len(buffer) - _HEADER.size
        while start <= last:
            fields = _HEADER.unpack_from(buffer, start)
            member, status, seconds, *measured, size, out, err = fields
            first = start + _HEADER.size
            second = first + max(size, 0)
            third = second + max(out, 0)
            end = third + max(err, 0)
            if end > len(buffer):
                break
            value = None if size < 0 else bytes(buffer[first:second])
            output = None
            if out >= 0:
                output = _text(buffer[second:third]), _text(buffer[third:end])
            frames.append(Frame(member, status, seconds, value, output, *measured))
            start = end
        if start:
            del buffer[:start]
        return frames


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "surrogatepass")


class FrameReader:
    """The worker's end of a child's frames pipe. Used by one thread at a time.

    Parameters
    ----------
    pipe : int
        The read end, which must not block.

    Attributes
    ----------
    ended : bool
        Whether no process has the write end open.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._decoder = FrameDecoder()
        self.ended = False

    def read(self) -> tuple[list[Frame], bool]:
        """Return the frames that have arrived, and whether there may be more; does not wait."""
        frames: list[Frame] = []
        for _ in range(_MAX_READS):
            try:
                data = os.read(self._pipe, _READ_BYTES)
            except BlockingIOError:
                return frames, False
            if not data:
                self.ended = True
                return frames, False
            frames += self._decoder.feed(data)
        return frames, True


class FrameWriter:
    """The child's end of its frames pipe. Used by one thread at a time.

    Frames are collected until `flush`: before a member begins, the frames of all members
    before it must have been written, since the member may end the process.

    Parameters
    ----------
    pipe : int
        The write end, which must not block.
    control : socket
        Tells the worker that the pipe is full.
    """

    def __init__(self, pipe: int, control: socket) -> None:
        self.pipe = pipe
        self._control = control
        self._pieces: list[bytes] = []

    def add(self, frame: Frame) -> None:
        """Add a frame to those that the next `flush` writes."""
        self._pieces += encode(frame)

    def flush(self) -> None:
        """Write the frames; return once all of them are in the pipe."""
        pieces = self._pieces
        if not pieces:
            return
        self._pieces = []
        small: list[bytes] = []
        for piece in pieces:
            if len(piece) > _MAX_JOINED_BYTES:
                self._write(b"".join(small))
                small.clear()
                self._write(piece)
            else:
                small.append(piece)
        self._write(b"".join(small))

    def _write(self, data: bytes) -> None:
        done, size = 0, len(data)
        while done < size:
            try:
                done += os.write(self.pipe, memoryview(data)[done:] if done else data)
            except BlockingIOError:
                # Without this message, the worker would read the pipe only at intervals.
                self._control.send(PIPE_FULL)
                poll = select.poll()
                poll.register(self.pipe, select.POLLOUT)
                poll.poll()

    def close(self) -> None:
        """Close the pipe, in a process that a member has forked."""
        os.close(self.pipe)
        self.pipe = -1

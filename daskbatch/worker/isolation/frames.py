"""What children tell their worker, and how: signs and frames.

Does not know who is at which end, nor when anything is sent.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

#: What a child says to get attention: it has started; a block is over; its pipe is full; the
#: member that runs begins to wait, or does so no longer.
READY, OVER, FULL, WAITS = b"r", b"o", b"f", b"w"

#: An order is announced by its size; with it come the board and the order as files.
ANNOUNCEMENT = struct.Struct("=q")

# The member, its status, the seconds; then how many bytes there are of its value and, behind
# that, of its stdout and stderr; -1 is none.
_HEADER = struct.Struct("=iBfqqq")

_CHUNK = 1 << 20

#: As much is taken from a pipe at once before others have their turn.
_GULP = 16


class Frame(NamedTuple):
    """What has become of a member."""

    member: int
    status: int
    seconds: float
    value: bytes | None
    output: tuple[str, str] | None


def write_file(file: int, data: bytes) -> None:
    """Write all of something."""
    with memoryview(data) as left:
        done = 0
        while done < len(left):
            done += os.write(file, left[done : done + (1 << 30)])


def pack_frame(frame: Frame) -> list[bytes]:
    """Give a frame as pieces of bytes."""
    member, status, seconds, value, output = frame
    size = -1 if value is None else len(value)
    if output is None:
        header = _HEADER.pack(member, status, seconds, size, -1, -1)
        return [header] if value is None else [header, value]
    out, err = (text.encode("utf-8", "surrogatepass") for text in output)
    header = _HEADER.pack(member, status, seconds, size, len(out), len(err))
    return [header, value or b"", out, err]


class Frames:
    """Reads frames from a pipe as they come, and what else there is in it not at all."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._data = bytearray()
        #: Whether nobody writes to the pipe any more.
        self.ended = False

    def read(self) -> tuple[list[Frame], bool]:
        """Give the frames that are there, without waiting, and whether there may be more."""
        more = True
        for _ in range(_GULP):
            try:
                data = os.read(self._pipe, _CHUNK)
            except BlockingIOError:
                more = False
                break
            if not data:
                more, self.ended = False, True
                break
            self._data += data
        return list(self._frames()), more

    def _frames(self) -> Iterator[Frame]:
        data, start, last = self._data, 0, len(self._data) - _HEADER.size
        while start <= last:
            member, status, seconds, size, out, err = _HEADER.unpack_from(data, start)
            first = start + _HEADER.size
            second = first + max(size, 0)
            third = second + max(out, 0)
            end = third + max(err, 0)
            if end > len(data):
                break
            value = None if size < 0 else bytes(data[first:second])
            output = None
            if out >= 0:
                output = _text(data[second:third]), _text(data[third:end])
            start = end
            yield Frame(member, status, seconds, value, output)
        if start:
            del data[:start]


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "surrogatepass")

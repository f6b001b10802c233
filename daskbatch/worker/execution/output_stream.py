"""Sends what the members of a block write, while they write it, to a client that keeps it.

At most `_MAX_BYTES` of a stream are read at a time, and not more often than `_INTERVAL_SECONDS`.
The worker's event loop uses an `OutputStream`; one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from daskbatch.worker.execution.block import OutputReport

#: How often the output of a running member is sent, and how much of a stream at a time.
_INTERVAL_SECONDS = 0.2
_MAX_BYTES = 1 << 18

STREAMS = ("stdout", "stderr")


class OutputPart(NamedTuple):
    """A part of what the running member has written to a stream.

    Parameters
    ----------
    attempt : int
        The number of the attempt, from 1.
    begin : int
        The position of the data in the stream. Bytes.
    data : bytes
        What was written there.
    """

    attempt: int
    begin: int
    data: bytes


class OutputStream:
    """How much of the output of a block's members has been sent.

    Parameters
    ----------
    block : int
        The block's number.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._member = -1
        self._attempt = 0
        self._sent = [0, 0]
        self._next_look = 0.0

    def of_running(
        self, member: int, read: Callable[[int, str, int, int], OutputPart | None]
    ) -> list[OutputReport]:
        """Return what the running member has written since the last call, if it is time to look.

        Parameters
        ----------
        member : int
            The member.
        read : callable
            See `Progress.read_output`.
        """
        now = perf_counter()
        if now < self._next_look:
            return []
        self._next_look = now + _INTERVAL_SECONDS
        reports = []
        for stream, name in enumerate(STREAMS):
            if self._member != member:
                self._member, self._attempt, self._sent = member, 0, [0, 0]
            part = read(member, name, self._sent[stream], _MAX_BYTES)
            if part is not None and part.attempt != self._attempt:
                self._attempt, self._sent = part.attempt, [0, 0]
                part = read(member, name, 0, _MAX_BYTES)
            if part is not None and part.data and part.attempt == self._attempt:
                self._sent[stream] = part.begin + len(part.data)
                reports.append(
                    OutputReport(self._block, member, part.attempt, stream, part.begin, part.data)
                )
        return reports


def whole_output(block: int, member: int, texts: tuple[str, str]) -> list[OutputReport]:
    """Return what is kept of the output of a member that is over, in parts.

    Parameters
    ----------
    block, member : int
        The block's number, and the member.
    texts : (str, str)
        Its stdout and stderr.
    """
    reports = []
    for stream, text in enumerate(texts):
        data = text.encode("utf-8", "surrogateescape") + b"\n" if text else b""
        for begin in range(0, len(data), _MAX_BYTES):
            part = data[begin : begin + _MAX_BYTES]
            reports.append(OutputReport(block, member, 0, stream, begin, part, is_whole=True))
    return reports

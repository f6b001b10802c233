"""Splits what a rank writes to a stream into jobs.

A rank on another host writes a mark at the end of each job, since messages and output come by
different connections. On the worker's host, all that a rank has written is in a pipe when its
message arrives.

Pure, and without I/O. Used by the thread of the job.
"""

from __future__ import annotations

from daskbatch.worker.execution.capture import BoundedText


class OutputSegment:
    """What a rank writes to one stream during one job.

    Parameters
    ----------
    mark : bytes
        What the rank writes at the end of the job. It may arrive in several pieces.
    text : BoundedText
        Receives what comes before the mark.

    Attributes
    ----------
    complete : bool
        Whether all of it has arrived.

    Examples
    --------
    >>> segment = OutputSegment(b"##", BoundedText(100))
    >>> segment.add(b"a#b#"), segment.complete, segment.add(b"#c"), segment.complete
    (None, False, None, True)
    >>> segment.text.text()
    'a#b'
    """

    def __init__(self, mark: bytes, text: BoundedText) -> None:
        self.text = text
        self.complete = False
        self._mark = mark
        #: The end of what has arrived, which may be the beginning of the mark.
        self._held = b""

    def add(self, data: bytes) -> None:
        """Add data that has arrived. What comes after the mark belongs to no job."""
        if self.complete:
            return
        data = self._held + data
        before, mark, _ = data.partition(self._mark)
        if mark:
            self.complete = True
            self._held = b""
            if before:
                self.text.add(before)
            return
        size = self._size_of_beginning(data)
        self._held = data[len(data) - size :]
        if len(data) > size:
            self.text.add(data[: len(data) - size])

    def _size_of_beginning(self, data: bytes) -> int:
        """Return how many bytes at the end of the data may be the beginning of the mark."""
        for size in range(min(len(self._mark) - 1, len(data)), 0, -1):
            if data.endswith(self._mark[:size]):
                return size
        return 0

    def end(self) -> None:
        """Complete the segment without a mark, since nothing more will arrive."""
        self.complete = True
        if self._held:
            self.text.add(self._held)
            self._held = b""

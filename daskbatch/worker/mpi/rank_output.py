"""Collects what the ranks of a job write, each rank for itself.

Used by the thread that runs the job.
"""

from __future__ import annotations

from collections.abc import Sequence

from daskbatch.worker.execution.capture import Capture

#: How much of the end of each rank's stderr a message contains at most, and how much in all.
_MAX_LINES, _MAX_CHARACTERS, _MAX_TOTAL_CHARACTERS = 10, 2000, 20_000
_MIN_CHARACTERS = 200


class RankOutput:
    """The output of all ranks, which share the limit of the task.

    Parameters
    ----------
    sink : Capture
        The output of the task.
    ranks : int
        The number of ranks.

    Attributes
    ----------
    stdout, stderr : list of BoundedText
        What each rank has written.
    """

    def __init__(self, sink: Capture, ranks: int) -> None:
        self._sink = sink
        self.stdout = sink.stdout.for_ranks(ranks)
        self.stderr = sink.stderr.for_ranks(ranks)

    def settle(self) -> None:
        """Pass the output of all ranks to the task; it is complete."""
        self._sink.stdout.set_ranks(self.stdout)
        self._sink.stderr.set_ranks(self.stderr)

    def errors(self) -> str:
        """Return what all ranks have written to stderr, in the order of the ranks."""
        return str(self._sink.stderr.text())

    def last_errors(self) -> str:
        """Return the end of each rank's stderr, for a message; empty if they wrote none."""
        return last_lines([text.text() if text.size else "" for text in self.stderr])


def last_lines(texts: Sequence[str]) -> str:
    """Return the end of each rank's text, for a message; ranks with the same end share one.

    Examples
    --------
    >>> print(last_lines(["lost", "lost", "", "out of memory"]))
    <BLANKLINE>
    stderr of ranks 0-1: lost
    stderr of rank 3: out of memory
    """
    ranks_by_end: dict[str, list[int]] = {}
    most = max(_MIN_CHARACTERS, _MAX_TOTAL_CHARACTERS // max(1, len(texts)))
    for rank, text in enumerate(texts):
        end = "\n".join(text.splitlines()[-_MAX_LINES:])[-min(most, _MAX_CHARACTERS) :]
        if end.strip():
            ranks_by_end.setdefault(end, []).append(rank)
    message = ""
    for end, ranks in ranks_by_end.items():
        if len(message) > _MAX_TOTAL_CHARACTERS:
            return f"{message}\n..."
        lines = f"\n{end}" if "\n" in end else f" {end}"
        message += f"\nstderr of rank{'s' * (len(ranks) > 1)} {describe_ranks(ranks)}:{lines}"
    return message


def describe_ranks(ranks: Sequence[int]) -> str:
    """Return ascending numbers as text.

    Examples
    --------
    >>> describe_ranks([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)

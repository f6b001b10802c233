"""Reads what tasks write while they run: the last lines so far, or each line as it is written.

A worker is asked only while a program reads, at most ten times a second for each task that runs.
So tasks whose output no program follows cost nothing. Each follower is used by one thread.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.worker.execution.output_stream import OutputPart
from daskbatch.worker.execution.ranked_text import RankedText

#: How often a running task is asked, while it writes, and while it does not.
_MIN_INTERVAL_SECONDS, _MAX_INTERVAL_SECONDS = 0.1, 0.5
_INTERVAL_FACTOR = 1.5

#: How much of a stream is read at a time, and how long a line may be before it is cut.
_MAX_BYTES = 1 << 18
_MAX_TAIL_BYTES = 1 << 16

#: The line that says how much of an output was dropped.
_DROPPED = re.compile(r"^\[daskbatch: (\d+) bytes dropped, see daskbatch\.output-limit\]$", re.M)

#: Reads from a position on what a running task has written; None if it does not run.
Read = Callable[[TaskRecord, int, int], OutputPart | None]


class FollowedTask(NamedTuple):
    """A task whose output is read.

    Parameters
    ----------
    record : TaskRecord
        The task.
    get_text : callable
        Returns the whole text, once the task is over.
    """

    record: TaskRecord
    get_text: Callable[[], str]


def tail(tasks: Sequence[FollowedTask], count: int, read: Read) -> list[str]:
    """Return the last lines that tasks have written so far, in the order of the tasks.

    Parameters
    ----------
    tasks : sequence of FollowedTask
        The tasks.
    count : int
        The number of lines.
    read : callable
        Reads from a position on what a running task has written.
    """
    lines: list[str] = []
    for task in reversed(tasks):
        if len(lines) >= count:
            break
        lines = _last_lines(task, count - len(lines), read) + lines
    return lines


def _last_lines(task: FollowedTask, count: int, read: Read) -> list[str]:
    record = task.record
    if record.phase < Phase.RUNNING:
        return []
    if not record.over:
        part = read(record, -_MAX_TAIL_BYTES, _MAX_TAIL_BYTES)
        if part is not None:
            lines = _decode(part.data).split("\n")
            if not lines[-1]:
                lines.pop()
            # The first line is not whole, unless the data begins with it.
            return lines[1 if part.begin and len(lines) > 1 else 0 :][-count:]
        if not record.over:
            return []
    text = task.get_text()
    return text.split("\n")[-count:] if text else []


def follow(tasks: Sequence[FollowedTask], dispatcher: Dispatcher, read: Read) -> Iterator[str]:
    """Yield the lines of tasks as they are written, until all tasks are over.

    Parameters
    ----------
    tasks, read
        See `tail`.
    dispatcher : Dispatcher
        The dispatcher of the client that has made the tasks.
    """
    outcomes = dispatcher.outcomes
    followers = [_Follower(task, dispatcher) for task in tasks]
    interval = _MIN_INTERVAL_SECONDS
    while followers:
        wrote = False
        # The phases on which the rest of this round depends: they may change meanwhile.
        phases = [(follower.record, follower.record.phase) for follower in followers]
        for follower, (_, phase) in zip(list(followers), phases, strict=True):
            if phase >= Phase.DONE:
                followers.remove(follower)
                yield from follower.rest()
            elif phase == Phase.RUNNING:
                for line in follower.read_more(read):
                    wrote = True
                    yield line
        if not followers:
            return
        if wrote:
            interval = _MIN_INTERVAL_SECONDS
        else:
            interval = min(interval * _INTERVAL_FACTOR, _MAX_INTERVAL_SECONDS)
        runs = any(phase == Phase.RUNNING for _, phase in phases)
        outcomes.wait(
            lambda phases=phases: any(record.phase != phase for record, phase in phases),  # type: ignore[misc]
            interval if runs else None,
        )


class _Follower:
    """How much of the output of one task has been read."""

    def __init__(self, task: FollowedTask, dispatcher: Dispatcher) -> None:
        self.record = task.record
        self._get_text = task.get_text
        self._dispatcher = dispatcher
        #: The worker deaths before the attempt that is read, and the attempt.
        self._attempt = 0, 0
        self._position = 0
        #: The lines of this attempt that were yielded, and the beginning of the next one.
        self._lines: Counter[str] = Counter()
        self._line = b""

    def read_more(self, read: Read) -> list[str]:
        """Return the lines that the task has written since the last call."""
        part = read(self.record, self._position, _MAX_BYTES)
        if part is None:
            return []
        attempt = self._dispatcher.table.deaths[self.record], part.attempt
        if attempt != self._attempt:
            is_first = self._attempt == (0, 0)
            self._attempt, self._position, self._line = attempt, 0, b""
            self._lines.clear()
            if not is_first:
                part = read(self.record, 0, _MAX_BYTES)
                if part is None or part.attempt != attempt[1]:
                    return []
        if part.begin > self._position:
            self._line = b""
        self._position = part.begin + len(part.data)
        data, newline, self._line = (self._line + part.data).rpartition(b"\n")
        if not newline and len(self._line) > _MAX_BYTES:
            data, newline, self._line = self._line, b"\n", b""
        if not newline:
            return []
        lines = _decode(data).split("\n")
        self._lines.update(lines)
        return lines

    def rest(self) -> list[str]:
        """Return the lines of the task, which is over, that were not yielded."""
        text = self._get_text()
        if not text:
            return []
        if not self._is_last_attempt():
            return text.split("\n")
        if isinstance(text, RankedText):
            return [line for line in text.split("\n") if not self._take(line)]
        dropped = _DROPPED.search(text)
        if dropped is None:
            # What was read is the beginning of the text, and the last line was not yielded.
            data = text.encode("utf-8", "replace")[self._position - len(self._line) :]
            return _decode(data).split("\n") if data else []
        tail = text[dropped.end() + 1 :].encode("utf-8", "replace")
        size = len(text[: dropped.start()].encode("utf-8", "replace")) - 1
        size += int(dropped[1]) + len(tail)
        missing = size - (self._position - len(self._line))
        if missing <= 0:
            return []
        if missing > len(tail):
            return _decode(text[dropped.start() :].encode("utf-8", "replace")).split("\n")
        return _decode(tail[len(tail) - missing :]).split("\n")

    def _is_last_attempt(self) -> bool:
        """Return whether what was read is of the attempt that the task has ended with."""
        measured = self.record.measured
        if measured is None or self._attempt == (0, 0):
            return False
        attempts = measured.of(self.record.member).attempts
        return self._attempt == (self._dispatcher.table.deaths[self.record], attempts)

    def _take(self, line: str) -> bool:
        """Return whether a line was yielded; each is counted once."""
        if not self._lines[line]:
            return False
        self._lines[line] -= 1
        return True


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")

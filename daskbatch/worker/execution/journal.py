"""Keeps in a file what a slot has done, for others to read if its worker is killed.

Does not know what becomes of it: the file outlives the process, and that is all.

The file is written through memory that is mapped to it, which costs no system call and
lasts when the process is killed at any moment. There are two, used by turns, so that the
older blocks are dropped at last: what was done long ago has been reported long since.
"""

from __future__ import annotations

import contextlib
import mmap
import pickle
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from daskbatch.worker.execution.block import OutcomeReport

#: How large each of the two files may become. Bytes.
SIZE = 4 << 20

#: How the directories begin in which workers keep their journals.
PREFIX = "daskbatch-"

#: What has not been touched for so long has been left behind. Seconds.
_OLD = 7 * 24 * 3600.0

#: At the start of a file: which turn it is, how many bytes are used, the member that runs.
_HEADER = struct.Struct("<QQi")
_RUNNING = struct.Struct("<i")
_USED = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_START = 32

#: An outcome as it is in a journal: member, status, value, seconds, stdout and stderr.
Entry = tuple[int, int, bytes | None, float, tuple[str, str] | None]


class Journal:
    """What one slot does, block after block.

    Parameters
    ----------
    path : Path
        The files are named after it.
    value_limit : int
        Larger values are not kept, but that they were returned is.
    block : (str, int), optional
        Go on with what another process has begun there: with this block.
    """

    def __init__(self, path: Path, value_limit: int, block: tuple[str, int] | None = None) -> None:
        self.path = path
        self.value_limit = self._limit = value_limit
        self._maps = []
        for end in "ab":
            with open(f"{path}-{end}.journal", "w+b" if block is None else "r+b") as file:
                if block is None:
                    file.truncate(SIZE)
                self._maps.append(mmap.mmap(file.fileno(), SIZE))
        self._turn = 0
        self._map = self._maps[0]
        self._used = _START
        self._block: tuple[str, int] = block or ("", -1)
        if block is not None:
            self.take_up()
            return
        _HEADER.pack_into(self._map, 0, self._turn, self._used, -1)

    def to_take_up(self) -> tuple[str, int]:
        """Give what another process needs to go on with it, for its own `Journal`."""
        return str(self.path), self.value_limit

    def take_up(self) -> None:
        """Go on behind what another process has written, which writes no more."""
        self._turn, self._used, _ = max(_HEADER.unpack_from(each, 0) for each in self._maps)
        self._map = self._maps[self._turn % 2]
        if self._used == _START:
            # It may have been killed when it had just turned to this file.
            self._append(self._block)

    def begin(self, topic: str, block: int) -> None:
        """Write down that a block begins."""
        self._block = topic, block
        self._append(self._block)

    def run(self, member: int) -> None:
        """Write down which member runs now; -1 for none."""
        _RUNNING.pack_into(self._map, 16, member)

    def over(self, entry: Entry) -> None:
        """Write down what became of a member."""
        member, status, value, seconds, output = entry
        if value is not None and len(value) > self._limit:
            value = None
        if output is not None and sum(map(len, output)) > self._limit:
            output = None
        self._append((member, status, value, seconds, output))

    def _append(self, what: object) -> None:
        data = pickle.dumps(what, 5)
        if self._used + _LENGTH.size + len(data) > SIZE:
            running = _RUNNING.unpack_from(self._map, 16)[0]
            self._turn += 1
            self._map = self._maps[self._turn % 2]
            self._used = _START
            _HEADER.pack_into(self._map, 0, self._turn, self._used, running)
            if what != self._block:
                self._append(self._block)
        start = self._used
        _LENGTH.pack_into(self._map, start, len(data))
        start += _LENGTH.size
        self._map[start : start + len(data)] = data
        self._used = start + len(data)
        # Last, since only what is counted as used is ever read.
        _USED.pack_into(self._map, 8, self._used)

    def close(self) -> None:
        """Let go of the files."""
        for each in self._maps:
            each.close()


@dataclass(slots=True)
class Trace:
    """What a journal tells of a block.

    Parameters
    ----------
    topic, block
        Which block it is.
    entries : dict
        The outcomes of members.
    running : int
        The member that ran last, or -1.
    """

    topic: str
    block: int
    entries: dict[int, Entry] = field(default_factory=dict)
    running: int = -1

    def as_report(self) -> OutcomeReport:
        """Return the entries as a report; it does not say how long the members ran."""
        members = sorted(self.entries)
        start, stop = members[0], members[-1] + 1
        assert len(members) == stop - start, "a slot writes its outcomes down in order"
        entries = [self.entries[member] for member in members]
        return OutcomeReport(
            self.block,
            start,
            bytes(entry[1] for entry in entries),
            [entry[2] for entry in entries],
            bytes(4 * len(entries)),
            {entry[0]: entry[4] for entry in entries if entry[4] is not None},
        )


def read_journals(directory: Path) -> list[Trace]:
    """Read what the slots of a worker that is no more have done."""
    files: dict[str, list[tuple[int, int, bytes]]] = {}
    for path in sorted(directory.glob("*.journal")):
        content = path.read_bytes()
        if len(content) >= _START:
            turn, used, running = _HEADER.unpack_from(content)
            if used:
                slot = path.name.rpartition("-")[0]
                files.setdefault(slot, []).append((turn, running, content[:used]))
    traces: dict[tuple[str, int], Trace] = {}
    for turns in files.values():
        trace = None
        for _, _, content in sorted(turns):
            for record in _records(content):
                if len(record) == 2:
                    trace = traces.setdefault(record, Trace(*record))
                elif trace is not None:
                    trace.entries[record[0]] = record
        if trace is not None:
            trace.running = sorted(turns)[-1][1]
    return list(traces.values())


def _records(content: bytes) -> Iterator[tuple]:  # type: ignore[type-arg]
    start = _START
    while start + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, start)
        start += _LENGTH.size
        yield pickle.loads(content[start : start + length])
        start += length


def remove(directory: Path) -> None:
    """Delete the journals of a worker, and their directory; no other one."""
    if directory.name.startswith(PREFIX):
        shutil.rmtree(directory, ignore_errors=True)


def remove_old(scratch: Path) -> None:
    """Delete journals that were left where nobody was left to delete them."""
    for directory in scratch.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if (
                time.time()
                - max(each.stat().st_mtime for each in [directory, *directory.iterdir()])
                > _OLD
            ):
                remove(directory)

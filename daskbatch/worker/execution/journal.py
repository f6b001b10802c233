"""Keeps a record in files of what a slot has done, to be read if its worker is killed.

The worker writes through memory that is mapped to a file. That costs no system call, and what
is written stays if the process is killed at any moment. There are two files, used by turns, so
that old blocks are dropped at some time: the worker has reported them long before.

The space of the files is allocated before the process writes to it: it would be killed (SIGBUS) if
it wrote through a mapping and the disk were full. So each file begins small, and grows while there
is space.

A file is a header and then records, each a length and a pickle: `(topic, block)` where a block
begins, and an `Entry` for each member of it that is over.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from daskbatch.memory.file_space import allocate
from daskbatch.worker.execution.block import OutcomeReport
from daskbatch.worker.execution.measures import UNKNOWN_CPU, Measures, MemberDetails

#: The size of each of the two files: of the file system's space at first, and at most.
_MIN_FILE_BYTES, _FILE_BYTES = 512 << 10, 4 << 20

#: The header: the number of the turn, how many bytes are used, the member that runs, and how many
#: bytes have been allocated. Then the two parts of it that are changed alone, with their offsets,
#: and the length before a record.
_HEADER = struct.Struct("<QQiQ")
_USED, _USED_OFFSET = struct.Struct("<Q"), 8
_RUNNING, _RUNNING_OFFSET = struct.Struct("<i"), 16
_ALLOCATED, _ALLOCATED_OFFSET = struct.Struct("<Q"), 20
_LENGTH = struct.Struct("<I")

#: Where the records begin.
_RECORDS_OFFSET = 32

#: An outcome in a journal: member, status, value, seconds, (stdout, stderr), when it ended, its
#: processor time, and details.
Entry = tuple[
    int,
    int,
    bytes | None,
    float,
    tuple[str, str] | None,
    float,
    float,
    MemberDetails | None,
]

#: The last fields of an outcome of which nothing was measured.
NOT_MEASURED = (0.0, UNKNOWN_CPU, None)


class Journal:
    """What one slot does, block after block. Used by one thread at a time.

    Parameters
    ----------
    path : Path
        The files are named after it.
    value_limit : int
        A larger value or output is left out of the member's entry. Bytes.
    block : (str, int), optional
        The topic and number of the block that another process has begun in these files, and
        this one continues; else the files are new.
    first_member : int
        See below.

    Attributes
    ----------
    first_member : int
        The number that the first member of the run has in the block: numbers of the run begin at 0.

    Raises
    ------
    OSError
        The files cannot be made, for example because the disk is full.
    """

    def __init__(
        self,
        path: Path,
        value_limit: int,
        block: tuple[str, int] | None = None,
        first_member: int = 0,
    ) -> None:
        self.first_member = first_member
        self._path = path
        self._value_limit = value_limit
        self._maps: list[mmap.mmap] = []
        for turn in range(2):
            with open(self._file_path(turn), "w+b" if block is None else "r+b") as file:
                if block is None:
                    # Whatever mask for new files a task has set, another process must open it.
                    os.fchmod(file.fileno(), 0o600)
                    self._allocate(file.fileno(), 0, _MIN_FILE_BYTES)
                    file.truncate(_FILE_BYTES)
                self._maps.append(mmap.mmap(file.fileno(), _FILE_BYTES))
        self._turn = 0
        self._map = self._maps[0]
        self._used = _RECORDS_OFFSET
        #: How many bytes of the file of this turn have been allocated.
        self._allocated = _MIN_FILE_BYTES
        self._block = ("", -1)
        if block is not None:
            self.continue_block(block, first_member)
            return
        for each in self._maps:
            _HEADER.pack_into(each, 0, 0, 0, -1, _MIN_FILE_BYTES)
        _HEADER.pack_into(self._map, 0, self._turn, self._used, -1, self._allocated)

    def _file_path(self, turn: int) -> str:
        return f"{self._path}-{'ab'[turn % 2]}.journal"

    def _allocate(self, file: int, begin: int, end: int) -> None:
        """Allocate a part of a new file; delete both files if that fails."""
        try:
            allocate(file, begin, end)
        except OSError:
            self.close()
            for turn in range(2):
                with contextlib.suppress(OSError):
                    os.unlink(self._file_path(turn))
            raise

    def location(self) -> tuple[str, int, int]:
        """Return the path, the limit and the first member, for the `Journal` of another process."""
        return str(self._path), self._value_limit, self.first_member

    def continue_block(self, block: tuple[str, int], first_member: int) -> None:
        """Continue a block that another process has begun in these files.

        Parameters
        ----------
        block, first_member
            See the class.
        """
        self._block = block
        self.first_member = first_member
        self.resume()

    def resume(self) -> None:
        """Continue after the records of another process, which no longer writes."""
        headers = [_HEADER.unpack_from(each, 0) for each in self._maps]
        self._turn, self._used, _, self._allocated = max(headers)
        self._map = self._maps[self._turn % 2]
        if self._used == _RECORDS_OFFSET:
            # That process may have been killed just after it had turned to this file.
            self._append(self._block)

    def begin(self, topic: str, block: int) -> None:
        """Record that a block begins."""
        self._block = topic, block
        self._append(self._block)

    def set_running(self, member: int) -> None:
        """Record which member runs now; -1 for none."""
        if member >= 0:
            member += self.first_member
        _RUNNING.pack_into(self._map, _RUNNING_OFFSET, member)

    def record(self, entry: Entry) -> None:
        """Record the outcome of a member."""
        member, status, value, seconds, output, ended, cpu, details = entry
        if value is not None and len(value) > self._value_limit:
            value = None
        if output is not None and sum(map(len, output)) > self._value_limit:
            output = None
        member += self.first_member
        self._append((member, status, value, seconds, output, ended, cpu, details))

    def _append(self, record: object) -> None:
        data = pickle.dumps(record, 5)
        end = self._used + _LENGTH.size + len(data)
        if end > self._allocated and not self._grow(end):
            running = _RUNNING.unpack_from(self._map, _RUNNING_OFFSET)[0]
            self._turn += 1
            self._map = self._maps[self._turn % 2]
            self._used = _RECORDS_OFFSET
            self._allocated = _HEADER.unpack_from(self._map, 0)[-1]
            _HEADER.pack_into(self._map, 0, self._turn, self._used, running, self._allocated)
            if record != self._block:
                self._append(self._block)
        start = self._used
        _LENGTH.pack_into(self._map, start, len(data))
        start += _LENGTH.size
        self._map[start : start + len(data)] = data
        self._used = start + len(data)
        # Last, since a reader reads only the bytes that count as used.
        _USED.pack_into(self._map, _USED_OFFSET, self._used)

    def _grow(self, end: int) -> bool:
        """Allocate more of this turn's file; False if it is as large as it may be, or can be."""
        size = self._allocated
        while size < end:
            size *= 2
        if size > _FILE_BYTES:
            return False
        try:
            with open(self._file_path(self._turn), "r+b") as file:
                allocate(file.fileno(), self._allocated, size)
        except OSError:
            return False
        self._allocated = size
        _ALLOCATED.pack_into(self._map, _ALLOCATED_OFFSET, size)
        return True

    def close(self) -> None:
        """Close the files."""
        for each in self._maps:
            each.close()


@dataclass(slots=True)
class JournaledBlock:
    """The record of a block in a journal.

    Parameters
    ----------
    topic, block : str, int
        The client and the number of the block.
    entries : dict
        The outcomes, by member.
    running : int
        The member that ran last, or -1.
    """

    topic: str
    block: int
    entries: dict[int, Entry] = field(default_factory=dict)
    running: int = -1

    def as_report(self, worker: str = "", pid: int = 0) -> OutcomeReport:
        """Return the entries as a report.

        Parameters
        ----------
        worker, pid : str, int
            The worker's address, and its process.
        """
        members = sorted(self.entries)
        start, stop = members[0], members[-1] + 1
        assert len(members) == stop - start, "a slot records its outcomes in order"
        entries = [self.entries[member] for member in members]
        return OutcomeReport(
            self.block,
            start,
            bytes(entry[1] for entry in entries),
            [entry[2] for entry in entries],
            array("f", [entry[3] for entry in entries]).tobytes(),
            {entry[0]: entry[4] for entry in entries if entry[4] is not None},
            Measures(
                worker,
                pid,
                array("d", [entry[5] for entry in entries]).tobytes(),
                array("f", [entry[6] for entry in entries]).tobytes(),
                {i: entry[7] for i, entry in enumerate(entries) if entry[7] is not None},
                start,
            ),
        )


def read_journals(directory: Path) -> list[JournaledBlock]:
    """Read what the slots of a dead worker have done."""
    files: dict[str, list[tuple[int, int, bytes]]] = {}
    for path in sorted(directory.glob("*.journal")):
        content = path.read_bytes()
        if len(content) >= _RECORDS_OFFSET:
            turn, used, running, _ = _HEADER.unpack_from(content)
            if used:
                slot = path.name.rpartition("-")[0]
                files.setdefault(slot, []).append((turn, running, content[:used]))
    blocks: dict[tuple[str, int], JournaledBlock] = {}
    for turns in files.values():
        block = None
        for _, _, content in sorted(turns):
            for record in _records(content):
                if len(record) == 2:
                    block = blocks.setdefault(record, JournaledBlock(*record))
                elif block is not None:
                    block.entries[record[0]] = record
        if block is not None:
            block.running = sorted(turns)[-1][1]
    return list(blocks.values())


def _records(content: bytes) -> Iterator[tuple]:  # type: ignore[type-arg]
    start = _RECORDS_OFFSET
    while start + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, start)
        start += _LENGTH.size
        yield pickle.loads(content[start : start + length])
        start += length

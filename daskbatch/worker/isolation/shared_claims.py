"""Lets two processes share the claims on the members of a block, in a file that both have mapped.

One of the processes may be killed at any moment. Its lock on the file ends with it, so that the
file cannot stay locked. Safe for any number of threads of both processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from array import array
from collections.abc import Iterable, Iterator
from time import monotonic, perf_counter, sleep

from daskbatch.memory.file_space import allocate
from daskbatch.worker.execution.claims import RUN
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.isolation.unnamed_file import new_file

#: The byte of a member that is not claimed; of one that was claimed to be run. Any other
#: byte is the status that the member was given, plus 1.
_FREE, _BEGUN = 0, 255

#: How long to wait for the lock. Only if a signal has stopped its holder, it takes longer.
_LOCK_TIMEOUT_SECONDS = 1.0

#: The first and the longest pause between two attempts to get the lock.
_MIN_LOCK_POLL_SECONDS, _MAX_LOCK_POLL_SECONDS = 1e-5, 0.001

#: The unit of `kept_bytes` in the file, where an integer has 32 bits.
_KEPT_UNIT = 1024

#: The positions of the integers, which begin the file; then where in the file the time, the two
#: sizes, and the bytes of the members begin.
_RUNNING, _HALT, _ATTEMPT, _CALLED, _WAITS, _SLOT, _KEPT, _CLOSED = range(8)
_TIMES_OFFSET, _SIZES_OFFSET, _MEMBERS_OFFSET = 32, 40, 64


class BlockHalted(BaseException):
    """Raised where a member would begin after `SharedClaims.halt`."""


class SharedClaims:
    """Claims among the threads of two processes; a `Claims`.

    The child runs the members, and the worker watches it. What decides whether a member is run
    or revoked, or that no member may begin any longer, is one short section of code under a lock
    on the file. C code that does not let other threads run cannot be in such a section, so
    neither process can block the other. Safe for any number of threads of both processes; but
    only one thread of the child may call the methods that the child calls.

    Parameters
    ----------
    count : int
        The number of members.
    file : int, optional
        The file's descriptor, from the other process; this object closes it.

    Attributes
    ----------
    file : int
        The file's descriptor; -1 once it is closed.
    """

    def __init__(self, count: int, file: int | None = None) -> None:
        self.file = new_file() if file is None else file
        self._lock = threading.Lock()
        self._lock_timeout = _LOCK_TIMEOUT_SECONDS
        if file is None:
            try:
                allocate(self.file, 0, _MEMBERS_OFFSET + count)
            except OSError:
                os.close(self.file)
                raise
        whole = memoryview(mmap.mmap(self.file, _MEMBERS_OFFSET + count))
        self._members = whole[_MEMBERS_OFFSET:]
        self._integers = whole[:_TIMES_OFFSET].cast("i")
        self._times = whole[_TIMES_OFFSET:_SIZES_OFFSET].cast("d")
        self._sizes = whole[_SIZES_OFFSET:_MEMBERS_OFFSET].cast("q")
        if file is None:
            self._integers[_RUNNING] = -1
            self._integers[_SLOT] = 1

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; its contents can still be read from this object."""
        with self._lock:
            if self.file < 0:
                return
            # A thread that reads at this moment has the old views, which live until it is done.
            self._members = memoryview(bytearray(self._members))
            self._integers = memoryview(array("i", self._integers))
            self._times = memoryview(array("d", self._times))
            self._sizes = memoryview(array("q", self._sizes))
            os.close(self.file)
            self.file = -1

    def close_in_forked_process(self) -> None:
        """Close the file in a forked process; another thread may have had the lock."""
        self._lock = threading.Lock()
        self.close()

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the lock; yields False if it could not be acquired in time."""
        if not self._acquire():
            yield False
            return
        try:
            yield True
        finally:
            self._release()

    def _acquire(self) -> bool:
        end = monotonic() + self._lock_timeout
        if not self._lock.acquire(timeout=max(self._lock_timeout, 0.001)):
            return False
        pause = _MIN_LOCK_POLL_SECONDS
        while self.file >= 0:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if monotonic() > end:
                    # The next attempt is not likely to succeed either: so it does not wait.
                    self._lock_timeout = 0.0
                    self._lock.release()
                    return False
            sleep(pause)
            pause = min(2 * pause, _MAX_LOCK_POLL_SECONDS)
        self._lock_timeout = _LOCK_TIMEOUT_SECONDS
        return True

    def _release(self) -> None:
        if self.file >= 0:
            fcntl.lockf(self.file, fcntl.LOCK_UN)
        self._lock.release()

    # -- written by the child, which runs members -----------------------------------------

    def claim(self, member: int) -> int:
        """Claim a member to run it.

        Returns
        -------
        int
            RUN, or the status that the member was given before.

        Raises
        ------
        BlockHalted
            `halt` was called.
        """
        # No lock for a member that has a status: that does not change.
        if self.has_status(member):
            return self._members[member] - 1
        with self._lock:
            fcntl.lockf(self.file, fcntl.LOCK_EX)
            try:
                if self.has_status(member):
                    return self._members[member] - 1
                self._require_not_halted()
                self._members[member] = _BEGUN
                self._integers[_RUNNING] = member
                self._begin_attempt(0)
            finally:
                fcntl.lockf(self.file, fcntl.LOCK_UN)
        return RUN

    def has_status(self, member: int) -> bool:
        """Say whether a member was given a status, and will not be run."""
        return self._members[member] not in (_FREE, _BEGUN)

    def begin_retry(self) -> None:
        """Record that the running member is tried again.

        Raises
        ------
        BlockHalted
            `halt` was called.
        """
        with self._lock:
            # The worker holds the lock for moments only, so this waits without a limit.
            fcntl.lockf(self.file, fcntl.LOCK_EX)
            try:
                self._require_not_halted()
                self._begin_attempt(self._integers[_ATTEMPT] + 1)
            finally:
                fcntl.lockf(self.file, fcntl.LOCK_UN)

    def mark_called(self) -> None:
        """Record that the member's function is called now; it has been loaded."""
        self._times[0] = perf_counter()
        self._integers[_CALLED] = 1

    def _begin_attempt(self, attempt: int) -> None:
        self._integers[_ATTEMPT] = attempt
        self._integers[_CALLED] = 0
        self._times[0] = perf_counter()

    def _require_not_halted(self) -> None:
        if self._integers[_HALT]:
            raise BlockHalted

    # -- the worker, which watches --------------------------------------------------------

    def revoke(self, members: Iterable[int], status: Status) -> list[int]:
        """Give a status to those members that have not been claimed yet.

        Returns
        -------
        list of int
            The members that have begun; if the lock could not be acquired, also those that may
            have begun.
        """
        with self.locked() as held:
            found = self._members
            if not held:
                return [member for member in members if found[member] in (_FREE, _BEGUN)]
            begun = []
            for member in members:
                if found[member] == _FREE:
                    found[member] = status + 1
                elif found[member] == _BEGUN:
                    begun.append(member)
            return begun

    def given(self, member: int) -> int:
        """Return the status that a member was given; RUN if it has begun; else DONE."""
        found = self._members[member]
        return Status.DONE if found == _FREE else RUN if found == _BEGUN else found - 1

    def has_runnable(self, start: int) -> bool:
        """Say whether one of the members from `start` on may still be run."""
        found = bytes(self._members[start:])
        return _FREE in found or _BEGUN in found

    def halt(self) -> None:
        """Let no other member begin; the caller holds the lock."""
        self._integers[_HALT] = 1

    def reset(self) -> None:
        """Prepare for another child that continues the block, while there is none."""
        self._integers[_HALT] = 0
        self._integers[_WAITS] = 0
        self._integers[_CLOSED] = 0
        self._begin_attempt(0)

    @property
    def halted(self) -> bool:
        """Whether no other member may begin."""
        return bool(self._integers[_HALT])

    @property
    def running(self) -> int:
        """The member that began last, or -1."""
        return self._integers[_RUNNING]

    @property
    def attempt(self) -> int:
        """The number of times that its child has tried it before."""
        return self._integers[_ATTEMPT]

    @property
    def called(self) -> bool:
        """Whether its function has been called."""
        return bool(self._integers[_CALLED])

    @property
    def began(self) -> float:
        """When its function was called; before that, when it began. `perf_counter`."""
        return self._times[0]

    @property
    def has_closed_files(self) -> bool:
        """Whether the running member has closed files that its process needs; set by the child."""
        return bool(self._integers[_CLOSED])

    @has_closed_files.setter
    def has_closed_files(self, closed: bool) -> None:
        self._integers[_CLOSED] = closed

    # -- the slot that the running member computes on -------------------------------------

    @property
    def is_waiting(self) -> bool:
        """Whether the running member waits, and does not need its slot; set by the child."""
        return bool(self._integers[_WAITS])

    @is_waiting.setter
    def is_waiting(self, waiting: bool) -> None:
        self._integers[_WAITS] = waiting

    @property
    def has_slot(self) -> bool:
        """Whether it has its slot; set by the worker."""
        return bool(self._integers[_SLOT])

    @has_slot.setter
    def has_slot(self, has: bool) -> None:
        self._integers[_SLOT] = has

    # -- memory that no member uses --------------------------------------------------------

    @property
    def kept_bytes(self) -> int:
        """How much memory the child had mapped for later members when one began; set by it."""
        return self._integers[_KEPT] * _KEPT_UNIT

    @kept_bytes.setter
    def kept_bytes(self, count: int) -> None:
        self._integers[_KEPT] = count // _KEPT_UNIT

    # -- output ---------------------------------------------------------------------------

    @property
    def output_starts(self) -> tuple[int, int]:
        """Where its output begins in the files of stdout and stderr; set by the child."""
        return self._sizes[0], self._sizes[1]

    @output_starts.setter
    def output_starts(self, starts: tuple[int, int]) -> None:
        self._sizes[0], self._sizes[1] = starts

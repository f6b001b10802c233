"""Claims on the members of a block that two processes share: a file that both have mapped.

Does not know what runs the members, nor that one of the processes may be killed: a lock on
a file ends with the process that holds it, so that it cannot be left locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import threading
from array import array
from collections.abc import Iterable, Iterator
from time import monotonic, perf_counter, sleep

from daskbatch.worker.execution.claims import RUN
from daskbatch.worker.execution.outcome import Status

#: A byte for each member: nobody has it; whoever runs it has it; else its status and one.
_FREE, _BEGUN = 0, 255

#: How long the lock is waited for: longer only if who has it was stopped by a signal. Seconds.
_PATIENCE = 1.0

# The file: some integers, a time, two sizes, and then the members.
_RUNNING, _HALT, _ATTEMPT, _CALLED, _WAITS, _SLOT = range(6)
_TIMES, _SIZES, _MEMBERS = 32, 40, 64


class Halted(BaseException):
    """Raised where a member would be begun, though there is nothing more to be begun here."""


class SharedClaims:
    """Claims among the threads of two processes: one that runs members, and one that watches.

    Implements `progress.Claims`. Whatever decides who has a member, or that nothing more
    shall be begun, is one short section under a lock on the file, which C code that does not
    let other threads run cannot be in.

    Parameters
    ----------
    count : int
        How many members there are.
    file : int, optional
        The descriptor of the file, from the other process; it belongs to the board then.
    """

    def __init__(self, count: int, file: int | None = None) -> None:
        self.file = new_file() if file is None else file
        self._lock = threading.Lock()
        self._patience = _PATIENCE
        if file is None:
            os.ftruncate(self.file, _MEMBERS + count)
        whole = memoryview(mmap.mmap(self.file, _MEMBERS + count))
        self._members = whole[_MEMBERS:]
        self._integers = whole[:_TIMES].cast("i")
        self._times = whole[_TIMES:_SIZES].cast("d")
        self._sizes = whole[_SIZES:_MEMBERS].cast("q")
        if file is None:
            self._integers[_RUNNING] = -1
            self._integers[_SLOT] = 1

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; what was written there can still be asked for."""
        with self._lock:
            if self.file < 0:
                return
            # Who reads at this moment has the old ones, which go when nobody has them.
            self._members = memoryview(bytearray(self._members))
            self._integers = memoryview(array("i", self._integers))
            self._times = memoryview(array("d", self._times))
            self._sizes = memoryview(array("q", self._sizes))
            os.close(self.file)
            self.file = -1

    def forget(self) -> None:
        """Let the file go in a process that was forked, by whichever thread."""
        self._lock = threading.Lock()
        self.close()

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the lock; gives False if it cannot be had in time."""
        if not self._acquire():
            yield False
            return
        try:
            yield True
        finally:
            self._release()

    def _acquire(self) -> bool:
        deadline = monotonic() + self._patience
        if not self._lock.acquire(timeout=max(self._patience, 0.001)):
            return False
        pause = 1e-5
        while self.file >= 0:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if monotonic() > deadline:
                    # It will hardly be different the next time.
                    self._patience = 0.0
                    self._lock.release()
                    return False
            sleep(pause)
            pause = min(2 * pause, 0.001)
        self._patience = _PATIENCE
        return True

    def _release(self) -> None:
        if self.file >= 0:
            fcntl.lockf(self.file, fcntl.LOCK_UN)
        self._lock.release()

    # -- who runs members -----------------------------------------------------------------

    def claim(self, member: int) -> int:
        """Claim a member to run it; returns RUN, or the status that it was given before.

        Raises `Halted` if `halt` was called.
        """
        # A status that was given stays.
        if self.is_given(member):
            return self._members[member] - 1
        with self._lock:
            fcntl.lockf(self.file, fcntl.LOCK_EX)
            try:
                if self.is_given(member):
                    return self._members[member] - 1
                self._may_begin()
                self._members[member] = _BEGUN
                self._integers[_RUNNING] = member
                self._begin(0)
            finally:
                fcntl.lockf(self.file, fcntl.LOCK_UN)
        return RUN

    def is_given(self, member: int) -> bool:
        """Say whether a member was given a status, and will not be run."""
        return self._members[member] not in (_FREE, _BEGUN)

    def again(self) -> None:
        """Say that the member that runs is tried again."""
        with self._lock:
            # Who watches has it for moments only: this may wait.
            fcntl.lockf(self.file, fcntl.LOCK_EX)
            try:
                self._may_begin()
                self._begin(self._integers[_ATTEMPT] + 1)
            finally:
                fcntl.lockf(self.file, fcntl.LOCK_UN)

    def calling(self) -> None:
        """Say that the member's function is called now; before, it was loaded."""
        self._times[0] = perf_counter()
        self._integers[_CALLED] = 1

    def _begin(self, attempt: int) -> None:
        self._integers[_ATTEMPT] = attempt
        self._integers[_CALLED] = 0
        self._times[0] = perf_counter()

    def _may_begin(self) -> None:
        if self._integers[_HALT]:
            raise Halted

    # -- who watches ----------------------------------------------------------------------

    def revoke(self, members: Iterable[int], status: Status) -> list[int]:
        """Give members that are not claimed yet a status; returns those that have begun."""
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
        """Say which status a member was given."""
        found = self._members[member]
        return Status.DONE if found == _FREE else RUN if found == _BEGUN else found - 1

    def has_begun(self, member: int) -> bool:
        """Say whether a member was claimed to be run."""
        return self._members[member] == _BEGUN

    def is_free(self, start: int) -> bool:
        """Say whether a member from some on may still be run."""
        found = bytes(self._members[start:])
        return _FREE in found or _BEGUN in found

    def halt(self) -> None:
        """Have nothing more begun; with the lock held."""
        self._integers[_HALT] = 1

    def reset(self) -> None:
        """Make ready for another process that goes on, once there is none."""
        self._integers[_HALT] = 0
        self._integers[_WAITS] = 0
        self._begin(0)

    @property
    def halted(self) -> bool:
        """Whether nothing more is begun."""
        return bool(self._integers[_HALT])

    @property
    def running(self) -> int:
        """The member that was begun last, or -1."""
        return self._integers[_RUNNING]

    @property
    def attempt(self) -> int:
        """How often it was tried before, by the process that runs it."""
        return self._integers[_ATTEMPT]

    @property
    def called(self) -> bool:
        """Whether its function was called yet."""
        return bool(self._integers[_CALLED])

    @property
    def began(self) -> float:
        """When its function was called, or, before that, when it was begun."""
        return self._times[0]

    # -- the slot that the member computes on ---------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether the member that runs waits, and has no use for its slot; it says so itself."""
        return bool(self._integers[_WAITS])

    @waits.setter
    def waits(self, waits: bool) -> None:
        self._integers[_WAITS] = waits

    @property
    def has_slot(self) -> bool:
        """Whether it has the slot; who watches says so."""
        return bool(self._integers[_SLOT])

    @has_slot.setter
    def has_slot(self, has: bool) -> None:
        self._integers[_SLOT] = has

    # -- both -----------------------------------------------------------------------------

    @property
    def marks(self) -> tuple[int, int]:
        """Where the member's output begins in the files of stdout and stderr."""
        return self._sizes[0], self._sizes[1]

    @marks.setter
    def marks(self, marks: tuple[int, int]) -> None:
        self._sizes[0], self._sizes[1] = marks


def new_file() -> int:
    """Make a file that has no name, in memory where there is such a thing."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("daskbatch")
    file, path = tempfile.mkstemp(prefix="daskbatch-")
    os.unlink(path)
    return file

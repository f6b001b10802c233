"""The directory of a worker's journals: where it is, whether it is complete, and who removes it.

It is below the worker's local directory, if the file system there keeps the space that a journal
allocates; else in the shared memory of the host, as a file in memory keeps its space.

The directory has a mark that says that the journals are complete. Without the mark, nobody
concludes from the journals that a block had not begun.

A worker holds a lock on its directory, which ends with the worker. A worker that begins removes
what others left behind, in two steps: it notes that nobody holds the lock, and the worker that sees
such a note some minutes later removes the directory. Until then a nanny may still read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

from daskbatch.memory.file_systems import keeps_allocated_space
from daskbatch.worker.execution.journal import JournaledBlock, read_journals

#: How the names of the directories begin in which workers keep their journals, and no others.
_PREFIX = "daskbatch-journals-"

#: The files in a directory that say: the journals are complete; the worker was seen to be dead.
_COMPLETE, _ABANDONED = "complete", "abandoned"

#: How long a nanny may take to read what a dead worker has left.
_READ_TIMEOUT_SECONDS = 600.0

#: How a directory is opened to lock it.
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW

#: Where journals are if the local directory does not keep what was allocated.
_SHARED_MEMORY = Path("/dev/shm")


class JournalDirectory:
    """The directory of the journals of a worker. Used by one thread at a time.

    Parameters
    ----------
    scratch : Path
        The directory in which it is made, if that keeps the space that was allocated for a file.
    name : str
        A name of the worker that no other one has.

    Attributes
    ----------
    path : Path
        The directory; it may be missing if it could not be made.
    """

    def __init__(self, scratch: Path, name: str) -> None:
        self._scratch = place = scratch
        #: Whether journals may be mapped there.
        self._is_safe = True
        # If nothing can be said about a directory, no journal can be made in it either.
        with contextlib.suppress(OSError):
            if not keeps_allocated_space(scratch):
                place = _SHARED_MEMORY
                self._is_safe = place.is_dir() and keeps_allocated_space(place)
        self.path = place / f"{_PREFIX}{name}"
        self._lock = -1
        _remove_abandoned(place)

    def mark_complete(self) -> None:
        """Say that the journals are complete; make the directory first, if it was never made.

        Raises
        ------
        OSError
            The directory cannot be made, or somebody has removed it.
        """
        if self._lock < 0:
            self._lock = self._make()
        (self.path / _COMPLETE).touch()

    def _make(self) -> int:
        """Make the directory, and return the descriptor that holds the lock on it."""
        if not self._is_safe:
            raise OSError(
                f"neither {self._scratch} nor {_SHARED_MEMORY} keeps the space that was allocated "
                "for a file"
            )
        # It gets its name when it is locked: else it could count as abandoned. And only this user
        # may write to it, since a nanny unpickles what is there.
        new = self.path.with_name(f".{self.path.name}")
        new.mkdir(0o700, exist_ok=True)
        file = os.open(new, _DIRECTORY_FLAGS)
        try:
            if os.fstat(file).st_uid != os.geteuid():
                raise PermissionError(f"{new} is of another user")
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(self.path)
        except BaseException:
            os.close(file)
            raise
        return file

    def unmark(self) -> None:
        """Say that the journals are not complete. Removing a file needs no space."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / _COMPLETE).unlink()

    def remove(self) -> None:
        """Delete the directory, and end the lock."""
        remove_journals(self.path)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def read_complete_journals(directory: Path) -> list[JournaledBlock] | None:
    """Read what the slots of a dead worker have done; None if it ran blocks without a journal."""
    if not (directory / _COMPLETE).exists():
        return None
    return read_journals(directory)


def remove_journals(directory: Path) -> None:
    """Delete a directory of journals; other directories are left alone."""
    if directory.name.startswith(_PREFIX):
        shutil.rmtree(directory, ignore_errors=True)


def _remove_abandoned(place: Path) -> None:
    """Delete the directories of workers that are dead, and that no nanny has deleted."""
    for directory in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if not _is_abandoned(directory):
                continue
            note = directory / _ABANDONED
            if not note.exists():
                note.touch()
            elif time.time() - note.stat().st_mtime > _READ_TIMEOUT_SECONDS:
                remove_journals(directory)


def _is_abandoned(directory: Path) -> bool:
    """Return whether nobody holds the lock on a directory."""
    file = os.open(directory, _DIRECTORY_FLAGS)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True

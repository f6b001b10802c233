"""Gives each block of a worker a journal, as long as there is space for journals.

The worker says that its journals are not complete before it begins a block without a journal.
"""

from __future__ import annotations

import itertools
import logging
import threading
from pathlib import Path
from time import monotonic

from daskbatch.worker.execution.journal import Journal
from daskbatch.worker.journal_directory import JournalDirectory

#: Values up to this size are kept in journals, for the case that the worker is killed.
_MAX_VALUE_BYTES = 1 << 16

#: After a journal could not be made, the next attempt comes after this time.
_RETRY_SECONDS = 30.0

_logger = logging.getLogger("daskbatch")


class JournalPool:
    """The journals of the slots of a worker. Any thread may use it.

    Parameters
    ----------
    scratch : Path
        The directory in which the directory of the journals is made, if files there keep the space
        that was allocated for them.
    name : str
        A name of the worker that no other one has.

    Attributes
    ----------
    directory : Path
        The directory of the journals; it may be missing if the disk is full.
    """

    def __init__(self, scratch: Path, name: str) -> None:
        self._directory = JournalDirectory(scratch, name)
        self.directory = self._directory.path
        self._lock = threading.Lock()
        self._free: list[Journal] = []
        self._numbers = itertools.count()
        #: How many blocks run without a journal, and whether the directory is marked as complete.
        self._without = 0
        self._is_complete = False
        self._retry_at = 0.0
        self._has_warned = False
        try:
            self._mark_complete()
        except OSError as error:
            self._note_failure(error)

    def take(self) -> Journal | None:
        """Return a free journal or a new one; None if none can be made now.

        The caller passes it, or None, to `give_back` when its block is over.
        """
        with self._lock:
            may_try = monotonic() >= self._retry_at
            try:
                if may_try and not self._is_complete and not self._without:
                    self._mark_complete()
                if self._free:
                    return self._free.pop()
                if may_try:
                    path = self.directory / str(next(self._numbers))
                    return Journal(path, _MAX_VALUE_BYTES)
            except OSError as error:
                self._note_failure(error)
            self._without += 1
            if self._is_complete:
                self._is_complete = False
                self._directory.unmark()
            return None

    def give_back(self, journal: Journal | None) -> None:
        """Take a journal that is no longer in use; None from a block that had none."""
        with self._lock:
            if journal is None:
                self._without -= 1
            else:
                self._free.append(journal)

    def close(self) -> None:
        """Delete the directory; nobody reads the journals of a worker that ends in good order."""
        self._directory.remove()

    def _mark_complete(self) -> None:
        self._directory.mark_complete()
        self._is_complete = True

    def _note_failure(self, error: OSError) -> None:
        self._retry_at = monotonic() + _RETRY_SECONDS
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "The worker keeps no journal of what it runs, because it cannot be kept in %s: %s. "
                "If the worker is killed, a task that had not begun counts as one that may have "
                "run. Free some space there, or choose another --local-directory.",
                *(self.directory.parent, error),
            )

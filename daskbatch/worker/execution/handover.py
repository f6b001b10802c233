"""Hands a large value over to the task that runs next in a thread, in place of a copy of it.

Each task gets a copy of what another one has returned: it may change that, and the other one may
have kept a reference. Of plain containers the reference counts say whether anything has kept one.
If nothing has, the value itself is a copy that is nobody else's, once it was stored for all others.

Any thread may call. A value that the next task of its thread does not take is dropped, and so is
one that no task takes within a second, or that was made while the process uses much memory.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from sys import getrefcount
from threading import get_ident
from typing import Any

from daskbatch.memory.kept_mappings import is_resident_memory_short
from daskbatch.serialization.pickling import GivenValue
from daskbatch.serialization.stored_value import StoredValue

#: How often values that no task has taken are looked for. The second time they are dropped.
_INTERVAL_SECONDS = 0.5


class Offer:
    """A value that a task has returned, and that nothing else refers to.

    Parameters
    ----------
    box : list
        The value alone; empty once it was taken or dropped. Removing it needs no lock.
    """

    __slots__ = ("_box", "seen")

    def __init__(self, box: list[Any]) -> None:
        self._box = box
        #: Whether it was looked at before.
        self.seen = False

    def drop(self) -> None:
        """Forget the value."""
        self._box.clear()

    def fill(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return what fills the placeholders of a task, and forget the value.

        Parameters
        ----------
        values : sequence
            The pickled values.

        Returns
        -------
        sequence
            The same; but a `GivenValue` for this value, if it is taken once: each one that is taken
            is a copy of its own.
        """
        taken = [
            position
            for position, value in enumerate(values)
            if type(value) is StoredValue and value.offer is self
        ]
        if len(taken) == 1:
            try:
                given = GivenValue(self._box.pop())
            except IndexError:  # another thread has just dropped it
                return values
            return [*values[: taken[0]], given, *values[taken[0] + 1 :]]
        self.drop()
        return values


#: By thread: what its last task has returned.
_offers: dict[int, Offer] = {}

#: Held while a thread that drops old offers is started, and while it ends.
_lock = threading.Lock()
_is_watched = False


def offer(stored: StoredValue, box: list[Any]) -> None:
    """Offer the only object in a list to the next task of this thread.

    It does nothing if something else refers to that object.

    Parameters
    ----------
    stored : StoredValue
        The same value, for all others.
    box : list
        The object alone.
    """
    if _count_references(box) > _ALONE or is_resident_memory_short():
        return
    made = stored.offer = _offers[get_ident()] = Offer(box)
    if not _watch():
        made.drop()


def next_offer() -> Offer | None:
    """Return what the last task of this thread has offered; a task calls it as it begins."""
    return _offers.pop(get_ident(), None) if _offers else None


def _count_references(box: list[Any]) -> int:
    return getrefcount(box[0])


#: What that is if nothing but the list refers to its object.
_ALONE = _count_references([[]])


def _watch() -> bool:
    """Have old offers dropped; False if no thread can do that."""
    global _is_watched
    with _lock:
        if not _is_watched:
            try:
                threading.Thread(target=_drop_old, name="daskbatch-handover", daemon=True).start()
            except RuntimeError:
                return False
            _is_watched = True
        return True


def _drop_old() -> None:
    global _is_watched
    pause = threading.Event()
    while True:
        pause.wait(_INTERVAL_SECONDS)
        with _lock:
            for thread, each in list(_offers.items()):
                if each.seen or is_resident_memory_short():
                    each.drop()
                    _offers.pop(thread, None)
                each.seen = True
            if not _offers:
                _is_watched = False
                return

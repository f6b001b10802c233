"""Hands a large value over to the task that runs next in a thread, in place of a copy of it.

Each task gets a copy of what another one has returned: it may change that, and the other one may
have kept a reference. Of plain containers the reference counts say whether anything has kept one.
If nothing has, the value itself is a copy that is nobody else's, once it was stored for all others.

Any thread may call. A value that the next task of its thread does not take is dropped, and so is
one that no task takes within a second, or that was made while the process uses much memory. Where
there must be no thread for that, `drop_old` is to be called from time to time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from threading import get_ident
from typing import Any

from daskbatch.memory.kept_mappings import is_resident_memory_short
from daskbatch.serialization.pickling import GivenValue
from daskbatch.serialization.plain_containers import refers_alone
from daskbatch.serialization.stored_value import StoredValue, token_of

#: How often values that no task has taken are looked for. The second time they are dropped.
INTERVAL_SECONDS = 0.5


class Offer:
    """A value that a task has returned, and that nothing else refers to.

    Parameters
    ----------
    token : bytes
        What the references have by which all others find the value.
    value : object
        The value.
    """

    __slots__ = ("seen", "token", "value")

    def __init__(self, token: bytes, value: Any) -> None:
        self.token = token
        self.value = value
        #: Whether it was looked at before.
        self.seen = False


#: By thread: what its last task has returned. Removing one needs no lock.
_offers: dict[int, Offer] = {}

#: Held while offers are made and old ones are dropped, and while the thread that does so ends.
_lock = threading.Lock()
_is_watched = False


def offer(stored: StoredValue, box: list[Any], watched: bool) -> None:
    """Offer the only object in a list to the next task of this thread.

    It does nothing if something else refers to that object.

    Parameters
    ----------
    stored : StoredValue
        The same value, for all others.
    box : list
        The object alone.
    watched : bool
        Whether a thread drops it after a while; else `drop_old` is to be called.
    """
    if not refers_alone(box) or is_resident_memory_short():
        return
    with _lock:
        if not watched or _watch():
            _offers[get_ident()] = Offer(token_of(stored), box[0])


def drop_offer() -> None:
    """Forget what the last task of this thread has offered, if it was not taken."""
    if _offers:
        _offers.pop(get_ident(), None)


def take_offer(values: Sequence[Any]) -> Sequence[Any]:
    """Return what fills the placeholders of the next task of this thread.

    Parameters
    ----------
    values : sequence
        The pickled values.

    Returns
    -------
    sequence
        The same; but a `GivenValue` for the one that was offered, if it is taken once: each one
        that is taken is a copy of its own.
    """
    offered = _offers.pop(get_ident(), None) if _offers else None
    if offered is None:
        return values
    taken = [
        position
        for position, value in enumerate(values)
        if type(value) is StoredValue and token_of(value) == offered.token
    ]
    if len(taken) != 1:
        return values
    return [*values[: taken[0]], GivenValue(offered.value), *values[taken[0] + 1 :]]


def has_offers() -> bool:
    """Return whether any value is kept."""
    return bool(_offers)


def drop_old() -> None:
    """Drop the values that were there at the last call, too; all if the process needs memory."""
    with _lock:
        old = _remove_old()
    del old  # without the lock: this may take long


def _watch() -> bool:
    """Have old offers dropped; False if no thread can do that. The lock is held."""
    global _is_watched
    if not _is_watched:
        try:
            threading.Thread(target=_drop_while_any, name="daskbatch-handover", daemon=True).start()
        except RuntimeError:
            return False
        _is_watched = True
    return True


def _drop_while_any() -> None:
    global _is_watched
    pause = threading.Event()
    while True:
        pause.wait(INTERVAL_SECONDS)
        with _lock:
            old = _remove_old()
            _is_watched = is_left = bool(_offers)
        del old  # without the lock: this may take long
        if not is_left:
            return


def _remove_old() -> list[Offer]:
    """Forget the values that `drop_old` drops, and return them. The lock is held."""
    is_short = is_resident_memory_short()
    old = []
    for thread, each in list(_offers.items()):
        if each.seen or is_short:
            _offers.pop(thread, None)
            old.append(each)
        each.seen = True
    return old

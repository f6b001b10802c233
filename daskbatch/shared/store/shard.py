"""A part of a dictionary: what a worker does with the keys that are its own.

Does not know where its copies are, nor who asks. Every change is made on the copies first: what
anybody has seen here is never lost with this worker alone.
"""

from __future__ import annotations

import numbers
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from daskbatch.errors import LifecycleError, ServiceLost
from daskbatch.shared.data.codec import (
    UnhashableKey,
    Value,
    key_sent,
    pack,
    sendable,
    size_of,
    to_send,
    unpack,
)
from daskbatch.shared.data.messages import NotServing, Request, closed_error
from daskbatch.shared.rpc.reply_cache import GONE, ReplyCache
from daskbatch.shared.store.spill import SpillStore, StoredValue

#: What is done to a shard: "set", a key, a value; "del", a key; "clear"; "freeze", whether;
#: "done", what was done last by lane.
Change = tuple[Any, ...]

#: How long all may be held at one point, and how long what was there is kept for a reader.
_HOLD_SECONDS = 10.0
_MARK_SECONDS = 600.0

#: So much is sent at once, at least. Bytes.
_PAGE = 4 << 20


class Copies(Protocol):
    """The copies of a shard, on other workers."""

    def send(self, changes: Sequence[Change], sid: bytes, seq: int, reply: Any) -> None:
        """Make changes there; returns once they are made.

        Raises
        ------
        NotServing
            They have another shard to follow.
        """


class Shard:
    """Keys and values of a dictionary.

    Parameters
    ----------
    what : str
        What the dictionary is called in messages.
    vault : SpillStore
        Where values are kept.
    """

    def __init__(self, what: str, vault: SpillStore) -> None:
        self._what = what
        self.vault = vault
        self._slots: dict[Any, StoredValue] = {}
        self.frozen = False
        self.closed = False
        #: Whether it is for this shard to answer, and what follows it.
        self.serves = True
        self.copies: Copies | None = None
        #: Whoever changes anything has this.
        self.writing = threading.Lock()
        self._lately = ReplyCache()
        self._waiting: dict[Any, list[threading.Event]] = {}
        self._looking = threading.Lock()
        self._held: tuple[bytes, threading.Timer] | None = None
        self._marks: dict[bytes, tuple[float, list[StoredValue]]] = {}
        #: What changes nothing, and leaves nothing half done where it is stopped.
        self.reads = frozenset(["get", "get_some", "has", "count", "keys"])
        self._operations: dict[str, Callable[..., Any]] = {
            "get_some": self._get_some,
            "has": self._has,
            "count": self._count,
            "keys": self._keys,
            "stats": self._stats,
            "put": self._put,
            "put_some": self._put_some,
            "remove": self._remove,
            "pop": self._pop,
            "pop_any": self._pop_any,
            "set_default": self._set_default,
            "add": self._add,
            "clear": self._clear,
            "freeze": self._freeze,
            "view": self._view,
            "hold": self._hold,
            "mark": self._mark,
            "release": self._release,
            "page": self._page,
            "unmark": self._unmark,
        }

    def __call__(self, request: Request) -> Any:
        """Do what is asked for."""
        operation, sid, seq, wait, arguments = request
        self._require_serving()
        if operation == "get":
            return self._get(arguments[0], wait)
        if operation in _CHANGES:
            return self._change(operation, sid, seq, arguments)
        return self._operations[operation](*arguments)

    def _require_serving(self) -> None:
        if self.closed:
            raise closed_error(self._what)
        if not self.serves:
            raise NotServing

    # -- reading --------------------------------------------------------------------------

    def _get(self, key: Any, wait: float) -> Value | None:
        """Give a value; None if there is none, also after a while."""
        found = key_sent(key)
        slot = self._slots.get(found)
        if slot is None and wait > 0:
            slot = self._await(found, wait)
        # Since this was asked for, it may have become a copy that nobody follows any more.
        self._require_serving()
        return None if slot is None else to_send(slot.value)

    def _await(self, key: Any, seconds: float) -> StoredValue | None:
        event = threading.Event()
        with self._looking:
            self._waiting.setdefault(key, []).append(event)
        slot = self._slots.get(key)
        if slot is None and not self.closed:
            event.wait(seconds)
            slot = self._slots.get(key)
        with self._looking:
            events = self._waiting.get(key, [])
            if event in events:
                events.remove(event)
                if not events:
                    del self._waiting[key]
        return slot

    def _wake(self, key: Any) -> None:
        with self._looking:
            for event in self._waiting.pop(key, ()):
                event.set()

    def _get_some(self, keys: Sequence[Any]) -> list[Value | None]:
        """Give the values of the first of some keys: of one at least, or as many as are no page."""
        room, found = _PAGE, []
        for key in keys:
            slot = self._slots.get(key_sent(key))
            found.append(None if slot is None else to_send(slot.value))
            room -= 0 if slot is None else slot.size
            if room < 0:
                break
        self._require_serving()
        return found

    def _has(self, key: Any) -> bool:
        return key_sent(key) in self._slots

    def _count(self) -> int:
        return len(self._slots)

    def _keys(self) -> list[Any]:
        return [slot.key for slot in self._all()]

    def _all(self) -> list[StoredValue]:
        return list(self._slots.values())

    def _stats(self) -> dict[str, Any]:
        memory, spilled = self.vault.sizes()
        return {
            "keys": len(self._slots),
            "bytes": memory,
            "spilled": spilled,
            "frozen": self.frozen,
        }

    # -- changing -------------------------------------------------------------------------

    def _change(self, operation: str, sid: bytes, seq: int, arguments: tuple[Any, ...]) -> Any:
        with self.writing:
            self._require_serving()
            done = self._lately.find(sid, seq)
            if done is not None:
                if done.reply is GONE:
                    raise ServiceLost(
                        f"{self._what} has done this, and the answer has not come; it is not "
                        "known any more"
                    )
                return done.reply
            if self.frozen and operation != "freeze":
                raise LifecycleError(f"{self._what} is frozen; unfreeze() it to write to it")
            changes, reply = self._operations[operation](*arguments)
            if changes:
                # All that may fail comes first, and here; then the copies; then what is seen.
                ready = self._prepare(changes)
                if self.copies is not None:
                    self.copies.send(changes, sid, seq, reply)
                self._make(ready)
                # What has changed nothing may be done once more.
                self._lately.note(sid, seq, reply)
            return reply

    def follow(self, changes: Sequence[Change], sid: bytes, seq: int, reply: Any) -> None:
        """Make changes that were made elsewhere."""
        with self.writing:
            self._make(self._prepare(changes))
            # It may have to be sent from here, too.
            self._lately.note(sid, seq, sendable(reply))

    def _prepare(self, changes: Sequence[Change]) -> list[tuple[Any, ...]]:
        ready: list[tuple[Any, ...]] = []
        new: dict[Any, StoredValue] = {}
        keep = self.vault.keep
        for change in changes:
            if change[0] == "set":
                _, sent, value = change
                key = key_sent(sent)
                # The first of equal keys stays, as in a dict.
                before = self._slots.get(key) or new.get(key)
                sent = sent if before is None else before.key
                slot = new[key] = keep(sent, value)
                slot.own = key
                ready.append(("set", key, slot))
            elif change[0] == "del":
                ready.append(("del", key_sent(change[1]), change[1]))
            else:
                ready.append(change)
        return ready

    def _make(self, ready: Sequence[tuple[Any, ...]]) -> None:
        for change in ready:
            if change[0] == "set":
                self._slots[change[1]] = change[2]
                if self._waiting:
                    self._wake(change[1])
            elif change[0] == "del":
                if self._slots.pop(change[1], None) is None:
                    self._drop_alike(change[2])
            elif change[0] == "clear":
                self._slots.clear()
            elif change[0] == "done":
                for sid, seq, reply in change[1]:
                    self._lately.note(sid, seq, sendable(reply))
            else:
                self.frozen = change[1]
        self.vault.sweep()

    # What these give is what there is to change, and what is answered.

    def _put(self, key: Any, value: Value) -> tuple[list[Change], None]:
        return [("set", key, value)], None

    def _put_some(self, items: Sequence[tuple[Any, Value]]) -> tuple[list[Change], None]:
        return [("set", key, value) for key, value in items], None

    def _remove(self, key: Any) -> tuple[list[Change], bool]:
        there = key_sent(key) in self._slots
        return [("del", key)] if there else [], there

    def _pop(self, key: Any) -> tuple[list[Change], Value | None]:
        slot = self._slots.get(key_sent(key))
        return ([], None) if slot is None else ([("del", key)], to_send(slot.value))

    def _pop_any(self) -> tuple[list[Change], tuple[Any, Value] | None]:
        if not self._slots:
            return [], None
        slot = self._slots[next(reversed(self._slots))]
        return [("del", slot.key)], (slot.key, to_send(slot.value))

    def _drop_alike(self, sent: Any) -> None:
        """Remove a key that is equal to nothing, not even to a copy of itself: a NaN, say."""
        alike = sent.data if type(sent) is UnhashableKey else repr(sent)
        for key in reversed(list(self._slots)):
            mine = self._slots[key].key
            if type(mine) is type(sent) and alike == (
                mine.data if type(mine) is UnhashableKey else repr(mine)
            ):
                del self._slots[key]
                return

    def _set_default(self, key: Any, value: Value) -> tuple[list[Change], Value | None]:
        slot = self._slots.get(key_sent(key))
        if slot is not None:
            return [], to_send(slot.value)
        return [("set", key, value)], None

    def _add(self, key: Any, value: Value) -> tuple[list[Change], Value]:
        slot = self._slots.get(key_sent(key))
        old = 0 if slot is None else unpack(slot.value)
        if not isinstance(old, numbers.Number):
            raise TypeError(
                f"fetch_add adds to numbers, and the value there is of type {type(old).__name__}"
            )
        return [("set", key, pack(old + unpack(value)))], pack(old)

    def _clear(self) -> tuple[list[Change], None]:
        return [("clear",)], None

    def _freeze(self, frozen: bool) -> tuple[list[Change], None]:
        return [("freeze", frozen)], None

    # -- one point of all shards ----------------------------------------------------------

    def _hold(self, token: bytes) -> None:
        """Have nothing changed until `release`, or for a while."""
        if not self.writing.acquire(timeout=_HOLD_SECONDS):
            raise TimeoutError("a shard cannot be held: somebody writes to it all the time")
        timer = threading.Timer(_HOLD_SECONDS, self._release, [token])
        timer.daemon = True
        self._held = token, timer
        timer.start()

    def _holds(self, token: bytes) -> bool:
        return self._held is not None and self._held[0] == token

    def _mark(self, token: bytes) -> bool:
        """Keep what there is now; False if it is no longer held."""
        if not self._holds(token):
            return False
        self._view(token)
        return True

    def _view(self, token: bytes) -> None:
        """Keep what there is now."""
        now = monotonic()
        self._marks = {k: m for k, m in self._marks.items() if now - m[0] < _MARK_SECONDS}
        self._marks[token] = now, self._all()

    def _release(self, token: bytes) -> bool:
        with self._looking:
            if self._held is None or self._held[0] != token:
                return False
            self._held[1].cancel()
            self._held = None
        self.writing.release()
        return True

    def _page(self, token: bytes, start: int) -> list[tuple[Any, Value]] | None:
        """Give some of what was marked, from a position on; None if it is no longer known."""
        if token not in self._marks:
            return None
        _, slots = self._marks[token]
        self._marks[token] = monotonic(), slots
        page: list[tuple[Any, Value]] = []
        room = _PAGE
        for position in range(start, len(slots)):
            slot = slots[position]
            value = to_send(slot.value)
            page.append((slot.key, value))
            room -= size_of(value)
            if room < 0:
                break
        return page

    def _unmark(self, token: bytes) -> None:
        self._marks.pop(token, None)

    # -- copies ---------------------------------------------------------------------------

    def contents(self) -> tuple[list[StoredValue], bool, list[tuple[bytes, int, Any]]]:
        """Give all there is: values, whether it is frozen, and what was done last by lane."""
        return self._all(), self.frozen, list(self._lately.all())

    def has_still(self, slot: StoredValue) -> bool:
        """Say whether a value is the one of its key."""
        # Some keys are equal to themselves alone.
        return self._slots.get(slot.own) is slot

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Be no more; who waits is told."""
        self.closed = True
        with self._looking:
            waiting, self._waiting = self._waiting, {}
        for events in waiting.values():
            for event in events:
                event.set()
        self._slots = {}
        self._lately.clear()
        self._marks.clear()
        self.vault.tidy()


_CHANGES = frozenset(
    ["put", "put_some", "remove", "pop", "pop_any", "set_default", "add", "clear", "freeze"]
)

"""A shard of a dictionary, on one worker: executes the operations on its keys.

Every change is made on the backups first, and only then here, so that nothing that a client has
seen is lost with this worker alone. The shard decodes keys, to compare them. Of the operations,
only `ADD` decodes values. Any number of threads may call a `Shard`.
"""

from __future__ import annotations

import numbers
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from daskbatch.errors import LifecycleError, ServiceLost
from daskbatch.shared.data.codec import (
    PickledKey,
    Value,
    decode_key,
    pack,
    prepare_to_resend,
    prepare_to_send,
    size_of,
    unpack,
)
from daskbatch.shared.data.messages import NotServing, Request, closed_error
from daskbatch.shared.rpc.reply_cache import DROPPED, ReplyCache
from daskbatch.shared.store import operations
from daskbatch.shared.store.operations import (
    CLEAR_ALL,
    DELETE,
    SET,
    SET_FROZEN,
    SET_REPLIES,
    SHARD_CHANGES,
    Change,
    Operation,
)
from daskbatch.shared.store.spill import SpillStore, StoredValue

#: How long a client may keep others from writing, and how long it may wait for that.
_HOLD_TIMEOUT_SECONDS = 10.0

#: How long a view is kept after its reader has asked for a page.
_VIEW_LIFETIME_SECONDS = 600.0

#: A page of values ends when it has more bytes than this.
_PAGE_BYTES = 4 << 20

#: In globals, since the shard compares with them for each request.
_GET = operations.GET.name
_FREEZE = operations.FREEZE.name


class Backups(Protocol):
    """The backups of a shard, on other workers."""

    def send(self, changes: Sequence[Change], client_id: bytes, seq: int, reply: Any) -> None:
        """Make changes on all backups; return once they are made there.

        Parameters
        ----------
        changes : sequence of Change
            The changes.
        client_id, seq, reply
            The request that makes them, and its reply; see `ReplyCache.record`.

        Raises
        ------
        NotServing
            This shard is no longer the primary.
        """


class Shard:
    """Some keys and values of a dictionary.

    Any number of threads may call it. Readers take no lock: a value never changes, but is replaced.
    Threads that change it take `write_lock`, one after another.

    Parameters
    ----------
    description : str
        What the dictionary is called in messages.
    store : SpillStore
        Where values are kept.
    """

    def __init__(self, description: str, store: SpillStore) -> None:
        self._description = description
        self.store = store
        #: The values by decoded key.
        self._values: dict[Any, StoredValue] = {}
        self.frozen = False
        self.closed = False
        #: Whether this shard is the primary, which answers requests.
        self.serves = True
        self.backups: Backups | None = None
        #: Held by a thread while it changes anything.
        self.write_lock = threading.Lock()
        self._replies = ReplyCache()
        #: By decoded key: the events of threads that wait until it is written.
        self._waiters: dict[Any, list[threading.Event]] = {}
        #: Protects `_waiters`, and the end of a hold.
        self._lock = threading.Lock()
        #: The token of the client that holds `write_lock` by `HOLD`; the timer that releases it.
        self._held: tuple[bytes, threading.Timer] | None = None
        #: By token: when the view was last used, and the values at the moment when it was made.
        self._views: dict[bytes, tuple[float, list[StoredValue]]] = {}
        self._handlers: dict[str, Callable[..., Any]] = operations.by_name(
            {
                operations.GET: self._get,
                operations.GET_SOME: self._get_some,
                operations.HAS: self._has,
                operations.COUNT: self.count,
                operations.KEYS: self._keys,
                operations.PUT: self._put,
                operations.PUT_SOME: self._put_some,
                operations.REMOVE: self._remove,
                operations.POP: self._pop,
                operations.POP_ANY: self._pop_any,
                operations.SET_DEFAULT: self._set_default,
                operations.ADD: self._add,
                operations.CLEAR: self._clear,
                operations.FREEZE: self._freeze,
                operations.STATS: self._stats,
                operations.HOLD: self._hold,
                operations.MARK: self._mark,
                operations.RELEASE: self._release,
                operations.VIEW: self._view,
                operations.PAGE: self._page,
                operations.UNMARK: self._unmark,
            }
        )

    def __call__(self, request: Request) -> Any:
        """Execute a request with an operation of `operations.SHARD_OPERATIONS`."""
        operation, client_id, seq, wait, arguments = request
        self._require_serving()
        if operation == _GET:
            return self._get(arguments[0], wait)
        if operation in SHARD_CHANGES:
            return self._change(operation, client_id, seq, arguments)
        return self._handlers[operation](*arguments)

    def read(self, operation: Operation, arguments: tuple[Any, ...]) -> Any:
        """Execute an operation of the effect READ, in any thread; it does not wait."""
        self._require_serving()
        return self._handlers[operation.name](*arguments)

    def _require_serving(self) -> None:
        if not self.serves:
            raise NotServing
        if self.closed:
            raise closed_error(self._description)

    # -- reading --------------------------------------------------------------------------

    def _get(self, key: Any, wait: float = 0.0) -> Value | None:
        """Return a value; None if the key is not there, also after a wait."""
        decoded = decode_key(key)
        stored = self._values.get(decoded)
        if stored is None and wait > 0:
            stored = self._await(decoded, wait)
        # After the request arrived, this replica may have been removed from the layout: then it no
        # longer receives changes.
        self._require_serving()
        return None if stored is None else prepare_to_send(stored.value)

    def _await(self, key: Any, seconds: float) -> StoredValue | None:
        """Wait until a key is written; None if it is not in time."""
        event = threading.Event()
        with self._lock:
            self._waiters.setdefault(key, []).append(event)
        stored = self._values.get(key)
        if stored is None and not self.closed and self.serves:
            event.wait(seconds)
            stored = self._values.get(key)
        with self._lock:
            events = self._waiters.get(key, [])
            if event in events:
                events.remove(event)
                if not events:
                    del self._waiters[key]
        return stored

    def _wake(self, key: Any) -> None:
        """Wake the threads that wait for a key."""
        with self._lock:
            for event in self._waiters.pop(key, ()):
                event.set()

    def _get_some(self, keys: Sequence[Any]) -> list[Value | None]:
        """Return the values of the first keys: of one at least, and of as many as fill a page."""
        room, found = _PAGE_BYTES, []
        for key in keys:
            stored = self._values.get(decode_key(key))
            found.append(None if stored is None else prepare_to_send(stored.value))
            room -= 0 if stored is None else stored.size
            if room < 0:
                break
        self._require_serving()
        return found

    def _has(self, key: Any) -> bool:
        return decode_key(key) in self._values

    def count(self) -> int:
        """Return the number of keys."""
        return len(self._values)

    def _keys(self) -> list[Any]:
        return [stored.key for stored in self._all_values()]

    def _all_values(self) -> list[StoredValue]:
        return list(self._values.values())

    def _stats(self) -> dict[str, Any]:
        memory, disk = self.store.sizes()
        return {
            "keys": len(self._values),
            "bytes": memory,
            "spilled": disk,
            "frozen": self.frozen,
        }

    # -- changing -------------------------------------------------------------------------

    def _change(
        self, operation: str, client_id: bytes, seq: int, arguments: tuple[Any, ...]
    ) -> Any:
        with self.write_lock:
            self._require_serving()
            cached = self._replies.find(client_id, seq)
            if cached is not None:
                if cached.reply is DROPPED:
                    raise ServiceLost(
                        f"{self._description} has done this, but its answer did not arrive, and "
                        "was too large to be kept"
                    )
                return cached.reply
            if self.frozen and operation != _FREEZE:
                raise LifecycleError(f"{self._description} is frozen; unfreeze() it to write to it")
            changes, reply = self._handlers[operation](*arguments)
            if changes:
                # First what may fail, which is here; then the backups; then the change for readers.
                prepared = self._prepare(changes)
                if self.backups is not None:
                    self.backups.send(changes, client_id, seq, reply)
                self._apply(prepared)
            if changes or not reply:
                # Also of a request that has found nothing: a link that is mended may deliver it
                # once more, after another client has written what it would remove.
                self._replies.record(client_id, seq, reply)
            return reply

    def follow(self, changes: Sequence[Change], client_id: bytes, seq: int, reply: Any) -> None:
        """Make the changes of the primary, as its backup; see `Backups.send`."""
        with self.write_lock:
            self._apply(self._prepare(changes))
            # If this replica becomes the primary, it sends the reply to a repeated request.
            self._replies.record(client_id, seq, prepare_to_resend(reply))

    def _prepare(self, changes: Sequence[Change]) -> list[tuple[Any, ...]]:
        """Decode keys and store values, which may fail, before anything is changed."""
        prepared: list[tuple[Any, ...]] = []
        new: dict[Any, StoredValue] = {}
        keep = self.store.keep
        for change in changes:
            if change[0] == SET:
                _, encoded, value = change
                key = decode_key(encoded)
                # The first of equal keys stays, as in a dict.
                before = self._values.get(key) or new.get(key)
                encoded = encoded if before is None else before.key
                stored = new[key] = keep(encoded, value)
                stored.decoded = key
                prepared.append((SET, key, stored))
            elif change[0] == DELETE:
                prepared.append((DELETE, decode_key(change[1]), change[1]))
            else:
                prepared.append(change)
        return prepared

    def _apply(self, prepared: Sequence[tuple[Any, ...]]) -> None:
        """Make changes that `_prepare` has returned; the caller holds `write_lock`."""
        for change in prepared:
            if change[0] == SET:
                self._values[change[1]] = change[2]
                if self._waiters:
                    self._wake(change[1])
            elif change[0] == DELETE:
                if self._values.pop(change[1], None) is None:
                    self._delete_by_content(change[2])
            elif change[0] == CLEAR_ALL:
                self._values.clear()
            elif change[0] == SET_REPLIES:
                for client_id, seq, reply in change[1]:
                    self._replies.record(client_id, seq, prepare_to_resend(reply))
            else:
                assert change[0] == SET_FROZEN
                self.frozen = change[1]
        self.store.sweep()

    # Each of these returns the changes that an operation makes, and its reply.

    def _put(self, key: Any, value: Value) -> tuple[list[Change], None]:
        return [(SET, key, value)], None

    def _put_some(self, items: Sequence[tuple[Any, Value]]) -> tuple[list[Change], None]:
        return [(SET, key, value) for key, value in items], None

    def _remove(self, key: Any) -> tuple[list[Change], bool]:
        there = decode_key(key) in self._values
        return [(DELETE, key)] if there else [], there

    def _pop(self, key: Any) -> tuple[list[Change], Value | None]:
        stored = self._values.get(decode_key(key))
        if stored is None:
            return [], None
        return [(DELETE, key)], prepare_to_send(stored.value)

    def _pop_any(self) -> tuple[list[Change], tuple[Any, Value] | None]:
        if not self._values:
            return [], None
        stored = self._values[next(reversed(self._values))]
        return [(DELETE, stored.key)], (stored.key, prepare_to_send(stored.value))

    def _delete_by_content(self, encoded: Any) -> None:
        """Remove a key that is not even equal to a copy of itself, such as a NaN."""
        content = encoded.data if type(encoded) is PickledKey else repr(encoded)
        for key in reversed(list(self._values)):
            other = self._values[key].key
            if type(other) is type(encoded) and content == (
                other.data if type(other) is PickledKey else repr(other)
            ):
                del self._values[key]
                return

    def _set_default(self, key: Any, value: Value) -> tuple[list[Change], Value | None]:
        stored = self._values.get(decode_key(key))
        if stored is not None:
            return [], prepare_to_send(stored.value)
        return [(SET, key, value)], None

    def _add(self, key: Any, value: Value) -> tuple[list[Change], Value]:
        stored = self._values.get(decode_key(key))
        old = 0 if stored is None else unpack(stored.value)
        if not isinstance(old, numbers.Number):
            raise TypeError(
                f"fetch_add adds to numbers, and the value there is of type {type(old).__name__}"
            )
        return [(SET, key, pack(old + unpack(value)))], pack(old)

    def _clear(self) -> tuple[list[Change], None]:
        return [(CLEAR_ALL,)], None

    def _freeze(self, frozen: bool) -> tuple[list[Change], None]:
        return [(SET_FROZEN, frozen)], None

    # -- one moment of all shards ---------------------------------------------------------

    def _hold(self, token: bytes) -> None:
        """Let no client change anything until `_release`, or until the time limit."""
        if self._is_held(token):
            return  # the request is repeated, since its answer was lost
        if not self.write_lock.acquire(timeout=_HOLD_TIMEOUT_SECONDS):
            raise TimeoutError("a shard cannot be held: clients write to it all the time")
        timer = threading.Timer(_HOLD_TIMEOUT_SECONDS, self._release, [token])
        timer.daemon = True
        self._held = token, timer
        timer.start()

    def _is_held(self, token: bytes) -> bool:
        return self._held is not None and self._held[0] == token

    def _mark(self, token: bytes) -> bool:
        """Keep the present values for `_page`; False if the shard is no longer held."""
        if not self._is_held(token):
            return False
        self._view(token)
        return True

    def _view(self, token: bytes) -> None:
        """Keep the present values for `_page`."""
        now = monotonic()
        self._views = {
            other: view
            for other, view in self._views.items()
            if now - view[0] < _VIEW_LIFETIME_SECONDS
        }
        self._views[token] = now, self._all_values()

    def _release(self, token: bytes) -> bool:
        """End a hold; False if it has ended already."""
        with self._lock:
            if self._held is None or self._held[0] != token:
                return False
            self._held[1].cancel()
            self._held = None
        self.write_lock.release()
        return True

    def _page(self, token: bytes, start: int) -> list[tuple[Any, Value]] | None:
        """Return some values of a view, from a position on; None if there is no such view."""
        if token not in self._views:
            return None
        _, view = self._views[token]
        self._views[token] = monotonic(), view
        page: list[tuple[Any, Value]] = []
        room = _PAGE_BYTES
        for position in range(start, len(view)):
            stored = view[position]
            value = prepare_to_send(stored.value)
            page.append((stored.key, value))
            room -= size_of(value)
            if room < 0:
                break
        return page

    def _unmark(self, token: bytes) -> None:
        """Drop a view."""
        self._views.pop(token, None)

    # -- for a new backup -----------------------------------------------------------------

    def first_changes(self) -> list[Change]:
        """Return what a new backup is told before it receives any value."""
        return [(SET_FROZEN, self.frozen), (SET_REPLIES, list(self._replies.entries()))]

    def values(self) -> list[StoredValue]:
        """Return all values."""
        return self._all_values()

    def copy(self, stored: StoredValue) -> Change | None:
        """Return the change that gives a new backup a value; None if its key has another one."""
        # By the decoded key: some keys, such as NaN, are equal only to the same object.
        if self._values.get(stored.decoded) is not stored:
            return None
        return (SET, stored.key, prepare_to_send(stored.value))

    # -- the end --------------------------------------------------------------------------

    def stop_serving(self) -> None:
        """Let another replica become the primary: all changes so far are made on the backups.

        Waiting requests raise `NotServing`.
        """
        with self.write_lock:
            self.serves = False
        self._wake_all()

    def _wake_all(self) -> None:
        with self._lock:
            waiters, self._waiters = self._waiters, {}
        for events in waiters.values():
            for event in events:
                event.set()

    def close(self) -> None:
        """Close the shard and wake all waiters, which then raise `LifecycleError`."""
        self.closed = True
        self._wake_all()
        self._values = {}
        self._replies.clear()
        self._views.clear()
        self.store.tidy()

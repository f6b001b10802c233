"""The items of a queue, on the workers that have it.

An item that is sent to a consumer leaves the queue for good only when the consumer has confirmed
that it has received the item. Otherwise the item returns to its place in the queue. A consumer that
repeats its request, since it has lost the connection, receives the same item again. Any number of
threads may use a `QueueState`.

Like a shard of a dictionary, a queue has one primary, and backups that follow it; see
`store.replication`. The primary makes each change on the backups first.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from daskbatch.shared.data.codec import Value, prepare_to_send, size_of
from daskbatch.shared.data.messages import NotServing, Request, closed_error
from daskbatch.shared.rpc.answer import ResultToConfirm
from daskbatch.shared.rpc.latest_attempts import LatestAttempts
from daskbatch.shared.rpc.reply_cache import ReplyCache
from daskbatch.shared.store.operations import (
    ITEM_CONFIRMED,
    ITEM_COPIED,
    ITEM_DONE,
    ITEM_PUT,
    ITEM_RETURNED,
    ITEM_TAKEN,
    JOIN,
    QSIZE,
    QUEUE_COUNTS,
    QUEUE_GET,
    QUEUE_PAGE,
    QUEUE_PUT,
    QUEUE_RECEIVED,
    QUEUE_STATS,
    QUEUE_UNVIEW,
    QUEUE_VIEW,
    SET_REPLIES,
    TASK_DONE,
    Change,
    by_name,
)
from daskbatch.shared.store.sent_items import SentItem, SentItems
from daskbatch.shared.store.shard import Backups
from daskbatch.shared.store.spill import SpillStore, StoredValue
from daskbatch.threads import Condition

#: How long a replica that stops serving waits for confirmations of items that it has sent.
_CONFIRM_TIMEOUT_SECONDS = 5.0

#: After a replica has become the primary, an item that its predecessor has sent, and whose receipt
#: nobody has confirmed, returns to the queue after this time. A consumer that lives asks again
#: before.
_RETURN_SECONDS = 10.0

#: How long a view is kept after its reader has asked for a page; a page ends at this size.
_VIEW_LIFETIME_SECONDS, _PAGE_BYTES = 600.0, 4 << 20


class QueueState:
    """The items of a queue, first in, first out.

    Any number of threads may use it.

    Parameters
    ----------
    description : str
        What the queue is called in messages.
    store : SpillStore
        Where items are kept.
    maxsize : int
        The maximum number of items; 0 means unlimited. An item makes room when it is sent to its
        consumer, not when the consumer confirms it: the consumer continues before the confirmation
        arrives here, and may tell another task that there is room. So there may be more items for a
        while, when consumers have died and their items have returned.
    confirm_seconds : float
        How long an item that travels by way of the scheduler may stay unconfirmed; then it returns.
        A consumer that was cut off confirms it within `daskbatch.link-timeout`.
    """

    def __init__(
        self, description: str, store: SpillStore, maxsize: int, confirm_seconds: float = 40.0
    ) -> None:
        self._description = description
        self.store = store
        self._maxsize = maxsize
        self._confirm_seconds = confirm_seconds
        #: The items by number. They are in order, unless `_unordered` is set: a backup receives
        #: them in another order, and some return.
        self._items: OrderedDict[int, StoredValue] = OrderedDict()
        self._unordered = False
        self._sent = SentItems()
        self._attempts = LatestAttempts()
        #: How many items are not done; see `_task_done`.
        self._unfinished = 0
        self.closed = False
        #: Whether this is the primary, which answers requests.
        self.serves = True
        self.backups: Backups | None = None
        #: Held by a thread while it changes anything, and while it tells the backups.
        self.write_lock = threading.Lock()
        self._not_empty = Condition(self.write_lock)
        self._not_full = Condition(self.write_lock)
        self._all_done = Condition(self.write_lock)
        self._settled = Condition(self.write_lock)
        #: The number of the item that was put last.
        self._last_number = 0
        self._replies = ReplyCache()
        #: By token: when the view was last used, and the items at the moment when it was made.
        self._views: dict[bytes, tuple[float, list[StoredValue]]] = {}
        # Each is called with the request, and a function that returns whether the client has gone.
        self._handlers: dict[str, Callable[[Request, Callable[[], bool]], Any]] = by_name(
            {
                QUEUE_PUT: self._put,
                QUEUE_GET: self._get,
                QUEUE_RECEIVED: self._received,
                TASK_DONE: self._task_done,
                JOIN: self._join,
                QSIZE: self._qsize,
                QUEUE_STATS: self._stats,
                QUEUE_VIEW: self._view,
                QUEUE_PAGE: self._page,
                QUEUE_UNVIEW: self._unview,
            }
        )

    def __call__(self, request: Request, is_gone: Callable[[], bool]) -> Any:
        """Execute a request.

        Parameters
        ----------
        request : Request
            With an operation of `operations.QUEUE_OPERATIONS`.
        is_gone : callable
            Returns whether the client has gone meanwhile.
        """
        self._require_open()
        return self._handlers[request.operation](request, is_gone)

    def _require_open(self) -> None:
        if not self.serves:
            raise NotServing
        if self.closed:
            raise closed_error(self._description)

    def _is_over(self) -> bool:
        """Return whether this replica answers no requests any longer."""
        return self.closed or not self.serves

    # -- requests -------------------------------------------------------------------------

    def _put(self, request: Request, is_gone: Callable[[], bool]) -> bool:
        """Append an item; False if there is no room, even after a wait."""
        value: Value = request.arguments[0]
        client_id, seq = request.client_id, request.seq
        with self.write_lock:
            if self._replies.find(client_id, seq):
                return True
            attempt = self._attempts.begin(client_id, seq)
            if attempt is None:
                return False
            self._confirm_earlier(request)
            if request.wait > 0 and self._is_full():
                self._not_full.wait_for(
                    lambda: not self._is_full() or self._is_over(), request.wait
                )
                if is_gone() or not self._attempts.is_latest(attempt):
                    self._not_full.notify()  # another thread may have the room
                    return False
            self._require_open()
            if self._is_full():
                self._attempts.finish(client_id, seq)
                return False
            number = self._last_number + 1
            item = self.store.keep(number, value)  # this may fail, so it is first
            self._send([(ITEM_PUT, number, value)], request, True)
            self._last_number = number
            self._items[number] = item
            self._unfinished += 1
            self._replies.record(client_id, seq, True)
            self._not_empty.notify()
            return True

    def _is_full(self) -> bool:
        return 0 < self._maxsize <= len(self._items)

    def _get(self, request: Request, is_gone: Callable[[], bool]) -> Any:
        """Remove and return the first item, to be confirmed; None if there is none after a wait."""
        client_id, seq = request.client_id, request.seq
        with self.write_lock:
            attempt = self._attempts.begin(client_id, seq)
            if attempt is None:
                return None
            self._confirm_earlier(request)
            self._return_late(request)
            before = self._sent.of(client_id)
            if before is not None:  # the answer to an earlier attempt was lost
                item = before.item
            else:
                if request.wait > 0 and not self._items:
                    self._not_empty.wait_for(lambda: self._items or self._is_over(), request.wait)
                    if is_gone() or not self._attempts.is_latest(attempt):
                        self._not_empty.notify()  # another thread may have the item
                        return None
                self._require_open()
                if not self._items:
                    self._attempts.finish(client_id, seq)
                    return None
                item = self._first()
                self._send([(ITEM_TAKEN, item.key, client_id, seq)])
                del self._items[item.key]
                self._not_full.notify()
            sent = SentItem(item, client_id, seq, inf)
            self._sent.add(sent)
        settle = partial(self._settle, sent)
        try:
            return ResultToConfirm(prepare_to_send(item.value), settle)
        except Exception:  # the item is on disk, and cannot be read now
            settle(False)
            raise

    def _settle(self, sent: SentItem, received: bool | None) -> None:
        """Record whether a consumer has received an item; see `ResultToConfirm`."""
        with self.write_lock:
            found = self._sent.get(sent.item.key)
            if found is None or (found.client_id, found.seq) != (sent.client_id, sent.seq):
                return
            if found is not sent and not received:
                return  # it was sent again, to the same consumer
            with contextlib.suppress(NotServing):  # then another primary settles it
                if received:
                    self._confirm(found)
                elif received is None:
                    self._sent.set_return(found, monotonic() + self._confirm_seconds)
                elif self._is_over():
                    self._sent.set_return(found, None)
                else:
                    self._return(found)
            self._settled.notify_all()

    def _received(self, request: Request, is_gone: Callable[[], bool]) -> bool:
        """Record that a client has received an item by way of the scheduler.

        Returns False if the item has returned to the queue meanwhile: then the client does not have
        it.
        """
        with self.write_lock:
            self._require_open()
            if self._replies.find(request.client_id, request.seq):
                return True
            return self._confirm_earlier(request)

    def _confirm_earlier(self, request: Request) -> bool:
        """Confirm the item that the client has received by an earlier request, if there is one.

        A client that has not received it would have repeated that request.
        """
        sent = self._sent.of(request.client_id)
        if sent is None or sent.seq >= request.seq:
            return False
        self._confirm(sent, request)
        return True

    def _confirm(self, sent: SentItem, request: Request | None = None) -> None:
        """Remove an item that was received, here and then on the backups."""
        self._sent.remove(sent)
        self._attempts.finish(sent.client_id, sent.seq)
        if self._is_over():
            return
        if request is None or request.operation != QUEUE_RECEIVED.name:
            self._send([(ITEM_CONFIRMED, sent.item.key)])
        else:
            self._send([(ITEM_CONFIRMED, sent.item.key)], request, True)
            self._replies.record(request.client_id, request.seq, True)

    def _return(self, sent: SentItem) -> None:
        """Return an item that was not received to its place in the queue."""
        self._sent.remove(sent)
        self._insert(sent.item)
        self._not_empty.notify()
        self._send([(ITEM_RETURNED, sent.item.key)])

    def _return_late(self, request: Request) -> None:
        """Return the items that nobody has confirmed in time, but not to a repeated request."""
        for sent in self._sent.late(monotonic(), _RETURN_SECONDS):
            if sent is not self._sent.of(request.client_id):
                self._return(sent)

    def _insert(self, item: StoredValue) -> None:
        """Insert an item that may belong before others."""
        if self._items and next(reversed(self._items)) > item.key:
            self._unordered = True
        self._items[item.key] = item

    def _first(self) -> StoredValue:
        """Return the first item; there is one."""
        if self._unordered:
            self._items = OrderedDict(sorted(self._items.items()))
            self._unordered = False
        return next(iter(self._items.values()))

    def count(self) -> int:
        """Return the number of items."""
        return len(self._items)

    def _qsize(self, request: Request, is_gone: Callable[[], bool]) -> int:
        return len(self._items)

    def _task_done(self, request: Request, is_gone: Callable[[], bool]) -> bool:
        """Count an item as done; False if all items are done already."""
        with self.write_lock:
            self._require_open()
            if self._replies.find(request.client_id, request.seq):
                return True
            if not self._unfinished:
                return False
            self._confirm_earlier(request)
            self._send([(ITEM_DONE,)], request, True)
            self._unfinished -= 1
            self._replies.record(request.client_id, request.seq, True)
            if not self._unfinished:
                self._all_done.notify_all()
            return True

    def _join(self, request: Request, is_gone: Callable[[], bool]) -> bool:
        """Wait until all items are done; return whether they are."""
        with self.write_lock:
            self._all_done.wait_for(lambda: not self._unfinished or self._is_over(), request.wait)
            self._require_open()
            return not self._unfinished

    def _stats(self, request: Request, is_gone: Callable[[], bool]) -> dict[str, Any]:
        memory, disk = self.store.sizes()
        return {"items": len(self._items), "bytes": memory, "spilled": disk}

    def _view(self, request: Request, is_gone: Callable[[], bool]) -> None:
        """Keep the present items for `_page`."""
        now = monotonic()
        with self.write_lock:
            self._views = {
                token: view
                for token, view in self._views.items()
                if now - view[0] < _VIEW_LIFETIME_SECONDS
            }
            items = [self._items[number] for number in sorted(self._items)]
            self._views[request.arguments[0]] = now, items

    def _page(self, request: Request, is_gone: Callable[[], bool]) -> list[Value] | None:
        """Return some items of a view, from a position on; None if there is no such view."""
        token, start = request.arguments
        if token not in self._views:
            return None
        _, view = self._views[token]
        self._views[token] = monotonic(), view
        page: list[Value] = []
        room = _PAGE_BYTES
        for item in view[start:]:
            page.append(prepare_to_send(item.value))
            room -= size_of(page[-1])
            if room < 0:
                break
        return page

    def _unview(self, request: Request, is_gone: Callable[[], bool]) -> None:
        self._views.pop(request.arguments[0], None)

    # -- replicas: implements `replication.Replicated` -------------------------------------

    def _send(
        self, changes: Sequence[Change], request: Request | None = None, reply: Any = None
    ) -> None:
        """Make changes on the backups; the caller holds `write_lock`."""
        if self.backups is not None:
            client_id, seq = (b"", 0) if request is None else (request.client_id, request.seq)
            self.backups.send(changes, client_id, seq, reply)

    def first_changes(self) -> list[Change]:
        """Return what a new backup is told before it receives any item."""
        counts = (QUEUE_COUNTS, self._last_number, self._unfinished)
        return [counts, (SET_REPLIES, list(self._replies.entries()))]

    def values(self) -> list[StoredValue]:
        """Return all items, in order."""
        return [*(each.item for each in self._sent.all()), *self._items.values()]

    def copy(self, stored: StoredValue) -> Change | None:
        """Return the change that gives a new backup an item; None if the item has gone."""
        number = stored.key
        sent = self._sent.get(number)
        if sent is None and number not in self._items:
            return None
        taken_by = None if sent is None else (sent.client_id, sent.seq)
        return (ITEM_COPIED, number, prepare_to_send(stored.value), taken_by)

    def follow(self, changes: Sequence[Change], client_id: bytes, seq: int, reply: Any) -> None:
        """Make the changes of the primary, as its backup; see `Backups.send`."""
        with self.write_lock:
            if self.serves:
                raise NotServing
            for kind, *arguments in changes:
                self._follow_one(kind, arguments)
            self._replies.record(client_id, seq, reply)
        self.store.sweep()

    def _follow_one(self, kind: str, arguments: Sequence[Any]) -> None:
        if kind == ITEM_PUT:
            number, value = arguments
            self._insert(self.store.keep(number, value))
            self._last_number = number
            self._unfinished += 1
        elif kind == ITEM_COPIED:
            number, value, taken_by = arguments
            item = self.store.keep(number, value)
            if taken_by is None:
                self._insert(item)
            else:
                self._sent.add(SentItem(item, *taken_by))
        elif kind == ITEM_TAKEN:
            number, client_id, seq = arguments
            found = self._items.pop(number, None)
            if found is not None:  # else it has not been copied yet
                self._sent.add(SentItem(found, client_id, seq))
        elif kind in (ITEM_CONFIRMED, ITEM_RETURNED):
            sent = self._sent.get(arguments[0])
            if sent is not None:
                self._sent.remove(sent)
                if kind == ITEM_RETURNED:
                    self._insert(sent.item)
        elif kind == ITEM_DONE:
            self._unfinished -= 1
        elif kind == QUEUE_COUNTS:
            self._last_number, self._unfinished = arguments
        else:
            assert kind == SET_REPLIES
            for entry in arguments[0]:
                self._replies.record(*entry)

    def stop_serving(self) -> None:
        """Let another replica become the primary; waiting requests raise `NotServing`.

        First it waits until what was sent to consumers on connections is confirmed.
        """
        with self.write_lock:
            self._settled.wait_for(
                lambda: not self._sent.has_connections() or self.closed, _CONFIRM_TIMEOUT_SECONDS
            )
            self.serves = False
            self._notify_all()

    def _notify_all(self) -> None:
        for condition in (self._not_empty, self._not_full, self._all_done, self._settled):
            condition.notify_all()

    def close(self) -> None:
        """Close the queue, and wake all waiting threads, which then raise `LifecycleError`."""
        with self.write_lock:
            self.closed = True
            self._items.clear()
            self._sent.clear()
            self._views.clear()
            self._notify_all()
        self.store.tidy()

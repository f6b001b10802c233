"""The items of a queue, on the worker that has it.

An item that is sent to a consumer leaves the queue for good only when the consumer has confirmed
that it has received the item. Otherwise the item returns to its place in the queue. Any number of
threads may use a `QueueState`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from daskbatch.shared.data.codec import Value, prepare_to_send
from daskbatch.shared.data.messages import Request, closed_error
from daskbatch.shared.rpc.answer import ResultToConfirm
from daskbatch.shared.rpc.reply_cache import ReplyCache
from daskbatch.shared.store.operations import (
    JOIN,
    QSIZE,
    QUEUE_GET,
    QUEUE_PUT,
    QUEUE_STATS,
    TASK_DONE,
    by_name,
)
from daskbatch.shared.store.spill import SpillStore, StoredValue


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
    """

    def __init__(self, description: str, store: SpillStore, maxsize: int) -> None:
        self._description = description
        self.store = store
        self._maxsize = maxsize
        self._items: deque[StoredValue] = deque()
        #: How many items are not done; see `_task_done`.
        self._unfinished = 0
        self.closed = False
        self._lock = threading.Lock()
        self._not_empty = threading.Condition(self._lock)
        self._not_full = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        #: The number of the item that was put last.
        self._last_number = 0
        self._replies = ReplyCache()
        # Each is called with the request, and a function that returns whether the client has gone.
        self._handlers: dict[str, Callable[[Request, Callable[[], bool]], Any]] = by_name(
            {
                QUEUE_PUT: self._put,
                QUEUE_GET: self._get,
                TASK_DONE: self._task_done,
                JOIN: self._join,
                QSIZE: self._qsize,
                QUEUE_STATS: self._stats,
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
        if self.closed:
            raise closed_error(self._description)

    def _put(self, request: Request, is_gone: Callable[[], bool]) -> bool:
        """Append an item; False if there is no room, even after a wait."""
        value: Value = request.arguments[0]
        with self._lock:
            if request.wait > 0 and self._is_full():
                self._not_full.wait_for(lambda: not self._is_full() or self.closed, request.wait)
                if is_gone():
                    self._not_full.notify()  # another thread may have the room
                    return False
            self._require_open()
            if self._replies.find(request.client_id, request.seq):
                return True
            if self._is_full():
                return False
            self._last_number += 1
            self._items.append(self.store.keep(self._last_number, value))
            self._unfinished += 1
            self._replies.record(request.client_id, request.seq)
            self._not_empty.notify()
            return True

    def _is_full(self) -> bool:
        return 0 < self._maxsize <= len(self._items)

    def _get(self, request: Request, is_gone: Callable[[], bool]) -> Any:
        """Remove and return the first item, to be confirmed; None if there is none after a wait."""
        with self._lock:
            if request.wait > 0 and not self._items:
                self._not_empty.wait_for(lambda: self._items or self.closed, request.wait)
                if is_gone():
                    self._not_empty.notify()  # another thread may have the item
                    return None
            self._require_open()
            if not self._items:
                return None
            item = self._items.popleft()
            self._not_full.notify()

        def settle(received: bool) -> None:
            if received:
                return
            with self._lock:
                if not self.closed:
                    self._put_back(item)
                    self._not_empty.notify()

        try:
            return ResultToConfirm(prepare_to_send(item.value), settle)
        except Exception:  # the item is on disk, and cannot be read now
            settle(False)
            raise

    def _put_back(self, item: StoredValue) -> None:
        """Insert an item at its place by number: other items may have returned, too."""
        place = 0
        while place < len(self._items) and self._items[place].key < item.key:
            place += 1
        self._items.insert(place, item)

    def _qsize(self, request: Request, is_gone: Callable[[], bool]) -> int:
        return len(self._items)

    def _task_done(self, request: Request, is_gone: Callable[[], bool]) -> bool:
        """Count an item as done; False if all items are done already."""
        with self._lock:
            if self._replies.find(request.client_id, request.seq):
                return True
            if not self._unfinished:
                return False
            self._unfinished -= 1
            self._replies.record(request.client_id, request.seq)
            if not self._unfinished:
                self._all_done.notify_all()
            return True

    def _join(self, request: Request, is_gone: Callable[[], bool]) -> bool:
        """Wait until all items are done; return whether they are."""
        with self._lock:
            self._all_done.wait_for(lambda: not self._unfinished or self.closed, request.wait)
            self._require_open()
            return not self._unfinished

    def _stats(self, request: Request, is_gone: Callable[[], bool]) -> dict[str, Any]:
        memory, disk = self.store.sizes()
        return {"items": len(self._items), "bytes": memory, "spilled": disk}

    def close(self) -> None:
        """Close the queue, and wake all waiting threads, which then raise `LifecycleError`."""
        with self._lock:
            self.closed = True
            self._items.clear()
            for condition in (self._not_empty, self._not_full, self._all_done):
                condition.notify_all()
        self.store.tidy()

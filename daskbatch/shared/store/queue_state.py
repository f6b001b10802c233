"""What stands in a queue, on the worker that has it.

Does not know who puts and gets. What is taken out is only gone once the taker has it; if it
never comes there it is the first again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from daskbatch.shared.data.codec import Value, to_send
from daskbatch.shared.data.messages import Request, closed_error
from daskbatch.shared.rpc.answer import Answer
from daskbatch.shared.rpc.reply_cache import ReplyCache
from daskbatch.shared.store.spill import SpillStore, StoredValue


class QueueState:
    """The items of a queue, first in, first out.

    Parameters
    ----------
    what : str
        What the queue is called in messages.
    vault : SpillStore
        Where items are kept.
    maxsize : int
        How many there may be; 0 is no limit. What is on its way to a taker leaves room: who has
        it is known a moment after the taker goes on, and another one may count on the room by
        then. So there may be more for a while when takers are gone and items are back.
    """

    def __init__(self, what: str, vault: SpillStore, maxsize: int) -> None:
        self._what = what
        self.vault = vault
        self._maxsize = maxsize
        self._items: deque[StoredValue] = deque()
        self._unfinished = 0
        self.closed = False
        self._lock = threading.Lock()
        self._not_empty = threading.Condition(self._lock)
        self._not_full = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        #: The number of the item that came last.
        self._number = 0
        self._lately = ReplyCache()
        #: What may be asked by one who can be stopped in the middle of it.
        self.reads = frozenset[str]()
        self._operations: dict[str, Callable[..., Any]] = {
            "qsize": self._qsize,
            "stats": self._stats,
        }

    def __call__(self, request: Request, is_gone: Callable[[], bool]) -> Any:
        """Do what is asked for.

        Parameters
        ----------
        request : Request
            What.
        is_gone : callable
            Says whether nobody waits for the answer any more.
        """
        operation, sid, seq, wait, arguments = request
        self._require_open()
        if operation == "get":
            return self._get(wait, is_gone)
        if operation == "put":
            return self._put(sid, seq, wait, is_gone, *arguments)
        if operation == "task_done":
            return self._task_done(sid, seq)
        if operation == "join":
            return self._join(wait)
        return self._operations[operation](*arguments)

    def _require_open(self) -> None:
        if self.closed:
            raise closed_error(self._what)

    def _put(
        self, sid: bytes, seq: int, wait: float, is_gone: Callable[[], bool], value: Value
    ) -> bool:
        """Take an item in; False if there is no room, also after a while."""
        with self._lock:
            if wait > 0 and self._is_full():
                self._not_full.wait_for(lambda: not self._is_full() or self.closed, wait)
                if is_gone():
                    self._not_full.notify()  # another one may have the room
                    return False
            self._require_open()
            if self._lately.find(sid, seq):
                return True
            if self._is_full():
                return False
            self._number += 1
            self._items.append(self.vault.keep(self._number, value))
            self._unfinished += 1
            self._lately.note(sid, seq)
            self._not_empty.notify()
            return True

    def _is_full(self) -> bool:
        return 0 < self._maxsize <= len(self._items)

    def _get(self, wait: float, is_gone: Callable[[], bool]) -> Any:
        """Give the first item; None if there is none, also after a while."""
        with self._lock:
            if wait > 0 and not self._items:
                self._not_empty.wait_for(lambda: self._items or self.closed, wait)
                if is_gone():
                    self._not_empty.notify()  # another one may have the item
                    return None
            self._require_open()
            if not self._items:
                return None
            slot = self._items.popleft()
            self._not_full.notify()

        def settle(has_it: bool) -> None:
            if has_it:
                return
            with self._lock:
                if not self.closed:
                    self._put_back(slot)
                    self._not_empty.notify()

        try:
            return Answer(to_send(slot.value), settle)
        except Exception:  # it is on disk, and cannot be read now
            settle(False)
            raise

    def _put_back(self, slot: StoredValue) -> None:
        """Have an item where it was, though others may have come back first."""
        place = 0
        while place < len(self._items) and self._items[place].key < slot.key:
            place += 1
        self._items.insert(place, slot)

    def _qsize(self) -> int:
        return len(self._items)

    def _task_done(self, sid: bytes, seq: int) -> bool:
        """Count an item as done; False if there are no more to be done."""
        with self._lock:
            if self._lately.find(sid, seq):
                return True
            if not self._unfinished:
                return False
            self._unfinished -= 1
            self._lately.note(sid, seq)
            if not self._unfinished:
                self._all_done.notify_all()
            return True

    def _join(self, wait: float) -> bool:
        """Say whether all items are done, also after a while."""
        with self._lock:
            self._all_done.wait_for(lambda: not self._unfinished or self.closed, wait)
            self._require_open()
            return not self._unfinished

    def _stats(self) -> dict[str, Any]:
        memory, spilled = self.vault.sizes()
        return {"items": len(self._items), "bytes": memory, "spilled": spilled}

    def close(self) -> None:
        """Be no more; who waits is told."""
        with self._lock:
            self.closed = True
            self._items.clear()
            for condition in (self._not_empty, self._not_full, self._all_done):
                condition.notify_all()
        self.vault.tidy()

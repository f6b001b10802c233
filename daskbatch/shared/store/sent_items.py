"""The items that a queue has sent to its consumers, and whose receipt nobody has confirmed yet.

Not thread-safe: the queue's lock protects them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from daskbatch.shared.store.spill import StoredValue


@dataclass(slots=True, eq=False)
class SentItem:
    """An item, and the request that it answers.

    Parameters
    ----------
    item : StoredValue
        The item; its key is its number.
    client_id, seq : bytes, int
        The request. A later request of the same client confirms that the item was received.
    returns_at : float, optional
        The time of `monotonic` when it returns to the queue. `inf` if a connection will say whether
        the item was received. None if the time has not begun: an earlier primary has sent the item.
    """

    item: StoredValue
    client_id: bytes
    seq: int
    returns_at: float | None = None


class SentItems:
    """The sent items by number and by client; a client has one at most.

    Not thread-safe: the owner's lock protects it.
    """

    def __init__(self) -> None:
        self._by_number: dict[int, SentItem] = {}
        self._by_client: dict[bytes, SentItem] = {}
        #: Those about which no connection will say anything.
        self._unsettled: dict[int, SentItem] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def get(self, number: int) -> SentItem | None:
        """Return the sent item of a number."""
        return self._by_number.get(number)

    def of(self, client_id: bytes) -> SentItem | None:
        """Return the item that was sent to a client; None for a request without a client id."""
        return self._by_client.get(client_id)

    def all(self) -> Iterable[SentItem]:
        """Return all sent items."""
        return self._by_number.values()

    def add(self, sent: SentItem) -> None:
        """Add an item; replaces what was sent before of the same number."""
        number = sent.item.key
        self._by_number[number] = sent
        if sent.client_id:
            self._by_client[sent.client_id] = sent
        self.set_return(sent, sent.returns_at)

    def set_return(self, sent: SentItem, at: float | None) -> None:
        """Set when an item returns to the queue; see `SentItem.returns_at`."""
        sent.returns_at = at
        if at == inf:
            self._unsettled.pop(sent.item.key, None)
        else:
            self._unsettled[sent.item.key] = sent

    def remove(self, sent: SentItem) -> None:
        """Remove an item: it was received, or has returned."""
        number = sent.item.key
        self._by_number.pop(number, None)
        self._unsettled.pop(number, None)
        if self._by_client.get(sent.client_id) is sent:
            del self._by_client[sent.client_id]

    def has_connections(self) -> bool:
        """Return whether a connection will say of some item whether it was received."""
        return len(self._unsettled) < len(self._by_number)

    def late(self, now: float, seconds: float) -> list[SentItem]:
        """Return the items whose time is over.

        Parameters
        ----------
        now : float
            The time of `monotonic`.
        seconds : float
            After this time an item returns whose time has not begun yet.
        """
        found = []
        for sent in self._unsettled.values():
            if sent.returns_at is None:
                sent.returns_at = now + seconds
            if sent.returns_at < now:
                found.append(sent)
        return found

    def clear(self) -> None:
        """Remove all items."""
        self._by_number.clear()
        self._by_client.clear()
        self._unsettled.clear()

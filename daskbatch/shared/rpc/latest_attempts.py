"""Finds the latest attempt of a client's request: no earlier one has an effect.

A client that loses a connection sends its request again, on another connection or through the
scheduler. The earlier attempt may still wait here. It may also arrive later than the repeated one:
the system of the client delivers it once the link works again. Neither may take an item, or put
one, that nobody expects any longer.
"""

from __future__ import annotations

from collections import OrderedDict

#: Of how many clients the latest attempt is kept: of those with the latest requests.
_MAX_CLIENTS = 1 << 14


class Attempt:
    """One arrival of a request."""

    __slots__ = ("client_id", "is_answered", "seq")

    def __init__(self, client_id: bytes, seq: int) -> None:
        self.client_id = client_id
        self.seq = seq
        #: Whether the client needs no other answer than that there is nothing.
        self.is_answered = False


class LatestAttempts:
    """The latest attempt of each client. A client has one request at a time.

    Not thread-safe: the owner's lock protects it.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[bytes, Attempt] = OrderedDict()

    def begin(self, client_id: bytes, seq: int) -> Attempt | None:
        """Return the attempt that has arrived; None if the client no longer waits for its answer.

        Earlier attempts of the client are not the latest from now on. A request without a client
        id is never repeated, so that nothing is recorded of it.
        """
        attempt = Attempt(client_id, seq)
        if not client_id:
            return attempt
        found = self._latest.get(client_id)
        if found is not None and (found.seq, found.is_answered) >= (seq, True):
            return None
        self._latest[client_id] = attempt
        self._latest.move_to_end(client_id)
        if len(self._latest) > _MAX_CLIENTS:
            self._latest.popitem(last=False)
        return attempt

    def is_latest(self, attempt: Attempt) -> bool:
        """Return whether no other attempt of the client has arrived meanwhile."""
        return not attempt.client_id or self._latest.get(attempt.client_id) is attempt

    def finish(self, client_id: bytes, seq: int) -> None:
        """Record that a request is answered: no later arrival of it has an effect."""
        found = self._latest.get(client_id)
        if found is not None and found.seq == seq:
            found.is_answered = True

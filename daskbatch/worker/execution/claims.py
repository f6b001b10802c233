"""Decides whether a member of a block is run or revoked: the first claim on it holds.

Safe for any number of threads: the one that runs the block, and those that revoke members.
`isolation.shared_claims` has the claims that two processes share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from daskbatch.worker.execution.outcome import Status

#: The answer to a claim that has succeeded; any other answer is a `Status`.
RUN = -1


class Claims(Protocol):
    """The claims on the members of one block.

    The first thread that claims a member decides: it either runs the member, or gives it a
    status instead. This never changes afterwards. Safe for any number of threads.
    """

    def claim(self, member: int) -> int:
        """Claim a member to run it.

        Returns
        -------
        int
            RUN, or the status that the member was given before.
        """

    def revoke(self, members: Iterable[int], status: Status) -> list[int]:
        """Give a status to those members that no thread has claimed yet.

        Returns
        -------
        list of int
            The members that have begun, and so were not given the status.
        """

    def given(self, member: int) -> int:
        """Return the status that a member was given.

        RUN if a thread has claimed it to run it; DONE if no thread has claimed it.
        """


class LocalClaims:
    """Claims among the threads of one process, decided by `dict.setdefault`.

    `setdefault` is atomic in CPython for keys that are ints, so that no lock is needed.
    """

    def __init__(self) -> None:
        self._claims: dict[int, int] = {}

    def claim(self, member: int) -> int:
        return self._claims.setdefault(member, RUN)

    def revoke(self, members: Iterable[int], status: Status) -> list[int]:
        return [m for m in members if self._claims.setdefault(m, status) == RUN]

    def given(self, member: int) -> int:
        return self._claims.get(member, Status.DONE)

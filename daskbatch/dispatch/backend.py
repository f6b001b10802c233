"""The interface between a dispatcher and the cluster that runs its blocks.

Does not know Dask. `cluster.dask_backend` implements it on Dask; the tests have an
implementation within one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from daskbatch.dispatch.open_blocks.open_block import MemberLink
from daskbatch.dispatch.placer import Submitter
from daskbatch.dispatch.task_record import BlockKey, SubmittedBlock
from daskbatch.worker.execution.journal import JournaledBlock
from daskbatch.worker.execution.outcome import BlockResult, Status

#: Members of blocks, by the blocks' numbers.
Members = Mapping[int, Sequence[int]]

#: Called with the members that will not run, and those that have begun and are being stopped.
RevokeCallback = Callable[[Members, Members], None]


class InputsTooLarge(Exception):
    """The scheduler has refused a key: its inputs take more memory than a worker has."""


class Listener(Protocol):
    """The receiver of what happens on the cluster: a `Dispatcher`. Any thread may call it.

    `Dispatcher` explains the parameters.
    """

    def report(self, data: bytes) -> None:
        """A worker has sent a report of a block."""

    owes_notification: bool

    def report_all(self, frames: Iterable[bytes]) -> None:
        """An open block has sent reports. If `owes_notification` is set then, the caller calls
        `notify_waiting` a moment later.
        """

    def notify_waiting(self) -> None:
        """Some time has passed since `report_all`."""

    def key_finished(
        self,
        block: SubmittedBlock,
        result: BlockResult | None = None,
        error: BaseException | None = None,
    ) -> None:
        """The key of a block is finished, or has failed as a whole."""

    def keys_refused(self, blocks: Sequence[SubmittedBlock], lost: Sequence[BlockKey]) -> None:
        """The scheduler has created no key for these blocks, since it lacked what they need."""

    def key_cancelled(self, block: SubmittedBlock, why: str) -> None:
        """A client of the cluster has cancelled the key of a block, which may be running."""

    def slots_changed(self) -> None:
        """Workers have joined or left."""

    def values_lost(self, keys: Sequence[BlockKey]) -> None:
        """The results of finished blocks were lost with a worker."""

    def worker_died(
        self,
        keys: Sequence[BlockKey],
        details: Mapping[str, Any],
        traces: Sequence[JournaledBlock] | None,
        planned: bool = False,
    ) -> None:
        """A worker has died, or has left and interrupted what ran."""

    def link_opened(self, number: int, link: MemberLink) -> None:
        """The client has connected to an open block."""

    def link_lost(self, number: int, was_cut: bool) -> None:
        """The connection with an open block has closed, or could not be made."""

    def give_up(self, error: BaseException | None = None) -> None:
        """No further report will arrive: all unfinished tasks have to be settled."""


class Backend(Submitter, Protocol):
    """A cluster that runs graphs, and calls a `Listener`. Any thread may use it."""

    def revoke(
        self, members: Members, status: Status, then: RevokeCallback, begun: bool = True
    ) -> None:
        """Withdraw members of blocks.

        Parameters
        ----------
        members : mapping
            The members, by the numbers of their blocks.
        status : Status
            What they get instead of being run: CANCELLED or DEFERRED.
        then : callable
            Called exactly once, from any thread: `then(not_begun, stopping)`.
        begun : bool
            Whether members that have begun are stopped as well, if the status is CANCELLED.
        """

    def require_alive(self) -> None:
        """Raise `ServiceLost` if the cluster is gone."""

    def has_cancelled(self, block: SubmittedBlock) -> bool:
        """Return whether the key of a block was cancelled, and with it what it held, though the
        Batch goes on.
        """

    def release(self, block: SubmittedBlock) -> None:
        """Drop this client's interest in a block: it need not run unless others need its key."""

    def forget(self, blocks: Sequence[int]) -> None:
        """Drop the revocations that are remembered for blocks that are over."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some seconds, in a thread that holds no lock."""

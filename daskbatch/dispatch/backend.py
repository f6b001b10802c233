"""The interface between a dispatcher and the cluster that runs its blocks.

Does not know Dask. `cluster.dask_backend` implements it on Dask; the tests have an
implementation within one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from daskbatch.dispatch.placer import Submitter
from daskbatch.dispatch.task_record import BlockKey, SubmittedBlock
from daskbatch.worker.execution.journal import JournaledBlock
from daskbatch.worker.execution.outcome import BlockResult, Status

#: Members of blocks, by the blocks' numbers.
Members = Mapping[int, Sequence[int]]

#: Called with the members that will not run, and those that have begun and are being stopped.
RevokeCallback = Callable[[Members, Members], None]


class Listener(Protocol):
    """The receiver of what happens on the cluster: a `Dispatcher`. Any thread may call it."""

    def report(self, data: bytes) -> None: ...

    def key_finished(
        self,
        block: SubmittedBlock,
        result: BlockResult | None = None,
        error: BaseException | None = None,
    ) -> None: ...

    def values_lost(self, keys: Sequence[BlockKey]) -> None: ...

    def worker_died(
        self,
        keys: Sequence[BlockKey],
        details: Mapping[str, Any],
        traces: Sequence[JournaledBlock] | None,
    ) -> None: ...

    def give_up(self, error: BaseException | None = None) -> None: ...


class Backend(Submitter, Protocol):
    """A cluster that runs graphs, and calls a `Listener`. Any thread may use it."""

    def revoke(
        self, members: Members, status: Status, then: RevokeCallback, begun: bool = True
    ) -> None:
        """Withdraw members of blocks.

        `then(not_started, stopping)` is called exactly once, from any thread. With status
        CANCELLED and `begun`, running members are stopped as well.
        """

    def require_alive(self) -> None:
        """Raise `ServiceLost` if the cluster is gone."""

    def release(self, block: SubmittedBlock) -> None:
        """Drop this client's interest in a block: it need not run unless others need its key."""

    def forget(self, blocks: Sequence[int]) -> None:
        """Drop the revocations that are remembered for blocks that are over."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some seconds, in a thread that holds no lock."""

"""What a dispatcher needs of the cluster: an interface.

Does not know Dask; `dispatch.cluster` is it on Dask, and tests have one in their process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from daskbatch.dispatch.placer import Submitter
from daskbatch.dispatch.task_record import SubmittedBlock
from daskbatch.worker.execution.journal import Trace
from daskbatch.worker.execution.outcome import BlockResult, Status

Key = tuple[str, int]

#: Members of blocks, by the blocks' numbers.
Members = Mapping[int, Sequence[int]]


#: Told which members will not run, and which have begun and are being stopped.
Answered = Callable[[Members, Members], None]


class Listener(Protocol):
    """Who is told what happens on the cluster; it is a `Dispatcher`."""

    def report(self, data: bytes) -> None: ...

    def key_over(
        self,
        block: SubmittedBlock,
        result: BlockResult | None = None,
        error: BaseException | None = None,
    ) -> None: ...

    def values_gone(self, keys: Sequence[Key]) -> None: ...

    def worker_died(
        self, keys: Sequence[Key], why: Mapping[str, Any], traces: Sequence[Trace] | None
    ) -> None: ...

    def give_up(self, error: BaseException | None = None) -> None: ...


class Backend(Submitter, Protocol):
    """What runs graphs, and tells `Dispatcher.report` and `Dispatcher.key_over` of them."""

    def revoke(self, members: Members, status: Status, then: Answered, begun: bool = True) -> None:
        """Take members back; `then` is surely told, some time, what came of it.

        If they are cancelled, those that have `begun` are stopped, too.
        """

    def require_alive(self) -> None:
        """Raise `ServiceLost` if the cluster is gone."""

    def release(self, block: SubmittedBlock) -> None:
        """Want a block no more; it need not run, unless others hang on its key."""

    def forget(self, blocks: Sequence[int]) -> None:
        """Drop what is kept of the revocations of blocks that are over."""

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some time."""

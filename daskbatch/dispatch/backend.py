"""What a dispatcher needs of the cluster: an interface.

Does not know Dask; `dispatch.cluster` is it on Dask, and tests have one in their process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from daskbatch.dispatch.placement import Placement
from daskbatch.dispatch.placing import Submitter
from daskbatch.worker.outcome import Status

#: Members of blocks, by the blocks' numbers.
Members = Mapping[int, Sequence[int]]


class Backend(Submitter, Protocol):
    """What runs graphs, and tells `Dispatcher.report` and `Dispatcher.key_over` of them."""

    def revoke(self, members: Members, status: Status, then: Callable[[Members], None]) -> None:
        """Take members back; `then` is surely told, some time, which will not run."""

    def require_alive(self) -> None:
        """Raise `ServiceLost` if the cluster is gone."""

    def release(self, placement: Placement) -> None:
        """Want a block no more; it need not run, unless others hang on its key."""

    def forget(self, blocks: Sequence[int]) -> None:
        """Drop what is kept of the revocations of blocks that are over."""

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some time."""

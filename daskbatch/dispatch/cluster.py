"""The client's end of a Dask cluster: submits graphs, hears of keys, revokes members.

Does not know tasks; what it hears it tells a dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import dask
from distributed import Client

from daskbatch.dispatch.dispatcher import Members
from daskbatch.dispatch.lower import Lowered
from daskbatch.dispatch.placement import Placement
from daskbatch.dispatch.service import BatchService
from daskbatch.errors import BatchError
from daskbatch.worker.outcome import Status
from daskbatch.worker.plugin import BatchWorkerPlugin

#: Dask warns of graphs over 10 MB, with advice that does not apply to ours.
_NO_WARNING = {"distributed.admin.large-graph-warning-threshold": "1TB"}


class ClusterBackend:
    """A Dask cluster as a `dispatcher.Backend`.

    Parameters
    ----------
    client : distributed.Client
        Connected to it.
    topic : str
        Under which this client is told of its blocks.

    Raises
    ------
    BatchError
        The scheduler or a worker cannot import daskbatch.
    """

    def __init__(self, client: Client, topic: str) -> None:
        self.client = client
        self.slots = 0
        self._topic = topic
        self._report: Callable[[bytes], None] | None = None
        self._key_over: Callable[[Placement, BaseException | None, bool], None] | None = None
        try:
            client.register_plugin(BatchService())
            client.register_plugin(BatchWorkerPlugin())
        except ImportError as error:
            raise BatchError(
                f"the cluster at {client.scheduler.address} cannot import daskbatch ({error}); "
                "install the same version there, for its scheduler and its workers"
            ) from error

    def connect(
        self,
        report: Callable[[bytes], None],
        key_over: Callable[[Placement, BaseException | None, bool], None],
    ) -> None:
        """Say who is told of reports and of finished keys."""
        self._report, self._key_over = report, key_over
        self.client.subscribe_topic(self._topic, self._heard)
        self.slots = self.client.sync(
            self.client.scheduler.daskbatch_register, client=self.client.id, topic=self._topic
        )

    def disconnect(self) -> None:
        """Hear no more."""
        self._report = self._key_over = None
        self.client.unsubscribe_topic(self._topic)
        self.client.sync(self.client.scheduler.daskbatch_unregister, topic=self._topic)

    def _heard(self, event: tuple[float, Any]) -> None:
        _, message = event
        if isinstance(message, int):
            self.slots = message
        elif self._report is not None:
            self._report(message)

    def submit(self, lowered: Lowered) -> Mapping[str, Any]:
        keys = [*lowered.blocks, *lowered.buffers]
        with dask.config.set(_NO_WARNING):
            # fifo_timeout=0: whoever submits first is served first.
            futures = dict(
                zip(
                    keys,
                    self.client.get(lowered.graph, keys, sync=False, fifo_timeout=0),
                    strict=True,
                )
            )
        for key, placement in lowered.blocks.items():
            placement.future = futures[key]
            futures[key].add_done_callback(partial(self._finished, placement))
        return {key: futures[key] for key in lowered.buffers}

    def _finished(self, placement: Placement, future: Any) -> None:
        if self._key_over is None:
            return
        error: BaseException | None = None
        lost = False
        if future.status == "error":
            error = future.exception()
        elif future.status != "finished":
            error, lost = BatchError(f"its key is {future.status}"), True
        self._key_over(placement, error, lost)

    def revoke(self, members: Members, status: Status, then: Callable[[Members], None]) -> None:
        async def ask() -> None:
            revoked: Members = {}
            try:
                revoked = await self.client.scheduler.daskbatch_revoke(
                    topic=self._topic, members=dict(members), status=int(status)
                )
            finally:
                then(revoked)

        self.client.loop.add_callback(ask)

    def forget(self, blocks: Sequence[int]) -> None:
        self.client.loop.add_callback(
            self.client.scheduler.daskbatch_forget, topic=self._topic, blocks=list(blocks)
        )

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        self.client.loop.add_callback(self.client.loop.call_later, seconds, function)

"""One client's stay on a cluster: from the connection to the end.

Does not know tasks; it puts together what does, and takes it apart again.
"""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

from distributed import Client
from distributed.deploy import Cluster

from daskbatch import config
from daskbatch.describe.spec import Options
from daskbatch.dispatch.cell import Cell, Group, Phase
from daskbatch.dispatch.cluster import ClusterBackend
from daskbatch.dispatch.connection import connect
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.requests import Capacity, unmet
from daskbatch.errors import SpecError
from daskbatch.worker.plugin import run_on_worker

_logger = logging.getLogger("daskbatch")


class Session:
    """A dispatcher on a cluster.

    Parameters
    ----------
    cluster, num_workers
        See `daskbatch.Batch`.
    directory : str
        Where the workers of an embedded cluster work.
    topic : str
        What no other client has, for reports to find their way.
    environment : mapping, optional
        What is added to the environment of an embedded cluster's workers.
    """

    def __init__(
        self,
        cluster: str | Client | Cluster | None,
        num_workers: int | None,
        directory: str,
        topic: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._ended = False
        #: How many tasks wait in the background, to be started when they are needed.
        self.queued: Callable[[], int] = int
        self._connection = connect(cluster, num_workers, directory, environment)
        self.client: Client = self._connection.client
        try:
            self._backend = ClusterBackend(self.client, topic)
            setting = Setting(
                topic=topic,
                entry=run_on_worker,
                budget=config.get_seconds("block-budget"),
                share_limit=config.get_bytes("share-limit"),
                inline_limit=config.get_bytes("inline-limit"),
                output_limit=config.get_bytes("output-limit"),
            )
            self.dispatcher = Dispatcher(self._backend, setting)
            self._backend.connect(self.dispatcher)
        except BaseException:
            self._connection.close()
            raise
        _open.add(self)

    def submit(self, cells: Sequence[Cell], name: str, group: Group | None) -> None:
        """Start tasks; see `Dispatcher.submit`.

        Raises
        ------
        SpecError
            One asks for what no worker has, and there will be no others.
        """
        asking = [cell for cell in cells if cell.options.resources or cell.options.workers]
        refused = _refused(asking, self._backend.capacities()) if asking else {}
        if refused and self._connection.embedded is not None:
            cell, why = next(iter(refused.items()))
            raise SpecError(f"task {cell.label} {why}")
        self.dispatcher.submit(cells, name, group)
        if asking:
            self._look_after(asking, set(refused))

    def _look_after(self, cells: Sequence[Cell], unmet_before: set[Cell]) -> None:
        """Refuse what no worker could run all the time between two looks: some come and go."""

        def look(workers: list[Capacity]) -> None:
            refused = _refused([c for c in cells if c.phase == Phase.WAITING], workers)
            self.dispatcher.refuse({c: why for c, why in refused.items() if c in unmet_before})
            left = [cell for cell in cells if not cell.over]
            if left:
                self._look_after(left, set(refused))

        self._backend.capacities_later(config.get_seconds("unmet-timeout"), look)

    @property
    def slots(self) -> int:
        """How many tasks run at once."""
        return self._backend.slots

    def reserve_cores(self) -> None:
        """Have each worker offer as many cores as it has threads, as a resource."""
        self._backend.reserve_cores()

    @property
    def embedded(self) -> bool:
        """Whether the cluster was made here, with as many slots as were asked for."""
        return self._connection.embedded is not None

    @property
    def ended(self) -> bool:
        return self._ended

    def end(self) -> None:
        """Give up what is not over, and leave the cluster; an embedded one ends."""
        if self._ended:
            return
        self._ended = True
        _open.discard(self)
        self.dispatcher.give_up()
        self._backend.disconnect()
        self._connection.close()

    def abandon(self) -> None:
        """End from where one must not wait: a finalizer, which any thread may run."""
        if not self._ended:
            self._connection.close_in_background()


def _refused(cells: Iterable[Cell], workers: Sequence[Capacity]) -> dict[Cell, str]:
    """Give the tasks that no worker can run, and why."""
    reasons: dict[Options, str | None] = {}
    for cell in cells:
        if cell.options not in reasons:
            reasons[cell.options] = unmet(cell.options, workers)
    return {cell: why for cell in cells if (why := reasons[cell.options]) is not None}


#: A session ends with its Batch; what is left at exit is ended there.
_open: weakref.WeakSet[Session] = weakref.WeakSet()


# A forked child has copies of the creator's sessions, and must leave them alone.
os.register_at_fork(after_in_child=_open.clear)


@atexit.register
def _end_all() -> None:
    for session in list(_open):
        left = session.dispatcher.outcomes.left + session.queued()
        if left:
            _logger.warning(
                "%d tasks were given up, because the program ended; "
                "call close() and join() on a Batch to wait for its tasks",
                left,
            )
        session.end()

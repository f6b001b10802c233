"""The scheduler's part of the dashboard: what is shown, and the page /daskbatch.

While somebody looks at the page, the scheduler asks each client for a summary once a second. Nobody
else asks, so that the page costs nothing while it is closed. All runs on the scheduler's event
loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from distributed import Scheduler

from daskbatch.dashboard.on_demand import on_demand_of
from daskbatch.dashboard.page_source import ClientOnPage, SharedSize
from daskbatch.dashboard.shown_tasks import ShownTasks
from daskbatch.dashboard.summary import ClientSummary, loads
from daskbatch.dashboard.task_times import TaskTimes

_logger = logging.getLogger("daskbatch")

#: How often clients, and shards, are asked while somebody looks.
_ASK_INTERVAL_SECONDS = 1.0

#: How long shards may take to say how much they hold.
_SIZES_TIMEOUT_SECONDS = 5.0


class Dashboard:
    """What Dask's dashboard and the page /daskbatch show. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    clients : iterable of ClientOnPage
        The registered clients; iterated over each time.
    ask : callable
        Asks a client, by its topic, for a summary.
    shared_plugin : str
        The name of the plugin for shared objects, which need not exist.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clients: Iterable[ClientOnPage],
        ask: Callable[[str], None],
        shared_plugin: str,
    ) -> None:
        self._scheduler = scheduler
        self._clients = clients
        self._ask = ask
        self._shared_plugin = shared_plugin
        self.tasks = ShownTasks(scheduler)
        self.times = TaskTimes(scheduler)
        self._summaries: dict[str, ClientSummary] = {}
        self._next_ask = 0.0
        #: The sizes of shared objects when they were last asked for.
        self.shared: Sequence[SharedSize] = ()
        self._asking: asyncio.Task[None] | None = None

    def connect(self) -> None:
        """Add the page to the dashboard, if there is one; or once there is one."""
        on_demand = on_demand_of(self._scheduler)
        if on_demand is None:
            self._connect()
        else:
            on_demand.then(self._connect)

    def _connect(self) -> None:
        try:
            from daskbatch.dashboard.page import connect  # needs bokeh, and takes its time
        except ImportError:  # Dask's dashboard is missing, too
            return
        try:
            connect(self._scheduler, self)
        except Exception:  # another version of Dask or of bokeh
            _logger.warning("the page /daskbatch cannot be shown", exc_info=True)

    def look(self) -> None:
        """Ask clients and shards how they are; called as long as somebody looks."""
        now = monotonic()
        if now < self._next_ask:
            return
        self._next_ask = now + _ASK_INTERVAL_SECONDS
        for client in self._clients:
            self._ask(client.topic)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask_sizes())

    async def _ask_sizes(self) -> None:
        plugin: Any = self._scheduler.plugins.get(self._shared_plugin)
        if plugin is not None:
            self.shared = [SharedSize(*each) for each in await plugin.sizes(_SIZES_TIMEOUT_SECONDS)]

    def record(self, topic: str, summary: str) -> None:
        """Record what a client has answered, if it is registered."""
        if any(client.topic == topic for client in self._clients):
            try:
                self._summaries[topic] = loads(summary)
            except ValueError:
                _logger.warning("a client has sent what is not a summary", exc_info=True)

    def clients(self) -> list[tuple[ClientOnPage, ClientSummary | None]]:
        """Return the registered clients, and what each has answered last."""
        return [(client, self._summaries.get(client.topic)) for client in self._clients]

    def remove(self, topic: str) -> None:
        """Forget a client that has gone."""
        self.tasks.remove(topic)
        self._summaries.pop(topic, None)

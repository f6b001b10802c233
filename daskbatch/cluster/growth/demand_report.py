"""Reports to the scheduler, while tasks are unfinished, how many of them could run.

All runs on Dask's event loop, except for `DemandReport.start`, which any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable

import dask
from dask.utils import parse_timedelta
from distributed import Client

from daskbatch.dispatch.demand import TaskDemand

#: How long after tasks are started, and then how often, they are counted. Those of most programs on
#: idle clusters are over by then.
_FIRST_SECONDS, _INTERVAL_SECONDS = 0.1, 1.0


class DemandReport:
    """The reports of one client.

    Parameters
    ----------
    client : distributed.Client
        The connection.
    topic : str
        The client's topic.
    measure : callable
        Returns the demand, for the seconds that count for a task of unknown duration.
    """

    def __init__(self, client: Client, topic: str, measure: Callable[[float], TaskDemand]) -> None:
        self._client = client
        self._topic = topic
        self._measure = measure
        self._active = False

    def start(self) -> None:
        """Report from now on, until all tasks are over."""
        if not self._active:
            self._active = True
            loop = self._client.loop
            loop.add_callback(loop.call_later, _FIRST_SECONDS, self._report)

    def _report(self) -> None:
        # First: tasks that are started from here on start the reports anew.
        self._active = False
        if self._client.status != "running":
            return
        unknown = parse_timedelta(dask.config.get("distributed.scheduler.unknown-task-duration"))
        demand = self._measure(unknown)
        self._client._send_to_scheduler(
            {
                "op": "daskbatch-demand",
                "topic": self._topic,
                "tasks": demand.tasks,
                "seconds": demand.seconds,
            }
        )
        if demand.tasks and not self._active:
            self._active = True
            self._client.loop.call_later(_INTERVAL_SECONDS, self._report)

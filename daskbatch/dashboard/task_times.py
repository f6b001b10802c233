"""Shows the tasks of open blocks in Dask's task stream, each by its name.

For Dask an open block is one task, which ends when the block closes. While somebody looks at the
task stream, clients report when and where the members have run, and they are added to the stream:
each worker has a row for each member that ran at the same time. All runs on the scheduler's event
loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from distributed import Scheduler
from distributed.diagnostics.task_stream import TaskStreamPlugin


class TaskTime(NamedTuple):
    """When a member of an open block has run.

    Parameters
    ----------
    name : str
        Its name on the dashboard.
    number : int
        Its number in its client.
    worker : str
        The address of the worker.
    begin, end : float
        When it began and ended, in seconds since the epoch.
    failed : bool
        Whether it has raised.
    """

    name: str
    number: int
    worker: str
    begin: float
    end: float
    failed: bool


class TaskTimes:
    """The tasks that were added to the task stream. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: By worker: when the last task of each row ended.
        self._rows: dict[str, list[float]] = {}

    def __len__(self) -> int:
        """Return the number of workers whose rows are kept."""
        return len(self._rows)

    def add(self, times: Sequence[TaskTime]) -> bool:
        """Add tasks to the stream; return whether there is one, since somebody has looked."""
        plugin: Any = self._scheduler.plugins.get(TaskStreamPlugin.name)
        if plugin is None:
            return False
        for each in sorted(times, key=lambda time: time.begin):
            message = {
                "key": (each.name, each.number),
                "worker": each.worker,
                "thread": f"member {self._row(each)}",
                "status": "error" if each.failed else "OK",
                "startstops": [{"action": "compute", "start": each.begin, "stop": each.end}],
            }
            plugin.buffer.append(message)
            plugin.index += 1
        return True

    def _row(self, time: TaskTime) -> int:
        if time.worker not in self._rows:
            workers = self._scheduler.workers
            self._rows = {name: rows for name, rows in self._rows.items() if name in workers}
        rows = self._rows.setdefault(time.worker, [])
        row = next((n for n, end in enumerate(rows) if end <= time.begin), len(rows))
        rows[row : row + 1] = [time.end]
        return row

"""Mends what Dask's pages do not expect of keys and groups that come and go.

The page Groups fails if a group depends on one that Dask has removed with its last key. The page
Graph knows only keys that plugins have learnt of by `update_graph`. All runs on the scheduler's
event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from distributed import Scheduler
from distributed.scheduler import TaskState

_logger = logging.getLogger("daskbatch")


class KeyGroups:
    """The groups of keys of daskbatch, and which of them depend on which. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: By the name of a group, the names of the groups that depend on it.
        self._dependents: dict[str, set[str]] = {}

    def add(self, keys: Iterable[Any]) -> None:
        """Record the groups of keys that were submitted."""
        tasks = self._scheduler.tasks
        for group in {tasks[key].group for key in keys if key in tasks}:
            self._dependents.setdefault(group.name, set())
            for before in group.dependencies:
                self._dependents.setdefault(before.name, set()).add(group.name)

    def forget(self, key: Any) -> None:
        """Let no group depend on one that Dask is about to remove with its last key."""
        group = self._scheduler.tasks[key].group
        dependents = self._dependents.get(group.name)
        if dependents is None or any(
            count for state, count in group.states.items() if state != "forgotten"
        ):
            return
        del self._dependents[group.name]
        for name in dependents:
            after = self._scheduler.task_groups.get(name)
            if after is not None:
                after.dependencies.discard(group)
        for before in group.dependencies:
            self._dependents.get(before.name, set()).discard(group.name)

    def clear(self) -> None:
        """Forget all groups."""
        self._dependents.clear()


def announce(scheduler: Scheduler, states: Sequence[TaskState]) -> None:
    """Notify plugins of keys that no client has submitted, before their first transition."""
    keys = [state.key for state in states]
    priorities = {state.key: state.priority for state in states}
    for plugin in list(scheduler.plugins.values()):
        try:
            plugin.update_graph(
                scheduler,
                client="",
                tasks=keys,
                keys=set(keys),
                annotations={},
                priority=priorities,
                stimulus_id="daskbatch-announce",
            )
        except Exception:  # as Dask does: a plugin must not break the scheduler
            _logger.debug("a plugin of the scheduler has failed", exc_info=True)

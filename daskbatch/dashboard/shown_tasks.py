"""Has Dask's dashboard count the tasks of the user, and not the blocks that hold them.

Dask counts keys, by state, in groups of which each has a prefix: its name. A key of ours is a block
of tasks. So for each client and name there is one more group without keys, which counts the tasks
that the keys do not stand for. Dask decides nothing by these groups. A task that has failed gets a
key of its own, because the key of its block has not failed.

All runs on the scheduler's event loop.
"""

from __future__ import annotations

import uuid
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from dask.task_spec import Task
from distributed import Scheduler
from distributed.scheduler import ErredTask, TaskGroup, TaskPrefix

from daskbatch.dashboard.key_groups import KeyGroups, announce
from daskbatch.dispatch.key_names import NameCounts, dashboard_name

#: The name of a client that Dask records as one that wants the keys of failed tasks, so that they
#: stay until the client of the tasks has gone.
_FAILURES_CLIENT = "daskbatch-failures"

#: Of so many failed tasks of a client there are keys; of further ones the dashboard shows the
#: number.
_MAX_FAILED_KEYS = 500

#: How many blocks that have gone are remembered, for what their client still says about them.
_MAX_GONE_BLOCKS = 10_000


class _ShownBlock:
    """A block on the dashboard.

    Parameters
    ----------
    topic : str
        Its client.
    names : NameCounts
        How many members have which name.
    """

    __slots__ = ("names", "over", "own", "state", "topic")

    def __init__(self, topic: str, names: NameCounts) -> None:
        self.topic = topic
        self.names = dict(names)
        #: The name that Dask's own count of the key stands for; None if members have several.
        self.own = names[0][0] if len(names) == 1 else None
        self.state = ""
        #: Whether it has run.
        self.over = False

    def amounts(self) -> dict[str, int]:
        """Return how many tasks of each name Dask does not count itself."""
        return {n: max(0, count - (n == self.own)) for n, count in self.names.items()}


class ShownTasks:
    """The tasks of all clients on Dask's dashboard. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._key_groups = KeyGroups(scheduler)
        self._blocks: dict[Any, _ShownBlock] = {}
        #: Whether a block that has gone had run.
        self._gone: OrderedDict[Any, bool] = OrderedDict()
        #: By client and name.
        self._groups: dict[tuple[str, str], TaskGroup] = {}
        self._nonces: dict[str, str] = {}
        self._failed_keys: dict[str, list[Any]] = {}

    # -- blocks ---------------------------------------------------------------------------

    def add(self, names: Mapping[Any, NameCounts], topics: Mapping[Any, str]) -> None:
        """Show blocks that a client has submitted.

        Parameters
        ----------
        names, topics : mapping
            By key: how many members have which name, and the client.
        """
        self._key_groups.add(names)
        for key, counts in names.items():
            if counts and key not in self._blocks:
                self._blocks[key] = _ShownBlock(topics[key], counts)
                self.transition(key, "released")

    def transition(self, key: Any, finish: str) -> None:
        """Follow the state of a key."""
        if finish == "forgotten":
            self._key_groups.forget(key)
        block = self._blocks.get(key)
        if block is None:
            return
        if finish == "forgotten":
            del self._blocks[key]
            self._move(block, block.amounts(), "")
            if block.over:
                self._move(block, block.names, "released", add=True)
            self._gone[key] = block.over
            if len(self._gone) > _MAX_GONE_BLOCKS:
                self._gone.popitem(last=False)
            return
        block.over = block.over or finish == "memory"
        if block.over and finish != "memory":
            # If Dask runs its key again, that is a replacement: see `worker_loss.mark_lost`.
            finish = "released"
        self._move(block, block.amounts(), finish)

    def _move(
        self, block: _ShownBlock, amounts: Mapping[str, int], state: str, add: bool = False
    ) -> None:
        before = "" if add else block.state
        if before == state:
            return
        for name, count in amounts.items():
            if before:
                self._count(block.topic, name, before, -count)
            if state:
                self._count(block.topic, name, state, count)
        block.state = state

    def withdraw(self, topic: str, key: Any, names: Mapping[str, int]) -> None:
        """Count members of a block no longer: they did not run there, or have failed.

        Parameters
        ----------
        topic : str
            The client.
        key : object
            The block.
        names : mapping
            How many members of which name.
        """
        block = self._blocks.get(key)
        if block is None:
            if self._gone.get(key):
                for name, count in names.items():
                    self._count(topic, name, "released", -count)
            return
        before = block.amounts()
        for name, count in names.items():
            if name in block.names:
                block.names[name] = max(0, block.names[name] - count)
        if block.state:
            after = block.amounts()
            for name, count in before.items():
                self._count(topic, name, block.state, after[name] - count)

    def change(self, topic: str, changes: Sequence[tuple[str, str, int]]) -> None:
        """Change the counts of tasks that are in no block with members: name, state, number."""
        # First what increases: a group without tasks is removed.
        for name, state, count in sorted(changes, key=lambda change: -change[2]):
            self._count(topic, name, state, count)

    # -- counts ---------------------------------------------------------------------------

    def _count(self, topic: str, name: str, state: str, count: int) -> None:
        """Add to the number of tasks of a name in a state."""
        if not count:
            return
        group = self._groups.get((topic, name))
        if group is None:
            group = self._groups[topic, name] = self._make_group(topic, name)
        count = max(count, -group.states[state])
        group.states[state] += count
        group.prefix.states[state] += count
        if not any(group.states.values()):
            # Pages divide by the number of tasks in a group.
            self._remove_group(topic, name)

    def _make_group(self, topic: str, name: str) -> TaskGroup:
        prefixes, groups = self._scheduler.task_prefixes, self._scheduler.task_groups
        prefix = prefixes.get(name)
        if prefix is None:
            prefix = prefixes[name] = TaskPrefix(name)
        nonce = self._nonces.setdefault(topic, uuid.uuid4().hex[:16])
        group = groups[f"{name}-{nonce}"] = TaskGroup(f"{name}-{nonce}", prefix)
        return group

    def _remove_group(self, topic: str, name: str) -> None:
        group = self._groups.pop((topic, name))
        for state, count in group.states.items():
            group.prefix.states[state] -= count
            group.states[state] = 0
        group.prefix.remove_group(group)
        self._scheduler.task_groups.pop(group.name, None)

    # -- failures -------------------------------------------------------------------------

    def fail(self, topic: str, failures: Sequence[tuple[str, str, str]], others: Any) -> None:
        """Show tasks that have failed.

        Parameters
        ----------
        topic : str
            Their client.
        failures : sequence
            For each its name, its exception, and its worker.
        others : mapping
            The numbers of further ones, by their names.
        """
        kept = self._failed_keys.setdefault(topic, [])
        made: list[Any] = []
        counts = Counter(others)
        for name, error, worker in failures:
            if len(kept) + len(made) < _MAX_FAILED_KEYS:
                made.append(self._make_failed_key(topic, dashboard_name(name), error, worker))
            else:
                counts[name] += 1
        for name, count in counts.items():
            self._count(topic, dashboard_name(name), "erred", count)
        if made:
            kept += made
            announce(self._scheduler, [self._scheduler.tasks[key] for key in made])
            self._scheduler.client_desires_keys(keys=made, client=_FAILURES_CLIENT)
            stimulus = f"daskbatch-failed-{time()}"
            self._scheduler.transitions(dict.fromkeys(made, "erred"), stimulus)

    def _make_failed_key(self, topic: str, name: str, error: str, worker: str) -> Any:
        # A nonce that the group of the counts does not have: Dask removes a group with its keys.
        nonce = self._nonces.setdefault(f"{topic} failed", uuid.uuid4().hex[:16])
        key = f"{name}-{nonce}", len(self._failed_keys[topic]) + len(self._scheduler.tasks)
        while key in self._scheduler.tasks:
            key = key[0], key[1] + 1
        state = self._scheduler.new_task(key, Task(key, _raise, error), "released")
        state.exception_blame = state
        state.exception_text = error
        state.traceback_text = ""
        state.erred_on = {worker} if worker else set()
        state.priority = (0, 0, 0)
        self._scheduler.erred_tasks.appendleft(ErredTask(key, time(), {worker}, error, ""))
        return key

    # -- the end --------------------------------------------------------------------------

    def remove(self, topic: str) -> None:
        """Show nothing of a client any longer, apart from keys that Dask still has."""
        for key in [key for key, block in self._blocks.items() if block.topic == topic]:
            del self._blocks[key]
        for owner, name in [each for each in self._groups if each[0] == topic]:
            self._remove_group(owner, name)
        keys = self._failed_keys.pop(topic, None)
        if keys:
            self._scheduler.client_releases_keys(keys=keys, client=_FAILURES_CLIENT)
        for nonce in (topic, f"{topic} failed"):
            self._nonces.pop(nonce, None)

    def clear(self) -> None:
        """Forget all; Dask has forgotten all groups and keys."""
        self._key_groups.clear()
        self._blocks.clear()
        self._gone.clear()
        self._groups.clear()
        self._failed_keys.clear()


def _raise(error: str) -> None:
    """Raise the failure of a task again, if Dask is asked to run its key again."""
    raise RuntimeError(error)

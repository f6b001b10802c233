"""Keeps the stage of each task of a job, and decides what runs again after a failure. Pure.

A task is given by its position in a `TaskGraph`. One thread at a time may use a `JobProgress`.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from daskbatch.execute.scheduling.graph import TaskGraph

#: A task fails permanently once this many workers have died while they ran it.
MAX_DEATHS = 3


class Stage(IntEnum):
    """The stage of a task in its job."""

    BLOCKED = 0
    READY = 1
    RUNNING = 2
    DONE = 3
    FAILED = 4


class Change(NamedTuple):
    """The effects of a failure on the stages of tasks.

    Parameters
    ----------
    ready : list of int
        Tasks that may run now.
    blocked : list of int
        Tasks that were ready, and now wait for others.
    redone : list of int
        Tasks that were done, and are executed again.
    is_permanent : bool
        Whether the failure is permanent: the task may not be executed again. Then the stages of
        the other tasks have not changed.
    """

    ready: list[int]
    blocked: list[int]
    redone: list[int]
    is_permanent: bool = False


_PERMANENT_FAILURE = Change([], [], [], is_permanent=True)


class JobProgress:
    """The stages of a job's tasks.

    Not thread-safe: one thread at a time may use it.

    Parameters
    ----------
    graph : TaskGraph
        The tasks.
    attempts : int
        How often a task is executed at most if its own code fails.
    max_reexecutions : int
        How often a task is executed again at most because of missing results.

    Examples
    --------
    >>> from daskbatch.execute.jobs.task import Task
    >>> first, second = Task(None, 1), Task(None, 2)
    >>> second.dependencies.add(first)
    >>> progress = JobProgress(TaskGraph([first, second]), attempts=1, max_reexecutions=16)
    >>> progress.begin([])
    [0]
    >>> progress.executing(0)
    >>> progress.succeeded(0)
    [1]
    """

    def __init__(self, graph: TaskGraph, attempts: int, max_reexecutions: int) -> None:
        self._graph = graph
        self._attempts = attempts
        self._max_reexecutions = max_reexecutions
        count = len(graph.tasks)
        self.stages = [Stage.BLOCKED] * count
        #: How many tasks are not done.
        self.unfinished = count
        self._blockers: dict[int, set[int]] = {}
        #: What waits for a task besides its dependents: it has found its result missing.
        self._waiting_again: defaultdict[int, set[int]] = defaultdict(set)
        self._failures: Counter[int] = Counter()
        self._reexecutions: Counter[int] = Counter()
        self._deaths: Counter[int] = Counter()
        # A counter in place of a clock: only the order of events matters.
        self._clock = itertools.count(1)
        self._began: dict[int, int] = {}
        self._completed: dict[int, int] = {}

    def begin(self, done: Iterable[int]) -> list[int]:
        """Begin the job; returns the tasks that may run, by priority.

        Parameters
        ----------
        done : iterable of int
            Tasks that are done already.
        """
        for task in done:
            self.stages[task] = Stage.DONE
            self.unfinished -= 1
        ready = [
            task
            for task, stage in enumerate(self.stages)
            if stage == Stage.BLOCKED and (not self._graph.dependencies or self._queue(task))
        ]
        for task in ready:
            self.stages[task] = Stage.READY
        return self._by_priority(ready)

    def executing(self, task: int) -> None:
        """Record that a task that was ready has been assigned to a worker."""
        self.stages[task] = Stage.RUNNING
        if self._graph.dependencies:
            self._began[task] = next(self._clock)

    def succeeded(self, task: int) -> list[int]:
        """Record that a task is done; returns the tasks that may run now."""
        if self.stages[task] == Stage.DONE:
            return []
        self.stages[task] = Stage.DONE
        self.unfinished -= 1
        self._completed[task] = next(self._clock)
        self._blockers.pop(task, None)
        if not self._blockers:
            return []
        after: Iterable[int] = self._graph.dependents.get(task, ())
        if task in self._waiting_again:
            after = {*after, *self._waiting_again.pop(task)}
        ready = []
        for each in after:
            blockers = self._blockers.get(each)
            if blockers is not None:
                blockers.discard(task)
                if not blockers:
                    del self._blockers[each]
                    self.stages[each] = Stage.READY
                    ready.append(each)
        return self._by_priority(ready)

    def failed(self, task: int) -> Change:
        """Record that a task's own code has failed, which counts as an attempt."""
        self._failures[task] += 1
        if self._failures[task] >= self._attempts:
            self.stages[task] = Stage.FAILED
            return _PERMANENT_FAILURE
        return self.again(task)

    def lost(self, task: int, deaths: int) -> Change:
        """Record that a task was lost with its worker, or never reached the worker.

        Parameters
        ----------
        task : int
            The task.
        deaths : int
            How many workers died in this loss while they ran the task.
        """
        self._deaths[task] += deaths
        if self._deaths[task] >= MAX_DEATHS:
            self.stages[task] = Stage.FAILED
            return _PERMANENT_FAILURE
        return self.again(task)

    def again(self, task: int) -> Change:
        """Queue a task that was running, so that it is executed again."""
        return Change([task], [], []) if self._queue(task) else Change([], [], [])

    def dependencies_failed(self, task: int, named: Iterable[int]) -> Change:
        """Record that results which a task needs are missing: their tasks run again before it.

        If one of these results was computed again after the task began, its task does not run once
        more: the task that failed runs again and finds the new result.

        Parameters
        ----------
        task : int
            The task that has failed because results are missing.
        named : iterable of int
            The tasks whose results are missing, each an ancestor of the task.
        """
        began = self._began.get(task, 0)
        redone = [
            each
            for each in named
            if self.stages[each] == Stage.DONE and self._completed.get(each, 0) <= began
        ]
        if any(self._reexecutions[each] >= self._max_reexecutions for each in (task, *redone)):
            self.stages[task] = Stage.FAILED
            return _PERMANENT_FAILURE
        self._reexecutions[task] += 1
        change = self._redo(redone)
        for each in named:
            if self.stages[each] != Stage.DONE:
                self._waiting_again[each].add(task)
        if self._queue(task, more=named):
            change.ready.append(task)
        return change

    def dependency_failed(self, task: int) -> Change:
        """Record that the result of a task is missing; the task is executed again."""
        if self._reexecutions[task] >= self._max_reexecutions:
            if self.stages[task] == Stage.DONE:
                self.unfinished += 1
            self.stages[task] = Stage.FAILED
            return _PERMANENT_FAILURE
        if self.stages[task] == Stage.RUNNING:
            self._reexecutions[task] += 1
            return self.again(task)
        if self.stages[task] != Stage.DONE:
            return Change([], [], [])  # it is already going to be executed again
        return self._redo([task])

    def undone(self, task: int) -> list[int]:
        """Count a task that was done as running, because it was marked as failed.

        Returns the tasks that were ready, and now wait for it.
        """
        if self.stages[task] != Stage.DONE:
            return []
        self.stages[task] = Stage.RUNNING
        self.unfinished += 1
        return self._block_dependents(task)

    def _redo(self, tasks: list[int]) -> Change:
        """Count tasks that were done as not done, and block the tasks that depend on them."""
        for task in tasks:
            self.stages[task] = Stage.BLOCKED
            self.unfinished += 1
            self._reexecutions[task] += 1
        blocked: list[int] = []
        for task in tasks:
            blocked += self._block_dependents(task)
        ready = [task for task in tasks if self._queue(task)]
        return Change(self._by_priority(ready), blocked, list(tasks))

    def _block_dependents(self, task: int) -> list[int]:
        blocked = []
        for after in self._graph.dependents.get(task, ()):
            if self.stages[after] == Stage.READY:
                self.stages[after] = Stage.BLOCKED
                blocked.append(after)
            if self.stages[after] == Stage.BLOCKED:
                self._blockers.setdefault(after, set()).add(task)
        return blocked

    def _queue(self, task: int, more: Iterable[int] = ()) -> bool:
        """Make a task ready, or blocked by the tasks that it waits for; returns if it is ready."""
        before = self._graph.dependencies.get(task, ())
        blockers = {each for each in (*before, *more) if self.stages[each] != Stage.DONE}
        if blockers:
            self._blockers[task] = blockers
            self.stages[task] = Stage.BLOCKED
            return False
        self._blockers.pop(task, None)
        self.stages[task] = Stage.READY
        return True

    def _by_priority(self, tasks: list[int]) -> list[int]:
        return sorted(tasks, key=self._graph.ranks.__getitem__)

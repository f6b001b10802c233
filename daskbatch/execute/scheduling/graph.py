"""The graph of a job: the dependencies between its tasks, which are identified by position.

Pure. A graph never changes after its creation, so several threads may read it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Protocol

from daskbatch.errors import GraphError, SpecError


class Node(Protocol):
    """The attributes of a task that the graph uses."""

    id: Hashable
    name: str | None
    priority: Any
    dependencies: set[Any]
    dependents: set[Any]

    @property
    def _is_connected(self) -> bool: ...


class TaskGraph:
    """The tasks of a job by their position, with edges in both directions.

    Parameters
    ----------
    tasks : sequence of Task
        The tasks, in the order in which their results are yielded. If only one of two tasks
        names the other as its dependency or dependent, the edge is added to the other task, too.

    Attributes
    ----------
    positions : dict
        Maps the id of a task to its position.
    dependencies, dependents : dict of int to tuple of int
        Maps the position of a task to the positions of its dependencies or dependents. Tasks
        without any are not contained.
    ranks : list of int
        The rank of each task by priority; the smallest runs first.

    Raises
    ------
    SpecError
        There is no task, two tasks have the same id, or priorities cannot be compared.
    GraphError
        Tasks depend on each other in a circle, or on a task of another job; the message
        names them.
    """

    def __init__(self, tasks: Sequence[Node]) -> None:
        if not tasks:
            raise SpecError("a job without tasks cannot be executed: add at least one task")
        self.tasks = tasks
        self.positions = {task.id: position for position, task in enumerate(tasks)}
        if len(self.positions) < len(tasks):
            seen: set[Hashable] = set()
            twice = next(t.id for t in tasks if t.id in seen or seen.add(t.id))  # type: ignore[func-returns-value]
            raise SpecError(
                f"two tasks of the job have the id {twice!r}: each task needs a different id"
            )
        self.ranks = self._rank()
        self.dependencies: dict[int, tuple[int, ...]] = {}
        self.dependents: dict[int, tuple[int, ...]] = {}
        self._connect()
        self._require_no_cycle()

    def _rank(self) -> list[int]:
        tasks = self.tasks
        try:
            order = sorted(range(len(tasks)), key=lambda position: tasks[position].priority)
        except TypeError as error:
            raise SpecError(
                f"the priorities of the tasks cannot be compared ({error}). The priority of a task "
                "is its id if priority= is not given: pass a comparable priority= to each task"
            ) from error
        ranks = [0] * len(tasks)
        for rank, position in enumerate(order):
            ranks[position] = rank
        return ranks

    def _connect(self) -> None:
        for task in [task for task in self.tasks if task._is_connected]:
            for other in (*task.dependencies, *task.dependents):
                if not hasattr(other, "_is_connected"):
                    raise GraphError(
                        f"{task.name} is connected with {other!r}, which is not a task: add the "
                        "task itself to its dependencies or dependents"
                    )
            for before in list(task.dependencies):
                before.dependents.add(task)
            for after in list(task.dependents):
                after.dependencies.add(task)
        for position, task in enumerate(self.tasks):
            if not task._is_connected:
                continue
            for found, others in (
                (self.dependencies, task.dependencies),
                (self.dependents, task.dependents),
            ):
                if others:
                    found[position] = tuple(sorted(self._position(each, task) for each in others))

    def _position(self, task: Node, beside: Node) -> int:
        position = self.positions.get(task.id)
        if position is None or self.tasks[position] is not task:
            raise GraphError(
                f"{beside.name} is connected with {task.name}, which is not a task of this job: "
                "pass both to the job, or remove the one from the dependencies and dependents of "
                "the other"
            )
        return position

    def _require_no_cycle(self) -> None:
        if not self.dependencies:
            return
        try:
            TopologicalSorter(self.dependencies).prepare()
        except CycleError as error:
            names = [str(self.tasks[position].name) for position in error.args[1]]
            raise GraphError(
                f"these tasks depend on each other in a circle: {' -> '.join(names)}"
            ) from None

    def ancestors(self, position: int) -> set[int]:
        """Return all direct and indirect dependencies of a task."""
        found: set[int] = set()
        stack = [position]
        while stack:
            for before in self.dependencies.get(stack.pop(), ()):
                if before not in found:
                    found.add(before)
                    stack.append(before)
        return found

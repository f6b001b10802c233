"""Compiled tasks: many tasks, in the order of a sequential program, as one.

Does not know how the order is inferred, nor how tasks are run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskbatch.batch.handle import Handle
from daskbatch.batch.task import Task
from daskbatch.dispatch.edges import wire
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.errors import GraphError, LifecycleError
from daskbatch.plan.explain import explain
from daskbatch.plan.graph import Graph
from daskbatch.plan.program import build_graph
from daskbatch.plan.svg import draw
from daskbatch.timeouts import parse_timeout
from daskbatch.worker.execution.client_names import batch_of_client

if TYPE_CHECKING:
    from daskbatch.batch.batch import Batch


class CompiledTask(Task):
    """Tasks that `Batch.compile` has made one; it is over when all of them are.

    Its result is the list of theirs, in the order of the list. What they read and write is said
    of them, not of it. A member can be waited for, asked and cancelled by itself.

    Attributes
    ----------
    tasks : tuple of Task
        The members, in the order of the list.

    Examples
    --------
    >>> double = batch.function(pow, 2, 1)
    >>> power = batch.function(pow, double, 8)
    >>> both = batch.compile([double, power])
    >>> both.explain(double, power), both.graph.counts()["argument"]
    ("'pow' (1) waits for 'pow' (0): it takes its result.", 1)
    >>> both.state, both.tasks == (double, power)
    ('created', True)
    >>> both.start()
    >>> both.get(), both.result.get(), both.stdout.get(), both.stderr.get()
    ([2, 256], [2, 256], '', '')
    >>> both.cancel()
    False
    """

    __slots__ = ("_graph", "_group", "_known", "tasks")

    def __init__(self, batch: Batch, record: TaskRecord, tasks: Sequence[Task]) -> None:
        super().__init__(batch, record)
        self.tasks = tuple(tasks)
        records = [task._record for task in self.tasks]
        self._graph = build_graph(records)
        #: How many accesses the graph was made of: more may be added until the start.
        self._known = _count_accesses(records)
        self._group = Group(record.name, len(records))
        for each in records:
            each.group = self._group

    @property
    def graph(self) -> Graph:
        """Who waits for whom among the members, and why; by their positions in the list."""
        records = [task._record for task in self.tasks]
        if not self._group.started and _count_accesses(records) != self._known:
            self._graph = build_graph(records)
            self._known = _count_accesses(records)
        return self._graph

    @property
    def state(self) -> str:
        """One of created, waiting, running, done, failed and cancelled.

        Once all are over, it is failed if one has failed, else cancelled if one was cancelled.
        """
        phases = {task._record.phase for task in self.tasks}
        if self._is_over():
            for phase in (Phase.FAILED, Phase.CANCELLED):
                if phase in phases:
                    return phase.name.lower()
            return "done"
        if not self._group.started:
            return "created"
        return "waiting" if phases == {Phase.WAITING} else "running"

    @property
    def result(self) -> Handle:
        """The members' results, a list in their order; if one has none, `get` raises why."""
        return super().result

    @property
    def stdout(self) -> Handle:
        """What the members printed, in their order, joined by line breaks."""
        return super().stdout

    @property
    def stderr(self) -> Handle:
        """What the members wrote to stderr, in their order, joined by line breaks."""
        return super().stderr

    def start(self) -> None:
        """Start the members, and do not wait for them.

        Raises
        ------
        LifecycleError
            It has been started before, is over since all were cancelled, or a member takes the
            result of a task that was never started.
        SubmitAfterCloseError
            The Batch has been closed.
        GraphError, SpecError
            See `Task.start`.
        """
        if self._group.started:
            raise LifecycleError(
                f"{self._record.label} has been started already: a task starts once, make another"
            )
        if self.tasks and self._is_over():
            raise LifecycleError(f"{self._record.label} is {self.state} already: make another")
        records = wire(self.graph, [task._record for task in self.tasks], self._record.client_id)
        self._batch._submit(records, self.name, self._group)

    def _require_accessible(self) -> None:
        raise LifecycleError(
            f"{self._record.label} is a compiled task: say of its members what they read and write"
        )

    def _is_over(self) -> bool:
        return not self._group.unfinished

    def _require_started(self) -> None:
        if not self._group.started:
            advice = ": start it first"
            if self._session.closed:
                advice = ", and its Batch has been closed: start it before that"
            raise LifecycleError(
                f"the compiled task {self._record.label} has not been started{advice}"
            )

    def cancel(self) -> bool:
        """Keep the members from completing; those that are over keep their results.

        Returns
        -------
        bool
            True if at least one member will not complete.
        """
        return bool(self._dispatcher.cancel([task._record for task in self.tasks]))

    async def _over(self) -> None:
        if not self._is_over():
            self._require_started()
        for task in self.tasks:
            await task._over()

    def _get(self, part: str, timeout: float | None) -> Any:
        timeout = parse_timeout(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        self.wait(timeout)

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        values = [task._get(part, left()) for task in self.tasks]
        return values if part == "result" else "\n".join(filter(None, values))

    def _as_argument(self, part: str) -> tuple[Any, ...]:
        # Among arguments it stands for the list of its members' results.
        if part == "result":
            return list, (self.tasks,)
        return "\n".join, ([getattr(task, part) for task in self.tasks],)

    # -- understanding it -----------------------------------------------------------------

    def explain(self, a: Task, b: Task) -> str:
        """Say in a sentence why `b` waits for `a`, or that it need not.

        Parameters
        ----------
        a, b : Task
            Two members.

        Raises
        ------
        GraphError
            One of them is no member.
        """
        for task in (a, b):
            if not isinstance(task, Task):
                raise GraphError(f"explain takes two tasks; {task!r} is none")
        return explain(self.graph, [task._record for task in self.tasks], a._record, b._record)

    def to_dot(self) -> str:
        """Give the graph in the DOT language of Graphviz.

        Examples
        --------
        >>> print(batch.compile([batch.function(len, "four")], name="one").to_dot())
        digraph {
          0 [label="len"];
        }
        """
        return self.graph.to_dot()

    def visualize(self, filename: str | Path = "graph.svg") -> Path:
        """Draw the graph into a file.

        Parameters
        ----------
        filename : str or Path
            ``.svg`` and ``.dot`` always work; other formats need Graphviz's ``dot``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        SpecError
            The format is unknown, or Graphviz is not installed.
        OSError
            The file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     program = batch.compile([batch.function(len, "four")])
        ...     program.visualize(Path(directory) / "four.svg").name
        'four.svg'
        """
        return draw(self.graph, Path(filename))


def _count_accesses(records: Iterable[TaskRecord]) -> int:
    return sum(len(record.reads) + len(record.writes) for record in records)


def require_members(batch: Batch, tasks: Iterable[Task]) -> list[Task]:
    """Make sure that tasks can be compiled.

    Raises
    ------
    GraphError
        One is no task, belongs elsewhere, or is compiled already.
    LifecycleError
        One has been started.
    """
    if isinstance(tasks, Task) or not isinstance(tasks, Iterable):
        raise GraphError(f"compile takes a list of tasks, not {tasks!r}")
    members = list(tasks)
    home = batch._session.client_id
    for task in members:
        if not isinstance(task, Task):
            raise GraphError(f"compile takes tasks; {task!r} is none")
        record = task._record
        if record.client_id != home or record.producers:
            require_own(batch, record)
        if isinstance(task, CompiledTask):
            raise GraphError(f"{record.label} is a compiled task: put its members in the list")
        if record.group is not None:
            raise GraphError(
                f"task {record.label} is a member of the compiled task {record.group.name!r} "
                "already: a task is in one compiled task, make new tasks for another"
            )
        if record.phase == Phase.CREATED:
            continue
        if record.phase == Phase.QUEUED:
            raise LifecycleError(
                f"task {record.label} waits in the background and starts by itself; only with "
                "Batch(background_batching=False) are the tasks of templates yours to compile"
            )
        raise LifecycleError(
            f"task {record.label} is {record.phase.name.lower()} already; "
            "only tasks that have not been started can be compiled"
        )
    return members


def require_own(batch: Batch, record: TaskRecord) -> None:
    """Make sure that a task, and what it takes results from, belongs to a Batch."""
    home = batch._session.client_id
    for each in (record, *record.producers):
        if each.client_id != home:
            which = "" if each is record else f"takes the result of {each.label}, which "
            other = "another Batch"
            if batch_of_client(each.client_id) == batch_of_client(home):
                other = "another client of this Batch"
            raise GraphError(
                f"task {record.label} {which}belongs to {other}: give its value in place of "
                "the task"
            )


def require_producers(record: TaskRecord) -> None:
    """Make sure that what a task takes results from has been, or is being, started."""
    for producer in record.producers:
        if producer.phase == Phase.CREATED and (
            producer.group is None or producer.group is not record.group
        ):
            which = producer.label
            if producer.group is not None:
                which = f"the compiled task {producer.group.name!r}"
            raise LifecycleError(
                f"task {record.label} takes the result of {producer.label}, which has not been "
                f"started: start {which} first, or compile them together"
            )

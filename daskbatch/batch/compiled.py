"""Compiled tasks: many tasks, in the order of a sequential program, handled as one.

A `CompiledTask` has `plan` infer the order of its members, and submits them when it is started.
`require_members` raises what is wrong with the list of members. Several threads may use a
`CompiledTask`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, KeysView, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskbatch.batch.context import BatchContext
from daskbatch.batch.copies import copy_record, copy_records
from daskbatch.batch.handle import Handle
from daskbatch.batch.info import TaskInfo, program_info
from daskbatch.batch.positions import numbered
from daskbatch.batch.result import failure_of, tasks_failed
from daskbatch.batch.started_tasks import remember
from daskbatch.batch.task import Task
from daskbatch.batch.validation import require_own
from daskbatch.batch.why import why_program
from daskbatch.dispatch.edges import set_waits
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.errors import GraphError, LifecycleError
from daskbatch.observation.output_follower import FollowedTask
from daskbatch.plan.explain import explain
from daskbatch.plan.graph import Graph
from daskbatch.plan.program import build_graph
from daskbatch.serialization.safe_text import safe_repr, type_name
from daskbatch.timeouts import Deadline, parse_timeout

if TYPE_CHECKING:
    from daskbatch.batch.reporting.critical_path import CriticalPath


class CompiledTask(Task):
    """A group of tasks made by `Batch.compile`; over when all members are.

    Its result is the list of the members' results, in list order. Accesses are declared on the
    members, and not on the group. Members can be waited for, queried and cancelled individually.

    Attributes
    ----------
    tasks : tuple of Task
        The members, in list order.

    Notes
    -----
    Several threads may use it at the same time; see `Task`. The graph is inferred when the
    compiled task is made, and again at the next `graph`, `explain`, `to_dot`, `visualize` or
    `start` if accesses of members have been declared since.

    Examples
    --------
    >>> double = batch.function(pow, 2, 1)
    >>> power = batch.function(pow, double, 8)
    >>> both = batch.compile([double, power])
    >>> both.explain(double, power), both.graph.counts()["argument"]
    ("'pow[1]' (1) waits for 'pow[0]' (0): it takes its result.", 1)
    >>> both.state, both.tasks == (double, power)
    ('created', True)
    >>> both.start()
    >>> both.get(), both.result.get(), both.stdout.get(), both.stderr.get()
    ([2, 256], [2, 256], '', '')
    >>> both.info.state, both.why()
    ('done', "2 of 2 tasks of 'pow' are over.")
    >>> both.cancel()
    False
    """

    __slots__ = ("_access_count", "_graph", "_group", "tasks")

    def __init__(
        self,
        context: BatchContext,
        record: TaskRecord,
        tasks: Sequence[Task],
        check: Callable[[Sequence[TaskRecord]], None] | None = None,
    ) -> None:
        super().__init__(context, record)
        self.tasks = tuple(tasks)
        records = self._records
        #: How many accesses `_graph` takes into account; more may be declared until the start.
        self._access_count = _count_accesses(records)
        with numbered(records):
            self._graph = build_graph(records)
            if check is not None and self._access_count:
                check(records)
        self._group = Group(record.name, len(records), is_program=True)
        self._group.directory = context.directory
        self._group.uid = record.uid
        if self._access_count and any(each.writes for each in records):
            self._group.members = [*map(weakref.ref, records)]
        for each in records:
            each.group = self._group
        context.programs[record.number] = self

    @property
    def graph(self) -> Graph:
        """Which members wait for which, and why; nodes are the members' positions in the list."""
        records = self._records
        if not self._group.started and _count_accesses(records) != self._access_count:
            self._graph = build_graph(records)
            self._access_count = _count_accesses(records)
        return self._graph

    @property
    def _records(self) -> list[TaskRecord]:
        return [task._record for task in self.tasks]

    @property
    def state(self) -> str:
        """One of created, waiting, running, done, failed, skipped and cancelled.

        Once all members are over, the state is failed if one of them failed, else cancelled if
        one was cancelled, else skipped if one was skipped, else done.
        """
        phases = {task._record.phase for task in self.tasks}
        if self._is_over():
            for phase in (Phase.FAILED, Phase.CANCELLED, Phase.SKIPPED):
                if phase in phases:
                    return phase.name.lower()
            return "done"
        if not self._group.started:
            return "created"
        return "waiting" if phases == {Phase.WAITING} else "running"

    @property
    def result(self) -> Handle:
        """The list of the members' results, in list order.

        If a member has no result, `get` raises the exception of the first one that has none.
        """
        return super().result

    @property
    def stdout(self) -> Handle:
        """What the members printed, in list order, joined by line breaks."""
        return super().stdout

    @property
    def stderr(self) -> Handle:
        """What the members wrote to stderr, in list order, joined by line breaks."""
        return super().stderr

    def start(self) -> None:
        """Start the members, and do not wait for them.

        Raises
        ------
        LifecycleError
            The compiled task was started before, all its members have been cancelled, or a member
            takes the result of a task that was never started.
        SubmitAfterCloseError
            The Batch has been closed.
        GraphError, SpecError
            See `Task.start`.
        """
        if self._group.started:
            raise LifecycleError(
                f"the program {self._record.label} has been started already, and starts once: "
                "again() returns a fresh copy of it, to be started"
            )
        if self.tasks and self._is_over():
            raise LifecycleError(
                f"{self._record.label} is {self.state} already: again() returns a fresh copy of it"
            )
        records = set_waits(self.graph, self._records, self._record.client_id)
        self._context.submit(records, self.name, self._group)
        remember(self._session, self.tasks)

    def _require_not_started(self) -> None:
        raise LifecycleError(
            f"{self._record.label} is a compiled task: declare reads and writes on its members"
        )

    def _is_over(self) -> bool:
        return not self._group.unfinished

    def _records_to_await(self) -> list[TaskRecord]:
        return self._records

    def _outcome(self) -> tuple[Any, BaseException | None]:
        without = [record for record in self._records if record.unsuccessful]
        if without:
            return None, failure_of(without[0], self._dispatcher, None, looked=False)
        return self._value_or_error()

    def _count_unfinished(self) -> int:
        return self._group.unfinished

    # -- failures -------------------------------------------------------------------------

    @property
    def failures(self) -> tuple[Task, ...]:
        """The members that have failed of their own so far, in list order.

        To read it counts as a look at their failures.

        Examples
        --------
        >>> program = batch.compile([batch.function(int, text) for text in ("1", "one")])
        >>> program.run()
        >>> [task.name for task in program.failures]
        ['int[1]']
        """
        failed = self._in_phase(Phase.FAILED)
        for task in failed:
            self._dispatcher.table.failures.look_at(task._record)
        return failed

    @property
    def skipped(self) -> tuple[Task, ...]:
        """The members that did not run, since a task that they need has not succeeded.

        Examples
        --------
        >>> first = batch.function(int, "one")
        >>> program = batch.compile([first, batch.function(abs, first)])
        >>> program.run()
        >>> [task.name for task in program.skipped], len(program.failures)
        (['abs'], 1)
        """
        return self._in_phase(Phase.SKIPPED)

    def _in_phase(self, phase: Phase) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if task._record.phase == phase)

    def _raise_failure(self) -> None:
        failed = (Phase.FAILED, Phase.CANCELLED)
        without = [task._record for task in self.tasks if task._record.unsuccessful]
        if without:
            found = [record for record in without if record.phase in failed]
            errors = [failure_of(record, self._dispatcher, None) for record in found or without]
            raise tasks_failed(self._record.label, len(self.tasks), len(without), errors)

    @property
    def info(self) -> TaskInfo:
        """What is known of all members together, as a record that does not change.

        To read it counts as a look at the failures of the members.
        """
        infos = [task.info for task in self.tasks]
        return program_info(self.name, self.uid, self.state, self._record.created, infos)

    def why(self) -> str:
        """Say in one sentence how far the members are, and why the next one is not further.

        It asks the scheduler, if that member waits for a slot.
        """
        return why_program(self._records, self.name, self._session)

    def again(self) -> CompiledTask:
        """Return a fresh copy of the program, to be started: new tasks of the same descriptions.

        Where an argument of a member is another member, it is the new one.

        Raises
        ------
        SubmitAfterCloseError
            The Batch has been closed.

        Examples
        --------
        >>> program = batch.compile([batch.function(len, "four")])
        >>> program.run()
        >>> repeated = program.again()
        >>> repeated.run()
        >>> repeated.get()
        [4]
        """
        records = copy_records(self._context, self._records)
        tasks = [Task(self._context, record, self._session) for record in records]
        record = copy_record(self._context, self._record)
        return CompiledTask(self._context, record, tasks)

    def debug(self) -> Any:
        """Raise `LifecycleError`: only a member can run here; see `Task.debug`.

        Raises
        ------
        LifecycleError
            Always; the message names the members that have failed.

        Examples
        --------
        >>> program = batch.compile([batch.function(int, "four")])
        >>> program.run()
        >>> try:
        ...     program.debug()
        ... except LifecycleError as error:
        ...     print(error)
        'int' is a compiled task: call debug() of a member that has failed (these have: 'int')
        """
        failed = ", ".join(task._record.label for task in self._in_phase(Phase.FAILED)) or "none"
        raise LifecycleError(
            f"{self._record.label} is a compiled task: call debug() of a member that has failed "
            f"(these have: {failed})"
        )

    def _require_started(self) -> None:
        if not self._group.started:
            advice = ": start it first"
            if self._session.closed:
                advice = ", and its Batch has been closed: start it before that"
            raise LifecycleError(
                f"the compiled task {self._record.label} has not been started{advice}"
            )

    def cancel(self) -> bool:
        """Keep the members from completing; members that are over keep their results.

        Returns
        -------
        bool
            True if at least one member will not complete.
        """
        return bool(self._dispatcher.cancel(self._records))

    async def _wait_async(self) -> None:
        if not self._is_over():
            self._require_started()
        for task in self.tasks:
            await task._wait_async()

    def _get_part(self, part: str, timeout: float | None) -> Any:
        timeout = parse_timeout(timeout)
        deadline = Deadline(timeout)
        self.wait(timeout)
        values = [task._get_part(part, deadline.remaining()) for task in self.tasks]
        return values if part == "result" else "\n".join(filter(None, values))

    def _followed(self, part: str) -> list[FollowedTask]:
        return [followed for task in self.tasks for followed in task._followed(part)]

    def _reduce_part(self, part: str) -> tuple[Any, ...]:
        # Among arguments a compiled task stands for the list of its members' results.
        if part == "result":
            return list, (self.tasks,)
        return "\n".join, ([getattr(task, part) for task in self.tasks],)

    # -- the graph ------------------------------------------------------------------------

    def explain(self, a: Task, b: Task) -> str:
        """Say in one sentence why `b` waits for `a`, or that it does not.

        Parameters
        ----------
        a, b : Task
            Two members.

        Raises
        ------
        GraphError
            `a` or `b` is not a member.
        """
        for task in (a, b):
            if not isinstance(task, Task):
                raise GraphError(f"explain takes two tasks; {safe_repr(task)} is not a task")
        return explain(self.graph, self._records, a._record, b._record)

    def to_dot(self, *, collapse: bool | None = None, files: bool = False) -> str:
        """Return the graph in the DOT language of Graphviz.

        Parameters
        ----------
        collapse, files
            See `visualize`.

        Examples
        --------
        >>> print(batch.compile([batch.function(len, "four")], name="one").to_dot())
        digraph {
          0 [label="len"];
        }
        """
        from daskbatch.batch.reporting import program_views  # few programs need it

        return program_views.dot_text(self, collapse, files)

    def visualize(
        self,
        filename: str | Path = "graph.svg",
        *,
        collapse: bool | None = None,
        files: bool = False,
    ) -> Path:
        """Draw the graph into a file, with the states of the tasks and the hazards of the edges.

        Parameters
        ----------
        filename : str or Path
            The suffixes ``.svg`` and ``.dot`` always work, ``.png`` with Pillow, which the extra
            ``daskbatch[dashboard]`` brings; other formats need Graphviz's ``dot``.
        collapse : bool, optional
            Whether all tasks of one name are one node; by default if there are more than 200.
        files : bool
            Whether the edges are labelled with the files and keys that both tasks access. Edges
            from and to barriers, and between the tasks of two names, are not.

        Returns
        -------
        Path
            The path of the file.

        Raises
        ------
        SpecError
            The format is unknown, what it needs is not installed, or the graph is too large for it.
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
        from daskbatch.batch.reporting import program_views  # few programs need it

        return program_views.write_picture(self, filename, collapse, files)

    def _repr_svg_(self) -> str:
        from daskbatch.batch.reporting import program_views  # few programs need it

        return program_views.svg_text(self)

    def _repr_html_(self) -> str:
        from daskbatch.batch.reporting.notebook_forms import program_html

        return program_html(self)

    def _ipython_display_(self) -> None:
        from daskbatch.batch.reporting.live_display import show

        show(self, lambda program: program._group.started and not program._is_over())

    # -- after the run --------------------------------------------------------------------

    def critical_path(self) -> CriticalPath:
        """Return the tasks that determine the makespan, first to last.

        The last one is the member that ended last; the one before each is that of its
        predecessors in the graph that ended last. Members that are not over do not count.

        Returns
        -------
        CriticalPath
            A list of tasks. Its text says why each waited for the one before it. Its ``length``,
            the seconds of the tasks, and ``gaps``, the seconds between them, are together the
            ``makespan``: the time from the first start of all members to the last end.

        Examples
        --------
        >>> double = batch.function(pow, 2, 1)
        >>> program = batch.compile([double, batch.function(str, double)])
        >>> program.run()
        >>> path = program.critical_path()
        >>> [task.name for task in path], path.steps[1].reason
        (['pow', 'str'], 'argument')
        """
        from daskbatch.batch.reporting import program_views  # few programs need it

        return program_views.critical_path(self)

    def report(self, filename: str | Path = "report.html") -> Path:
        """Write what has happened so far into one HTML file, which needs no network.

        It shows the states, failures with the end of their output, the critical path, estimates
        of what would have been faster, the timeline by slot, idle time and its causes, the graph
        and all tasks. It does not count as a look at failures. It works at any time, also after
        the Batch has ended.

        Parameters
        ----------
        filename : str or Path
            The file; it is replaced.

        Returns
        -------
        Path
            The path of the file.

        Raises
        ------
        OSError
            The file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> program = batch.compile([batch.function(len, "four")])
        >>> program.run()
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     program.report(Path(directory) / "run.html").name
        'run.html'
        """
        from daskbatch.batch.reporting import program_views  # few programs need it

        return program_views.write_program_report(self, filename)

    def trace(self, filename: str | Path = "trace.json") -> Path:
        """Write the run as a trace, for https://ui.perfetto.dev or Chrome's ``about:tracing``.

        Each slot of a worker is a row, each task a slice, and each edge an arrow.

        Parameters
        ----------
        filename : str or Path
            The file; it is replaced. With the suffix ``.pftrace`` it is in Perfetto's own format,
            else it is JSON, in the Trace Event Format.

        Returns
        -------
        Path
            The path of the file.

        Raises
        ------
        OSError
            The file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> program = batch.compile([batch.function(len, "four")])
        >>> program.run()
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     program.trace(Path(directory) / "run.json").name
        'run.json'
        """
        from daskbatch.batch.reporting import program_views  # few programs need it

        return program_views.write_program_trace(self, filename)


def _count_accesses(records: Iterable[TaskRecord]) -> int:
    return sum(len(record.reads) + len(record.writes) for record in records)


def require_members(client_id: str, tasks: Iterable[Task]) -> list[Task]:
    """Check that tasks can be compiled, and return them as a list.

    Parameters
    ----------
    client_id : str
        The id of the client that compiles them; see `TaskRecord.client_id`.
    tasks : iterable of Task
        What the user gave.

    Raises
    ------
    GraphError
        One of them is not a task, belongs to another client, or is a member of a compiled task.
    LifecycleError
        One of them has been started, or is queued.
    """
    if isinstance(tasks, Task) or not isinstance(tasks, Iterable):
        brackets = ": put tasks into brackets, compile([...])" if isinstance(tasks, Task) else ""
        raise GraphError(f"compile takes a list of tasks, not {safe_repr(tasks)}{brackets}")
    if isinstance(tasks, Set) and not isinstance(tasks, KeysView):
        raise GraphError(
            f"compile takes a list of tasks, not a {type_name(tasks)}, which has no order: the "
            "order of the list is that of the sequential program"
        )
    members = list(tasks)
    for task in members:
        if not isinstance(task, Task):
            advice = ": batch.function(...) makes a task of it" if callable(task) else ""
            raise GraphError(f"compile takes tasks; {safe_repr(task)} is not a task{advice}")
        record = task._record
        if record.client_id != client_id or record.producers:
            require_own(client_id, record)
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
                f"task {record.label} waits in the background and starts by itself; to compile "
                "tasks of templates, make the Batch with background_batching=False"
            )
        raise LifecycleError(
            f"task {record.label} is {record.phase.name.lower()} already; "
            "only tasks that have not been started can be compiled"
        )
    return members

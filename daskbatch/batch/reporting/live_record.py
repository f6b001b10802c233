"""Makes the `RunRecord` of tasks that a program holds, also after the Batch has ended.

It asks neither the scheduler nor workers, but for the exception and the output of failed tasks if
a report needs them. Any thread may call all functions. None counts as a look at a failure.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from itertools import accumulate
from typing import Any, Protocol

from daskbatch._version import __version__
from daskbatch.batch.info import describe_warning
from daskbatch.batch.result import error_line
from daskbatch.cluster.session import Session
from daskbatch.dispatch.execution_record import execution_of
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.plan.graph import Graph, reason_names
from daskbatch.records.run_record import (
    BarrierEntry,
    EdgeEntry,
    Hazard,
    ProgramEntry,
    RunRecord,
    SlotEntry,
    TaskEntry,
)
from daskbatch.report.analysis.timeline import make_rows
from daskbatch.timeouts import Deadline

#: The output of this many failed tasks is fetched, if it is still on a worker. All that is fetched
#: for a report, exceptions too, may take this time together: workers may not answer.
_MAX_FETCHED_OUTPUTS = 50
_FETCH_TIMEOUT_SECONDS = 10.0

#: What is kept of the end of an output.
_MAX_OUTPUT_LETTERS = 20_000

#: The worker of slots that no task has used.
_UNUSED = "unused slots"


class RecordedTask(Protocol):
    """The part of a task that a record is made of."""

    _record: TaskRecord
    _session: Session

    def _get_part(self, part: str, timeout: float | None) -> Any: ...


class RecordedProgram(Protocol):
    """The part of a compiled task that a record is made of."""

    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def graph(self) -> Graph: ...
    @property
    def tasks(self) -> Sequence[RecordedTask]: ...

    _record: TaskRecord
    _session: Session


def program_record(program: RecordedProgram, with_failures: bool = False) -> RunRecord:
    """Return the record of one compiled task.

    Parameters
    ----------
    program : RecordedProgram
        The compiled task.
    with_failures : bool
        Whether the exceptions and outputs of failed tasks are wanted, which may be fetched from
        their workers.
    """
    return _run_record(
        program.uid, program.name, [], [program], program._session, program._record, with_failures
    )


def batch_record(
    name: str,
    tasks: Iterable[RecordedTask],
    programs: Sequence[RecordedProgram],
    session: Session,
    with_failures: bool = False,
) -> RunRecord:
    """Return the record of all tasks that a client has started, and that the program holds.

    Parameters
    ----------
    name : str
        The name of the Batch.
    tasks : iterable of RecordedTask
        The tasks that are members of no compiled task.
    programs : sequence of RecordedProgram
        The compiled tasks.
    session : Session
        The client.
    with_failures : bool
        See `program_record`.
    """
    return _run_record(session.client_id, name, [*tasks], programs, session, None, with_failures)


def _run_record(
    run: str,
    name: str,
    single: Sequence[RecordedTask],
    programs: Sequence[RecordedProgram],
    session: Session,
    record: TaskRecord | None,
    with_failures: bool,
) -> RunRecord:
    entries = [_entry(task, "", _producers(task._record, set())) for task in single]
    tasks = [*single]
    barriers: list[BarrierEntry] = []
    for program in programs:
        members = {task._record.number for task in program.tasks}
        waits, behind = _edges(program)
        barriers += behind
        for node, task in enumerate(program.tasks):
            edges = (*waits.get(node, ()), *_producers(task._record, members))
            entries.append(_entry(task, program.uid, edges))
        tasks += program.tasks
    if with_failures:
        deadline = Deadline(_FETCH_TIMEOUT_SECONDS)
        entries = [
            _with_failure(entry, task, wants_output, deadline)
            for entry, task, wants_output in zip(entries, tasks, _fetch_order(entries), strict=True)
        ]
    started = [entry.started for entry in entries if entry.started is not None]
    ended = [entry.ended for entry in entries if entry.ended is not None]
    found = RunRecord(
        run=run,
        name=name,
        created=None if record is None else record.created,
        started=min(started, default=None),
        ended=max(ended, default=None),
        tasks=tuple(entries),
        barriers=tuple(barriers),
        programs=tuple(
            ProgramEntry(each.uid, each.name, each.state, len(each.tasks)) for each in programs
        ),
        facts=(
            ("Python", platform.python_version()),
            ("Dask", version("dask")),
            ("daskbatch", __version__),
            ("client's host", platform.node()),
        ),
    )
    return _with_slots(found, session.most_slots)


def _edges(
    program: RecordedProgram,
) -> tuple[dict[int, tuple[EdgeEntry, ...]], list[BarrierEntry]]:
    """Return the edges of a program's tasks by position, and its barriers."""
    graph, tasks = program.graph, program.tasks

    def uid(node: int) -> str:
        return (
            tasks[node]._record.uid
            if node < len(tasks)
            else f"{program.uid}-barrier-{node - len(tasks)}"
        )

    edges = {
        node: tuple(
            EdgeEntry(uid(before), hazard)
            for before, reasons in waits.items()
            for hazard in _hazards(reasons)
        )
        for node, waits in graph.waits.items()
    }
    barriers = [
        BarrierEntry(uid(node), edges.get(node, ())) for node in graph.order if node >= len(tasks)
    ]
    return edges, barriers


@cache
def _hazards(reasons: int) -> tuple[Hazard, ...]:
    return tuple(map(Hazard, reason_names(reasons)))


def _producers(record: TaskRecord, members: set[int]) -> tuple[EdgeEntry, ...]:
    """Return the edges to producers outside of the task's program."""
    return tuple(
        EdgeEntry(producer.uid, Hazard.ARGUMENT)
        for producer in record.producers
        if producer.number not in members
    )


def _entry(task: RecordedTask, program: str, edges: tuple[EdgeEntry, ...]) -> TaskEntry:
    record, dispatcher = task._record, task._session.dispatcher
    # A report may change the record at this very moment: the fields must be of one state.
    with dispatcher.outcomes.changed:
        state, root = record.phase.name.lower(), record.root_failure
        ran = execution_of(record, dispatcher.table.deaths[record])
    if record.phase in (Phase.SKIPPED, Phase.CANCELLED) and ran.started is None:
        ran = ran._replace(ended=None)  # it is when the client learnt that it does not run
    return TaskEntry(
        uid=record.uid,
        name=record.name,
        state=state,
        program=program,
        waits_for=edges,
        slots=1 if record.options.gang is None else record.options.gang.slots,
        created=record.created,
        **ran._asdict(),
        reads=tuple(map(str, record.reads)),
        writes=tuple(map(str, record.writes)),
        root="" if root is None else root.name,
    )


def _fetch_order(entries: Sequence[TaskEntry]) -> list[bool]:
    """Return for which tasks the output is wanted: the first of those that have failed."""
    numbers = accumulate(entry.state == "failed" for entry in entries)
    return [number <= _MAX_FETCHED_OUTPUTS for number in numbers]


def _with_failure(
    entry: TaskEntry, task: RecordedTask, wants_output: bool, deadline: Deadline
) -> TaskEntry:
    """Return an entry with what is known of the failure, and with the warnings."""
    record, dispatcher = task._record, task._session.dispatcher
    warnings = dispatcher.table.failures.warnings_of(record)
    if warnings:
        said = tuple(map(describe_warning, warnings))
        entry = replace(entry, warnings=said)
    if entry.state != "failed":
        return entry
    if wants_output and (record.output is not None or not deadline.passed):
        with contextlib.suppress(Exception):  # it is lost, or its worker does not answer
            stdout, stderr = (
                str(task._get_part(part, deadline.remaining()))[-_MAX_OUTPUT_LETTERS:]
                for part in ("stdout", "stderr")
            )
            entry = replace(entry, stdout=stdout, stderr=stderr)
    if record.value is None and deadline.passed:
        return replace(entry, error="its exception is on a worker that has not answered in time")
    return replace(entry, error=error_line(record, dispatcher))


def _with_slots(run: RunRecord, slots: int) -> RunRecord:
    """Return a record with the workers on which tasks have run.

    Parameters
    ----------
    run : RunRecord
        The record without workers.
    slots : int
        The largest number of slots that there were at one time.

    Notes
    -----

    A worker has at least as many slots as tasks ran there at once. All other slots of the cluster
    are one entry: which workers have them is not known once the Batch has ended.
    """
    counts: dict[str, list[str]] = {}
    for row in make_rows(run):
        counts.setdefault(row.worker, []).append(row.host)
    entries = [SlotEntry(worker, hosts[0], len(hosts)) for worker, hosts in counts.items()]
    unused = slots - sum(entry.threads for entry in entries)
    if unused > 0:
        entries.append(SlotEntry(_UNUSED, "", unused))
    return replace(run, slots=tuple(entries), capacity=slots)

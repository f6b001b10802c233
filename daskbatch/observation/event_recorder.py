"""Makes events of the changes of a client's tasks, and writes them to its log directory.

The dispatcher calls an `EventRecorder` with its lock held, before any thread learns of the changes.
So what the program has been told is on disk.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from time import time
from typing import Any

from daskbatch._version import __version__
from daskbatch.dispatch.execution_record import execution_of, host_of
from daskbatch.dispatch.requirements import Capacity
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.dispatch.task_table import TaskTable
from daskbatch.observation.ordinary_events import (
    ended_lines,
    ordinary_end,
    ordinary_start,
    split,
    started_lines,
)
from daskbatch.observation.output_files import OutputFiles
from daskbatch.observation.wait_edges import Barriers
from daskbatch.records.event_lines import Lines, PlainLines
from daskbatch.records.event_log import EventLog
from daskbatch.records.event_schema import VERSION, SlotEvent
from daskbatch.serialization.exceptions import brief_error
from daskbatch.worker.execution.block import OutputReport

_WAITING, _RUNNING, _DONE = Phase.WAITING, Phase.RUNNING, Phase.DONE

#: Read fields of records without a step of the interpreter for each.
_GROUP, _MEASURED = attrgetter("group"), attrgetter("measured")

_Event = dict[str, Any]


class EventRecorder:
    """The events of one client; an `Observer`.

    The dispatcher calls it, one thread at a time.

    Parameters
    ----------
    directory : Path
        The log directory.
    table : TaskTable
        The tasks of the client.
    client_id : str
        The client; also the name of the run.
    name : str
        The name of the Batch.
    versions : mapping
        The versions of further packages.
    describe_warning : callable
        Puts a warning of a worker into words.
    """

    def __init__(
        self,
        directory: Path,
        table: TaskTable,
        client_id: str,
        name: str,
        versions: Mapping[str, str],
        describe_warning: Callable[[Any], str],
    ) -> None:
        self._table = table
        self._run = client_id
        self._name = name
        self._describe_warning = describe_warning
        self._log = EventLog(directory, client_id)
        self._outputs = OutputFiles(directory, client_id)
        self._barriers = Barriers(client_id)
        self._slots: list[dict[str, Any]] = []
        #: The events of the present call that are not written yet.
        self._added: list[_Event] = []
        #: The programs whose start has been recorded.
        self._programs: set[str] = set()
        #: The numbers of the tasks whose accesses and waits have been recorded.
        self._described: set[int] = set()
        begun = {
            "version": VERSION,
            "batch": client_id.partition(".")[0],
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "directory": os.getcwd(),
            "versions": {
                "python": platform.python_version(),
                "daskbatch": __version__,
                **versions,
            },
            "slots": [],
        }
        self._add([self._event("run", client_id, name, "begun", **begun)])
        self._flush()

    def _event(self, kind: str, uid: str, name: str, state: str, **fields: Any) -> _Event:
        return {
            "time": round(time(), 6),
            "kind": kind,
            "uid": uid,
            "name": name,
            "state": state,
            "run": self._run,
            **fields,
        }

    def _add(self, events: Sequence[_Event]) -> None:
        """Add events; `_flush` writes them."""
        self._added += events

    def _add_lines(self, lines: Lines, count: int) -> None:
        """Add a record of many lines after all that was added before."""
        self._flush()
        self._log.add(lines, count)

    def _flush(self) -> None:
        """Write the events that have been added."""
        if self._added:
            events, self._added = self._added, []
            self._log.add(PlainLines(events), len(events))

    @property
    def failure(self) -> OSError | None:
        """Why nothing more is written; None if all is well."""
        return self._log.failure or self._outputs.failure

    # -- what happens ---------------------------------------------------------------------

    def set_workers(self, workers: Sequence[Capacity]) -> None:
        """Record the workers that are there now."""
        slots = [
            SlotEvent(each.address, each.host, each.slots)._asdict()
            for each in workers
            if each.is_here
        ]
        if slots != self._slots:
            self._slots = slots
            self._add([self._event("run", self._run, self._name, "changed", slots=slots)])
            self._flush()

    def close(self) -> None:
        """Record the end of the run; nothing more is written."""
        self._add([self._event("run", self._run, self._name, "ended")])
        self._flush()
        self._log.close()
        self._outputs.close()

    def program_over(self, group: Group) -> None:
        """Record that a compiled task is over; see `Observer`."""
        if group.uid in self._programs:
            self._programs.discard(group.uid)
            state = group.phase.name.lower()
            self._add([self._event("program", group.uid, group.name, state, tasks=group.size)])
            self._flush()

    def output_arrived(self, record: TaskRecord, report: OutputReport) -> None:
        """Write what a task has written; see `Observer`."""
        self._outputs.write(record, report)

    def tasks_changed(self, records: Sequence[TaskRecord], phases: Sequence[Phase]) -> None:
        """Record changes of tasks; see `Observer`."""
        end = 0
        for phase, same in groupby(phases):
            start, end = end, end + len(list(same))
            some = records[start:end]
            if phase >= _DONE:
                self._record_ends(some, phase)
            elif phase == _RUNNING:
                self._add([self._running(each) for each in some if each.call is not None])
            else:
                self._record_starts(some, phase)
        self._flush()

    def _record_starts(self, records: Sequence[TaskRecord], phase: Phase) -> None:
        """Record tasks that have been started; nearly all programs start many of one kind."""
        for group, some in groupby(records, _GROUP):
            program = self._program_of(group)
            common = {
                **self._common(phase),
                "program": program,
                "reads": [],
                "writes": [],
                "waits_for": [],
            }
            for ordinary, part in split(list(some), ordinary_start):
                if ordinary:
                    self._add_lines(started_lines(common, part), len(part))
                else:
                    self._add([self._started(each, phase, program) for each in part])

    def _record_ends(self, records: Sequence[TaskRecord], phase: Phase) -> None:
        """Record tasks that are over; those of one report that are done are recorded together."""
        # What a task has warned of is found task by task.
        may_be_ordinary = phase == _DONE and not self._table.failures.has_warnings
        for measured, some in groupby(records, _MEASURED):
            of_report = list(some)
            if not may_be_ordinary or measured is None or measured.details:
                self._add_ends(of_report, phase)
                continue
            common = {
                **self._common(phase),
                "worker": measured.worker or None,
                "host": host_of(measured.worker),
                "pid": measured.pid or None,
                "attempts": 1,
                "max_memory": None,
                "error": None,
                "warnings": [],
                "root": None,
                "stdout": None,
                "stderr": None,
            }
            for ordinary, part in split(of_report, ordinary_end):
                if ordinary:
                    self._add_lines(ended_lines(common, part, measured), len(part))
                else:
                    self._add_ends(part, phase)

    def _add_ends(self, records: Sequence[TaskRecord], phase: Phase) -> None:
        self._add([self._ended(each, phase) for each in records if each.call is not None])

    def _common(self, phase: Phase) -> _Event:
        """Return the fields that all tasks have which enter a phase at once."""
        return {
            "time": round(time(), 6),
            "kind": "task",
            "state": phase.name.lower(),
            "run": self._run,
        }

    # -- single events --------------------------------------------------------------------

    def _program_of(self, group: Group | None) -> str | None:
        """Return the program of tasks, and record its start before that of its tasks."""
        if group is None or not group.is_program:
            return None
        if group.uid not in self._programs and group.unfinished:
            self._programs.add(group.uid)
            self._add([self._event("program", group.uid, group.name, "waiting", tasks=group.size)])
        return group.uid

    def _started(self, record: TaskRecord, phase: Phase, program: str | None) -> _Event:
        if record.call is None:
            return self._barrier(record)
        is_new = record.number not in self._described
        if phase == _WAITING:
            self._described.add(record.number)
        return self._described_event(record, phase, program, is_new)

    def _barrier(self, record: TaskRecord) -> _Event:
        uid = self._barriers.uid_of(record)
        waits = self._barriers.edges_of(record)
        return self._event("barrier", uid, "barrier", "waiting", waits_for=waits)

    def _described_event(
        self, record: TaskRecord, phase: Phase, program: str | None, is_new: bool
    ) -> _Event:
        return self._event(
            *("task", record.uid, record.name, phase.name.lower()),
            program=program,
            created=round(record.created, 6),
            reads=[str(each) for each in record.reads],
            writes=[str(each) for each in record.writes],
            # Once it has been placed, what it waits for may have been reduced to what is not over.
            waits_for=self._barriers.edges_of(record) if is_new else [],
        )

    def _running(self, record: TaskRecord) -> _Event:
        ran = execution_of(record, self._table.deaths[record])
        return self._event(
            *("task", record.uid, record.name, "running"),
            worker=ran.worker or "",
            host=ran.host or "",
            pid=ran.pid or 0,
            attempt=ran.attempts,
            started=round(ran.started or time(), 6),
        )

    def _ended(self, record: TaskRecord, phase: Phase) -> _Event:
        ran = execution_of(record, self._table.deaths[record])
        failed = phase == Phase.FAILED and record.value is not None
        root = None if record.root_failure is None else record.root_failure.name
        warnings = self._table.failures.warnings_of(record)
        stdout, stderr = self._outputs.finish(record)
        fields: dict[str, Any] = {
            name: round(value, 7) if isinstance(value, float) else value
            for name, value in ran._asdict().items()
        }
        if ran.ended is None:
            fields["ended"] = round(time(), 6)
        return self._event(
            *("task", record.uid, record.name, phase.name.lower()),
            **fields,
            error=brief_error(record.value or b"") if failed else None,
            warnings=[self._describe_warning(each) for each in warnings],
            root=root,
            stdout=stdout,
            stderr=stderr,
        )

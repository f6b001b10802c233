"""Makes events of the changes of a client's tasks, and writes them to its log directory.

The dispatcher calls an `EventRecorder` with its lock held, before any thread learns of the changes.
So what the program has been told is on disk.
"""

from __future__ import annotations

import os
import platform
import socket
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import time
from typing import Any

from daskbatch._version import __version__
from daskbatch.dispatch.execution_record import execution_of, host_of
from daskbatch.dispatch.observers import Change
from daskbatch.dispatch.requirements import Capacity
from daskbatch.dispatch.task_record import SILENT, Group, Phase, TaskRecord
from daskbatch.dispatch.task_table import TaskTable
from daskbatch.observation.output_files import OutputFiles
from daskbatch.observation.wait_edges import Barriers
from daskbatch.records.event_lines import EndedLines, Lines, PlainLines, StartedLines
from daskbatch.records.event_log import EventLog
from daskbatch.records.event_schema import VERSION, SlotEvent
from daskbatch.serialization.exceptions import brief_error
from daskbatch.worker.execution.block import OutputReport
from daskbatch.worker.execution.measures import Measures

_QUEUED, _WAITING, _RUNNING, _DONE = Phase.QUEUED, Phase.WAITING, Phase.RUNNING, Phase.DONE

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
        #: The programs whose start has been recorded.
        self._programs: set[str] = set()
        #: The numbers of the tasks that have been described.
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
        if events:
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

    def close(self) -> None:
        """Record the end of the run; nothing more is written."""
        self._add([self._event("run", self._run, self._name, "ended")])
        self._log.close()
        self._outputs.close()

    def program_over(self, group: Group) -> None:
        """Record that a compiled task is over; see `Observer`."""
        if group.uid in self._programs:
            self._programs.discard(group.uid)
            state = group.phase.name.lower()
            self._add([self._event("program", group.uid, group.name, state, tasks=group.size)])

    def output_arrived(self, record: TaskRecord, report: OutputReport) -> None:
        """Write what a task has written; see `Observer`."""
        self._outputs.write(record, report)

    def tasks_changed(self, changes: Sequence[Change]) -> None:
        """Record changes of tasks; see `Observer`."""
        collected = _Columns(self._log)
        warned = self._table.failures.has_warnings
        for record, phase in changes:
            if phase >= _DONE:
                if record.call is None:
                    continue
                if phase == _DONE and record.output is SILENT and not warned:
                    measured = record.measured
                    if measured is not None and not measured.details:
                        collected.add_ended(self, record, measured)
                        continue
                collected.add_event(self._ended(record, phase))
            elif phase == _RUNNING:
                if record.call is not None:
                    collected.add_event(self._running(record))
            elif record.call is None:
                collected.add_event(self._barrier(record))
            else:
                program = self._program_of(record, collected)
                number = record.number
                is_new = number not in self._described
                if phase == _WAITING:
                    self._described.add(number)
                if record.reads or record.writes or record.waits or not is_new:
                    collected.add_event(self._described_event(record, phase, program, is_new))
                else:
                    collected.add_started(self, record, phase, program)
        collected.flush()

    # -- single events --------------------------------------------------------------------

    def _program_of(self, record: TaskRecord, collected: _Columns) -> str | None:
        """Return the program of a task, and record its start before that of its tasks."""
        group = record.group
        if group is None or not group.is_program:
            return None
        if group.uid not in self._programs and group.unfinished:
            self._programs.add(group.uid)
            event = self._event("program", group.uid, group.name, "waiting", tasks=group.size)
            collected.add_event(event)
        return group.uid

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


class _Columns:
    """Collects the events of one call; those of ordinary tasks as records of many lines."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._events: list[_Event] = []
        #: What the tasks that are being collected have in common.
        self._key: Any = None
        self._make: Callable[[], Lines] | None = None
        self._records: list[TaskRecord] = []
        self._positions: list[int] = []

    def add_event(self, event: _Event) -> None:
        """Add a single event."""
        if self._make is not None:
            self.flush()
        self._events.append(event)

    def add_started(
        self, recorder: EventRecorder, record: TaskRecord, phase: Phase, program: str | None
    ) -> None:
        """Add a task that waits, with no accesses, and for no other task."""
        key = phase, record.group, record.client_id
        if key != self._key:
            self.flush()
            self._key = key
            common = {
                **_common(recorder, phase),
                "program": program,
                "reads": [],
                "writes": [],
                "waits_for": [],
            }
            records, uid = self._records, f"{record.client_id}-"
            self._make = lambda: StartedLines(
                *(common, uid, *_names(records), [each.created for each in records])
            )
        self._records.append(record)

    def add_ended(self, recorder: EventRecorder, record: TaskRecord, measures: Measures) -> None:
        """Add a task that is done, and of which nothing else is told."""
        if self._key is not measures:
            self.flush()
            self._key = measures
            common = {
                **_common(recorder, Phase.DONE),
                "worker": measures.worker or None,
                "host": host_of(measures.worker),
                "pid": measures.pid or None,
                "attempts": 1,
                "max_memory": None,
                "error": None,
                "warnings": [],
                "root": None,
                "stdout": None,
                "stderr": None,
            }
            records, positions, uid = self._records, self._positions, f"{record.client_id}-"
            ended, cpu = array("d", measures.ended), array("f", measures.cpu_seconds)
            self._make = lambda: EndedLines(
                *(common, uid, *_names(records)),
                [ended[each] for each in positions],
                [each.seconds for each in records],
                [cpu[each] for each in positions],
            )
        self._records.append(record)
        self._positions.append(record.member - measures.start)

    def flush(self) -> None:
        """Pass on all that was collected, in its order."""
        if self._events:
            self._log.add(PlainLines(self._events), len(self._events))
            self._events = []
        if self._make is not None:
            self._log.add(self._make(), len(self._records))
            self._records, self._positions = [], []
        self._key = self._make = None


def _common(recorder: EventRecorder, phase: Phase) -> _Event:
    return {
        "time": round(time(), 6),
        "kind": "task",
        "state": phase.name.lower(),
        "run": recorder._run,
    }


def _names(records: Sequence[TaskRecord]) -> tuple[list[int], list[str], list[int]]:
    """Return the numbers, the names and the positions of tasks."""
    return (
        [each.number for each in records],
        [each.base_name for each in records],
        [each.position for each in records],
    )

"""Reads `events.jsonl` into the record of a run, also if its client was killed.

Lines that are not valid, such as a torn last one, are left out. Any thread may call `read_run`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from daskbatch.errors import SpecError
from daskbatch.records.event_log import complete
from daskbatch.records.event_schema import END_STATES, EVENTS_FILE, VERSION
from daskbatch.records.run_record import (
    BarrierEntry,
    EdgeEntry,
    Hazard,
    ProgramEntry,
    RunRecord,
    SlotEntry,
    TaskEntry,
)

_Event = Mapping[str, Any]

#: The output of this many failed tasks is read, and this much of each end.
_MAX_OUTPUTS, _MAX_OUTPUT_BYTES = 50, 20_000

#: The fields of the end of a task that are those of its entry.
_END_FIELDS = ("worker", "host", "pid", "attempts", "started", "ended", "seconds", "cpu_seconds")


def read_run(directory: Path, run: str | None = None) -> RunRecord:
    """Return the record of a run from a log directory.

    Parameters
    ----------
    directory : Path
        The ``log_dir`` of a Batch.
    run : str, optional
        The id of the run; by default the last one that has begun.

    Raises
    ------
    SpecError
        The directory has no record of a run, or not of this one.
    OSError
        The file cannot be read.
    """
    path = directory / EVENTS_FILE
    # What a client that was killed had not formatted. The directory may be read-only.
    with contextlib.suppress(OSError):
        complete(directory)
    if not path.is_file():
        raise SpecError(f"{directory} has no {EVENTS_FILE}: it is not the log_dir of a Batch")
    runs: dict[str, list[_Event]] = {}
    for event in _events(path):
        runs.setdefault(str(event["run"]), []).append(event)
    if not runs:
        raise SpecError(f"{path} has no events")
    if run is None:
        run = [*runs][-1]
    if run not in runs:
        raise SpecError(f"{path} has no run {run!r}; it has {', '.join([*runs][-20:])}")
    reading = _Reading(run, directory)
    for event in runs[run]:
        reading.add(event)
    return reading.record()


def _events(path: Path) -> Iterator[_Event]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:  # the client was killed while it wrote
                continue
            if isinstance(event, dict) and "run" in event and "kind" in event:
                yield event


class _Reading:
    """What the events of one run have said so far."""

    def __init__(self, run: str, directory: Path) -> None:
        self._run = run
        self._directory = directory
        self._tasks: dict[str, dict[str, Any]] = {}
        self._barriers: dict[str, BarrierEntry] = {}
        self._programs: dict[str, ProgramEntry] = {}
        self._begun: _Event = {}
        self._ended: float | None = None
        self._last: float | None = None
        #: The workers, also those that have left; the largest number of slots at one time.
        self._capacity = 0
        self._slots: dict[str, SlotEntry] = {}
        #: The names of the files with the outputs, by uid.
        self._outputs: dict[str, tuple[str | None, str | None]] = {}

    def add(self, event: _Event) -> None:
        """Take in an event; one whose fields do not fit is left out."""
        try:
            time = float(event["time"])
            self._last = time
            kind, state = event["kind"], str(event["state"])
            if kind == "run":
                self._add_run(event, state, time)
            elif kind == "program":
                uid = str(event["uid"])
                self._programs[uid] = ProgramEntry(
                    uid, str(event["name"]), state, int(event.get("tasks") or 0)
                )
            elif kind == "barrier":
                uid = str(event["uid"])
                self._barriers[uid] = BarrierEntry(uid, _edges(event))
            elif kind == "task":
                self._add_task(event, state, time)
        except (KeyError, TypeError, ValueError):
            return

    def _add_run(self, event: _Event, state: str, time: float) -> None:
        if state == "begun":
            self._begun = event
        elif state == "ended":
            self._ended = time
        threads_now = 0
        for slot in event.get("slots") or ():
            if isinstance(slot, dict):
                worker, host, threads = slot["worker"], slot["host"], slot["threads"]
            else:
                worker, host, threads = slot
            self._slots[str(worker)] = SlotEntry(str(worker), str(host), int(threads))
            threads_now += int(threads)
        self._capacity = max(self._capacity, threads_now)

    def _add_task(self, event: _Event, state: str, time: float) -> None:
        uid = str(event["uid"])
        task = self._tasks.setdefault(uid, {"uid": uid, "submitted": time})
        task["name"], task["state"] = str(event["name"]), state
        if "waits_for" in event:
            task["program"] = str(event.get("program") or "")
            task["created"] = event.get("created")
            task["reads"] = tuple(map(str, event.get("reads") or ()))
            task["writes"] = tuple(map(str, event.get("writes") or ()))
            # A task that was queued is described twice, the second time without its edges.
            task["waits_for"] = _edges(event) or task.get("waits_for", ())
            task["slots"] = int(event.get("slots") or 1)
            if state == "waiting":
                task["submitted"] = time
        elif state == "running":
            task.update({name: event.get(name) for name in ("worker", "host", "pid", "started")})
            task["attempts"] = event.get("attempt")
            task["ended"] = task["seconds"] = None
        elif state in END_STATES:
            task.update({name: event.get(name) for name in _END_FIELDS if name in event})
            if task.get("started") is None:
                task["ended"] = None
            task["max_memory"] = event.get("max_memory")
            task["error"] = event.get("error")
            task["warnings"] = tuple(map(str, event.get("warnings") or ()))
            task["root"] = str(event.get("root") or "")
            self._outputs[uid] = event.get("stdout"), event.get("stderr")

    def record(self) -> RunRecord:
        """Return what the events say together."""
        failed = [uid for uid, task in self._tasks.items() if task["state"] == "failed"]
        for uid in failed[:_MAX_OUTPUTS]:
            stdout, stderr = self._outputs.get(uid, (None, None))
            self._tasks[uid]["stdout"] = self._output_end(stdout)
            self._tasks[uid]["stderr"] = self._output_end(stderr)
        tasks = tuple(TaskEntry(**task) for task in self._tasks.values())
        started = [task.started for task in tasks if task.started is not None]
        ended = [task.ended for task in tasks if task.ended is not None]
        return RunRecord(
            run=self._run,
            name=str(self._begun.get("name") or self._run),
            created=self._begun.get("time"),
            started=min(started, default=None),
            ended=max(ended, default=None),
            slots=tuple(self._slots.values()),
            capacity=self._capacity,
            tasks=tasks,
            barriers=tuple(self._barriers.values()),
            programs=tuple(self._programs.values()),
            facts=tuple(self._facts()),
        )

    def _facts(self) -> Iterator[tuple[str, str]]:
        begun = self._begun
        version = begun.get("version", VERSION)
        if version != VERSION:
            yield "schema", f"version {version}; this daskbatch reads version {VERSION}"
        if self._ended is None:
            yield "client", "it had not closed: what it was told last is what is shown"
        for name in ("directory", "host", "pid"):
            if begun.get(name) is not None:
                yield f"client's {name}", str(begun[name])
        versions = begun.get("versions")
        for name, value in versions.items() if isinstance(versions, dict) else ():
            yield str(name), str(value)

    def _output_end(self, name: str | None) -> str:
        """Return the end of a file with the output of a task; nothing if it is gone."""
        if not name:
            return ""
        try:
            with (self._directory / name).open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - _MAX_OUTPUT_BYTES))
                return file.read().decode("utf-8", "replace")
        except (OSError, ValueError):
            return ""


def _edges(event: _Event) -> tuple[EdgeEntry, ...]:
    return tuple(
        EdgeEntry(str(uid), Hazard(hazard), str(path or ""))
        for uid, hazard, path in event["waits_for"]
    )

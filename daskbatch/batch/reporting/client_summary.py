"""Makes what the page /daskbatch shows of a client.

A thread of the session calls `summarize` while somebody looks at the page. It counts as no look at
a failure, and fetches nothing from workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import time

from daskbatch.batch.started_tasks import started_tasks
from daskbatch.batch.task_label import long_label
from daskbatch.batch.why import why
from daskbatch.cluster.session import Session
from daskbatch.dashboard.summary import (
    MAX_FAILURES,
    MAX_LISTED,
    MAX_NAMES,
    MAX_OUTPUT_CHARACTERS,
    MAX_PROGRAMS,
    MAX_RECENT,
    ClientSummary,
    FailedTask,
    ProgramSummary,
    RanTask,
    WaitingTask,
    short,
)
from daskbatch.dispatch.execution_record import execution_of
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.plan.explain import wait_reasons
from daskbatch.serialization.exceptions import brief_error

#: For how long a task that is over is shown in the timeline.
_RECENT_SECONDS = 120.0

#: What tasks are called that belong to no compiled task.
_SINGLE = "tasks"

#: The name of all names beyond `MAX_NAMES`.
_OTHERS = "(others)"


def summarize(session: Session) -> str:
    """Return the text of a client's `ClientSummary`."""
    unfinished = session.dispatcher.unfinished()
    records = [*_unique(*(task._record for task in started_tasks(session)), *unfinished)]
    by_group: dict[Group | None, list[TaskRecord]] = {}
    for record in records:
        group = record.group if record.group is not None and record.group.is_program else None
        by_group.setdefault(group, []).append(record)
    programs = [_program(group, some) for group, some in by_group.items()]
    programs.sort(key=lambda each: each.started or 0.0)
    running = [record for record in records if record.phase == Phase.RUNNING]
    waiting = [record for record in records if record.phase == Phase.WAITING]
    failed = [record for record in records if record.phase == Phase.FAILED]
    ran = [*_ran(session, records)]
    shown = [each for each in ran if each.ended is None][:MAX_LISTED]
    recent = sorted((each for each in ran if each.ended is not None), key=lambda each: each.started)
    return ClientSummary(
        programs[-MAX_PROGRAMS:],
        [*recent[-MAX_RECENT:], *shown],
        [*_waiting(waiting[:MAX_LISTED], session)],
        [*map(_failed, failed[-MAX_FAILURES:])],
        {
            "programs": max(0, len(programs) - MAX_PROGRAMS),
            "running": max(0, len(running) - len(shown)),
            "waiting": max(0, len(waiting) - MAX_LISTED),
            "failures": max(0, len(failed) - MAX_FAILURES),
        },
    ).dumps()


def _unique(*records: TaskRecord) -> Iterable[TaskRecord]:
    """Return each task once, without barriers."""
    return dict.fromkeys(record for record in records if record.call is not None)


def _program_name(record: TaskRecord) -> str:
    return _SINGLE if record.group is None else short(record.group.name)


def _program(group: Group | None, records: Sequence[TaskRecord]) -> ProgramSummary:
    names: dict[str, dict[str, int]] = {}
    for record in records:
        name = record.base_name
        if name not in names:
            name = short(name) if len(names) < MAX_NAMES else _OTHERS
        states = names.setdefault(name, {})
        state = record.phase.name.lower()
        states[state] = states.get(state, 0) + 1
    if group is None:
        started = min(record.created for record in records)
        return ProgramSummary(_SINGLE, _state(names), started, None, names)
    state = group.phase.name.lower() if not group.unfinished else "running"
    return ProgramSummary(short(group.name), state, group.started_at or None, None, names)


def _state(names: Mapping[str, Mapping[str, int]]) -> str:
    """Return a state for tasks that are no compiled task."""
    states = {state for counts in names.values() for state in counts}
    order = ("running", "waiting", "queued", "failed", "cancelled", "skipped")
    return next((state for state in order if state in states), "done")


def _ran(session: Session, records: Iterable[TaskRecord]) -> Iterable[RanTask]:
    """Yield what runs, and what has ended lately."""
    since = time() - _RECENT_SECONDS
    for record in records:
        if record.phase not in (Phase.RUNNING, Phase.DONE, Phase.FAILED):
            continue
        with session.dispatcher.outcomes.changed:
            ran = execution_of(record, 0)
        if ran.started is not None and (ran.ended is None or ran.ended >= since):
            yield RanTask(
                short(record.name),
                short(record.base_name),
                _program_name(record),
                record.phase.name.lower(),
                ran.worker or "",
                ran.started,
                ran.ended,
            )


def _waiting(records: Iterable[TaskRecord], session: Session) -> Iterable[WaitingTask]:
    """Yield what waits, and why."""
    asked = False
    for record in records:
        with session.dispatcher.outcomes.changed:
            waits = {
                before: reasons
                for before, reasons in record.unfinished_waits().items()
                if before.call is not None
            }
            behind = bool(record.unfinished_waits())
        if waits:
            before, reasons = next(iter(waits.items()))
            more = len(waits) - 1
            said = f"waits for {long_label(before)} ({wait_reasons(before, record, reasons)})"
            said += f", and for {more} more" if more else ""
        elif behind:
            said = "waits for earlier tasks"
        elif not asked:
            # Only of one: the scheduler is asked which slots are taken.
            asked, said = True, why(record, session).removeprefix(f"{long_label(record)} ")
        else:
            said = "waits for a slot"
        yield WaitingTask(short(record.name), _program_name(record), short(said))


def _failed(record: TaskRecord) -> FailedTask:
    error = "its exception is on its worker"
    if record.value is not None:
        error = brief_error(record.value)
    if record.output is None:
        output = "(the output is on its worker)"
    else:
        output = "\n".join(each.rstrip("\n") for each in record.output if each)
    end = output[-MAX_OUTPUT_CHARACTERS:]
    return FailedTask(
        short(record.name), _program_name(record), short(error), short(end, len(end) + 1)
    )

"""Says in one sentence where a task is, and why it is not further.

What a task waits for is in its record; which slots are taken, the scheduler knows. Any thread may
call all functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import pairwise

from daskbatch.batch.result import error_line
from daskbatch.batch.task_label import long_label
from daskbatch.cluster.session import Session
from daskbatch.dispatch.requirements import unmet
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.plan.explain import wait_reasons

#: Of a longer chain of waits, the first and the last links are named.
_MAX_FIRST_LINKS, _MAX_LAST_LINKS = 3, 2

#: How long the scheduler may take to say how its workers are.
_ANSWER_TIMEOUT_SECONDS = 5.0

#: What a worker does that begins no task, by its status.
_RESTING = {
    "paused": "is paused: its memory is almost full",
    "closing_gracefully": "is about to end",
}


def why(record: TaskRecord, session: Session) -> str:
    """Return a sentence on where a task is and why.

    Parameters
    ----------
    record : TaskRecord
        The task.
    session : Session
        The client that made it.
    """
    label, phase = long_label(record), record.phase
    if phase == Phase.CREATED:
        group = record.group
        if session.closed:
            return f"{label} has not been started, and never will be: its Batch has been closed."
        which = "" if group is None else f" of the compiled task {group.name!r}, its program"
        return f"{label} has not been started: call start(){which}."
    if phase == Phase.QUEUED:
        return f"{label} waits in the background until it, or a task beside it, is needed."
    if phase == Phase.WAITING:
        return f"{label} {_why_waiting(record, session)}."
    if phase == Phase.RUNNING:
        return f"{label} {_where_running(record, session)}."
    if phase == Phase.DONE:
        return f"{label} is done."
    if phase == Phase.CANCELLED:
        return f"{label} was cancelled."
    root = record.root_failure
    if phase == Phase.SKIPPED and root is not None:
        how = "was cancelled"
        if root.phase != Phase.CANCELLED:
            how = f"failed: {error_line(root, session.dispatcher)}"
        return f"{label} did not run, because {long_label(root)} {how}."
    return f"{label} failed: {error_line(record, session.dispatcher)}."


def why_program(records: Sequence[TaskRecord], name: str, session: Session) -> str:
    """Return the same for a compiled task.

    Parameters
    ----------
    records : sequence of TaskRecord
        Its members.
    name : str
        Its name.
    session : Session
        The client that made it.
    """
    phases = [record.phase for record in records]
    over = sum(phase >= Phase.DONE for phase in phases)
    counted = f"{over} of {len(records)} tasks of {name!r} are over"
    others = [
        f"{phases.count(phase)} {words}"
        for phase, words in (
            (Phase.RUNNING, "run"),
            (Phase.FAILED, "failed"),
            (Phase.SKIPPED, "were skipped"),
            (Phase.CANCELLED, "were cancelled"),
        )
        if phase in phases
    ]
    parts = ", ".join([counted, *others])
    subject = _subject(records)
    return f"{parts}." if subject is None else f"{parts}; {why(subject, session)}"


def why_stalled(session: Session) -> str:
    """Return a sentence on what the unfinished tasks of a client wait for."""
    records = [each for each in session.dispatcher.unfinished() if each.call is not None]
    subject = _subject(records)
    if subject is None:
        return "no task is unfinished."
    others = len(records) - 1
    more = f" {others} other task{'s wait' if others > 1 else ' waits'} as well." if others else ""
    return why(subject, session) + more


def _subject(records: Sequence[TaskRecord]) -> TaskRecord | None:
    """Return the task that says most: one that failed, that runs, or that could begin next."""
    for phase in (Phase.RUNNING, Phase.WAITING, Phase.FAILED, Phase.QUEUED, Phase.CREATED):
        for record in records:
            if record.phase == phase:
                return record
    return None


# -- waiting for other tasks ------------------------------------------------------------------


def _why_waiting(record: TaskRecord, session: Session) -> str:
    with session.dispatcher.outcomes.changed:
        chain = _chain(record)
        direct = {each for each in record.unfinished_waits() if each.call is not None}
    if len(chain) == 1:
        return _why_no_slot(record, session)
    links = [
        f"waits for {long_label(before)} ({_reason(before, after)})"
        for after, before in pairwise(chain)
    ]
    # The link in the middle stands for itself and for the tasks that it leaves out.
    left_out = len(links) - _MAX_FIRST_LINKS - _MAX_LAST_LINKS - 1
    if left_out > 0:
        beyond = long_label(chain[-_MAX_LAST_LINKS - 1])
        middle = f"waits for {beyond} by way of {left_out} more task{'s' * (left_out > 1)}"
        links = [*links[:_MAX_FIRST_LINKS], middle, *links[-_MAX_LAST_LINKS:]]
    others = len(direct - {chain[1]})
    beside = f"; it also waits for {others} other task{'s' * (others > 1)}" if others else ""
    return f"{', which '.join(links)}, which {_state_of(chain[-1], session)}{beside}"


def _chain(record: TaskRecord) -> list[TaskRecord]:
    """Return the tasks from one that waits to one that runs, or that waits for no other task.

    Barriers are left out. The caller holds the lock.
    """
    came_from: dict[TaskRecord, TaskRecord | None] = {record: None}
    pending = [record]
    end = record
    for each in pending:
        waits = each.unfinished_waits()
        if each.phase == Phase.RUNNING:
            end = each
            break
        if not waits and end is record and each.call is not None:
            end = each  # unless another one runs
        for before in waits:
            if before not in came_from:
                came_from[before] = each
                pending.append(before)
    chain: list[TaskRecord] = []
    at: TaskRecord | None = end
    while at is not None:
        if at.call is not None:
            chain.append(at)
        at = came_from[at]
    return chain[::-1]


def _reason(before: TaskRecord, after: TaskRecord) -> str:
    return wait_reasons(before, after, dict(after.waits).get(before, 0))


def _state_of(record: TaskRecord, session: Session) -> str:
    if record.phase == Phase.RUNNING:
        return _where_running(record, session)
    if record.phase < Phase.WAITING:
        return "has not been started"
    return _why_no_slot(record, session)


# -- waiting for a slot ------------------------------------------------------------------------


def _why_no_slot(record: TaskRecord, session: Session) -> str:
    """Say why a task that waits for no other task has not begun."""
    with contextlib.suppress(Exception):  # the scheduler does not answer
        workers = session.capacities()
        if not any(each.is_here for each in workers):
            return f"waits for a worker: {session.describe_missing_workers()}"
        reason = unmet(record.options, workers)
        if reason is not None:
            return reason
    resting = _why_no_worker_begins(record, session, busy := _processing(session))
    if resting is not None:
        return resting
    if record.options.gang is not None:
        gang = _why_no_gang(record, session)
        if gang is not None:
            return gang
    dispatcher, block = session.dispatcher, record.block
    with dispatcher.outcomes.changed:
        if block is not None:
            for other in block.records[: record.member]:
                if other.block is block and other.phase == Phase.RUNNING:
                    return f"runs on the same slot after {long_label(other)}, which runs now"
        before = sum(
            other.phase == Phase.WAITING
            and other.call is not None
            and other.rank < record.rank
            and not other.unfinished_waits()
            for other in dispatcher.unfinished()
        )
    others = (
        f"{before} task{'s' if before != 1 else ''} of this client {'are' if before != 1 else 'is'}"
    )
    if busy is not None and len(busy) >= session.slots:
        return f"waits for a slot: all {session.slots} are taken, and {others} before it"
    if before:
        return f"waits for a slot, and {others} before it"
    return "has been submitted, and is about to begin"


def _resting_workers(session: Session) -> dict[str, str]:
    """Return the workers that begin no task, with their status; asks the scheduler.

    The status is Dask's: ``paused`` (its memory is almost full) or ``closing_gracefully``.
    """
    # Not by `scheduler_info`: the client asks for the same now and then, without the workers, and
    # that answer may be the one which it returns.
    client = session.client
    workers = client.sync(
        client.scheduler.identity, n_workers=-1, callback_timeout=_ANSWER_TIMEOUT_SECONDS
    )["workers"]
    return {
        address: worker["status"]
        for address, worker in workers.items()
        if worker["status"] != "running"
    }


def _why_no_worker_begins(
    record: TaskRecord, session: Session, busy: dict[object, str] | None
) -> str | None:
    """Say that the worker of a task, or each worker, is paused; None if that is not so."""
    with contextlib.suppress(Exception):  # the scheduler does not answer
        resting = _resting_workers(session)
        if not resting:
            return None
        worker = (busy or {}).get(record.block.key) if record.block is not None else None
        if worker in resting:
            return f"waits for the worker {worker}, which {_RESTING[resting[worker]]}"
        if resting.keys() >= {each.address for each in session.capacities()}:
            reasons = sorted({_RESTING[status] for status in resting.values()})
            each = "the only one" if len(resting) == 1 else f"each of the {len(resting)}"
            return f"waits for a worker: {each} {' or '.join(reasons)}"
    return None


def _why_no_gang(record: TaskRecord, session: Session) -> str | None:
    """Say what a task that takes several slots waits for; None if the scheduler does not know."""
    with contextlib.suppress(Exception):  # the scheduler does not answer
        waiting = [each for each in session.gangs() if each["why"]]
        for before, gang in enumerate(waiting):
            if record.block is not None and gang["key"] == record.block.key:
                slots = gang["ranks"] * gang["cores"]
                verb = "is" if before == 1 else "are"
                others = f"; {before} task{'s' * (before > 1)} of several slots {verb} before it"
                what = f"waits for {slots} slots, all at once: {gang['why']}"
                if slots == 1:
                    what = f"waits for a slot: {gang['why']}"
                return what + others * (before > 0)
    return None


def _where_running(record: TaskRecord, session: Session) -> str:
    with session.dispatcher.outcomes.changed:
        block = record.block
        stopping = record in session.dispatcher.table.stopping
    busy = _processing(session) or {}
    worker = busy.get(block.key) if block is not None else None
    where = f"runs on {worker}" if worker else "runs"
    return f"{where}, and is being stopped" if stopping else where


def _processing(session: Session) -> dict[object, str] | None:
    """Return the keys that workers process now, with the workers; None if that is unknown."""
    try:
        found = session.client.processing()
        return {key: worker for worker, keys in found.items() for key in keys}
    except Exception:
        return None

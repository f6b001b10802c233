"""Waits for tasks in the user's thread: says why nothing runs, and what Ctrl-C has left running.

`wait_for` does so for any condition, `wait_attentively` for one task. Any thread may call them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

from daskbatch import config
from daskbatch.batch.user_warnings import Notice, warn
from daskbatch.batch.why import why_stalled
from daskbatch.cluster.session import Session
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import BatchWarning
from daskbatch.timeouts import Deadline

#: A wait that is shorter than this does not look for a reason.
_MIN_WATCHED_SECONDS = 1.0

#: The tasks whose wait was ended by Ctrl-C.
_interrupted: WeakSet[TaskRecord] = WeakSet()


class WaitedTask(Protocol):
    """The part of a task that is needed to wait for it."""

    _record: TaskRecord
    _session: Session

    def _is_over(self) -> bool: ...
    def _count_unfinished(self) -> int: ...
    def cancel(self) -> bool: ...


def wait_attentively(task: WaitedTask, seconds: float | None) -> bool:
    """Wait until a task is over; return False if the time is up first.

    Parameters
    ----------
    task : Task
        The task.
    seconds : float, optional
        Maximum number of seconds to wait.

    Raises
    ------
    KeyboardInterrupt
        The user has pressed Ctrl-C. Its text says what goes on.
    """
    try:
        return wait_for(task._session, task._is_over, seconds)
    except KeyboardInterrupt:
        if threading.current_thread() is not threading.main_thread():
            raise
    # Outside of the handler, so that the traceback does not show the wait itself.
    count, record = task._count_unfinished(), task._record
    some = "1 task goes" if count == 1 else f"{count} tasks go"
    if record not in _interrupted:
        _interrupted.add(record)
        raise KeyboardInterrupt(
            f"the wait for {record.label} has ended, and {some} on: cancel() of it stops "
            f"{'it' if count == 1 else 'them'}, and so does Ctrl-C in another wait for it"
        )
    _interrupted.discard(record)
    task.cancel()
    stopped = "1 task was" if count == 1 else f"{count} tasks were"
    raise KeyboardInterrupt(f"{stopped} stopped, by a second Ctrl-C in a wait for {record.label}")


def wait_for(session: Session, over: Callable[[], bool], seconds: float | None) -> bool:
    """Wait for a condition; warn once if nothing runs for `daskbatch.stall-timeout`.

    Parameters
    ----------
    session : Session
        The client whose tasks the condition is about.
    over : callable
        The condition; it is called with the lock of the client's tasks held.
    seconds : float, optional
        Maximum number of seconds to wait.
    """
    outcomes = session.dispatcher.outcomes
    deadline = Deadline(seconds)
    if outcomes.current_context() is not None:
        return outcomes.wait(over, seconds)  # one wait, since each releases the worker's slot
    if outcomes.wait(over, deadline.remaining(_MIN_WATCHED_SECONDS)):
        return True
    stall_seconds = config.get_optional_seconds("stall-timeout")
    if stall_seconds is None:
        return outcomes.wait(over, deadline.remaining())
    before = _activity(session)
    while not outcomes.wait(over, deadline.remaining(stall_seconds)):
        if deadline.passed:
            return False
        now = _activity(session)
        if now == before and not now[1] and now[0]:
            text = f"no task has run for {stall_seconds:g} s: {why_stalled(session)}"
            warn(Notice(BatchWarning, text))
            return outcomes.wait(over, deadline.remaining())
        before = now
    return True


def _activity(session: Session) -> tuple[int, bool]:
    """Return the number of tasks that are not over, and whether any of them runs."""
    dispatcher = session.dispatcher
    running = any(record.phase == Phase.RUNNING for record in dispatcher.unfinished())
    return dispatcher.outcomes.unfinished, running

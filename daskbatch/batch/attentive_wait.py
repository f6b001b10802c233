"""Waits for tasks in the user's thread: says why nothing runs, and what Ctrl-C has left running.

`wait_attentively` waits for one task, `wait_for_all` for all tasks of a client. Any thread may call
all functions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol
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

#: The tasks, and the clients, whose wait was ended by Ctrl-C.
_interrupted: WeakSet[Any] = WeakSet()


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
    record = task._record
    # A compiled task has no call. The message has the names that the documentation uses.
    how = "program.cancel()" if record.call is None else "task.cancel()"
    raise _interruption(record, record.label, how, task._count_unfinished, task.cancel)


def wait_for_all(session: Session, count: Callable[[], int], seconds: float | None) -> bool:
    """Wait until no task of a client is left; return False if the time is up first.

    Parameters
    ----------
    session : Session
        The client.
    count : callable
        Returns the number of its tasks that are not over.
    seconds : float, optional
        Maximum number of seconds to wait.

    Raises
    ------
    KeyboardInterrupt
        See `wait_attentively`.
    """
    try:
        return wait_for(session, lambda: not count(), seconds)
    except KeyboardInterrupt:
        if threading.current_thread() is not threading.main_thread():
            raise

    def stop() -> None:
        session.dispatcher.cancel(session.dispatcher.unfinished())

    raise _interruption(session, "all tasks of the Batch", "batch.terminate()", count, stop)


def _interruption(
    subject: object,
    label: str,
    how: str,
    count: Callable[[], int],
    stop: Callable[[], object],
) -> KeyboardInterrupt:
    """Return the exception by which Ctrl-C ends a wait; for the second time stop what goes on.

    Parameters
    ----------
    subject : object
        What was waited for: a weak reference to it must be possible.
    label, how : str
        What messages call it, and the call that stops it.
    count : callable
        Returns the number of its tasks that are not over.
    stop : callable
        Stops them.
    """
    number = count()
    if subject not in _interrupted:
        _interrupted.add(subject)
        some = "1 task goes" if number == 1 else f"{number} tasks go"
        return KeyboardInterrupt(
            f"the wait for {label} has ended, and {some} on while the Batch is open: {how} stops "
            f"{'it' if number == 1 else 'them'}, and so does Ctrl-C in another wait for it"
        )
    _interrupted.discard(subject)
    stop()
    stopped = "1 task was" if number == 1 else f"{number} tasks were"
    return KeyboardInterrupt(f"{stopped} stopped, by a second Ctrl-C in a wait for {label}")


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
            warn(Notice(BatchWarning, text), session.origin)
            return outcomes.wait(over, deadline.remaining())
        before = now
    return True


def _activity(session: Session) -> tuple[int, bool]:
    """Return the number of tasks that are not over, and whether any of them runs."""
    dispatcher = session.dispatcher
    running = any(record.phase == Phase.RUNNING for record in dispatcher.unfinished())
    return dispatcher.outcomes.unfinished, running

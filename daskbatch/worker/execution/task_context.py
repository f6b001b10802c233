"""Holds the context of the running task: its worker slot, and the resources that end with it.

A task that waits releases its slot meanwhile, so that another task can use it. Safe for any number
of threads.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from threading import get_ident
from time import monotonic, sleep
from typing import Any, Protocol, TypeVar

from daskbatch.forking import after_fork
from daskbatch.worker.execution.allocation import Allocation
from daskbatch.worker.execution.client_names import batch_of_topic

T = TypeVar("T")

#: A waiting task runs Python code at this interval: only there can it be stopped.
STOP_POLL_SECONDS = 0.05

#: The first and the longest pause between two looks at whether the slot is free.
_MIN_SLOT_POLL_SECONDS, _MAX_SLOT_POLL_SECONDS = 0.0005, 0.02


class WorkerSlot(Protocol):
    """A place for a running task on a worker. Any thread may use it."""

    def release(self) -> None:
        """Release it: another task may have it."""

    def request(self) -> None:
        """Request it again; does not wait for this."""

    def is_held(self) -> bool:
        """Return whether the task has it."""


class TaskResource(Protocol):
    """Something that a task uses while it runs, and that must end with the task.

    The thread of the task calls it.
    """

    def finish(self) -> None:
        """Wait until this has completed: the task has returned."""

    def give_up(self) -> None:
        """End at once: the task has failed, or was stopped."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class TaskContext:
    """The context of a running task; one for each worker thread, reused for successive tasks.

    Safe for any number of threads: a task may start threads, which wait, too.

    Parameters
    ----------
    slot : WorkerSlot
        Where it computes.
    topic : str
        The client whose task it is.
    key : object
        The Dask task that it is part of.
    scheduler : str
        The scheduler's address, as this process reaches it.
    security : bytes, optional
        The pickled `Security` to connect with, for a process that does not have it.
    worker : str
        The address of the worker.

    Attributes
    ----------
    resources : dict
        What the task uses: the clients that it is, by the names of their `Identity`.
    task_number : int
        Increases with every task, so that successive tasks can be told apart.
    allocation : Allocation, optional
        The slots that the task holds, if it is a gang.
    """

    slot: WorkerSlot
    topic: str
    key: Any
    scheduler: str
    security: bytes | None = None
    worker: str = ""
    resources: dict[str, TaskResource] = field(default_factory=dict)
    task_number: int = 0
    allocation: Allocation | None = None
    _waiting: int = 0  # the number of its threads that wait
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def batch(self) -> str:
        """The id of the Batch whose task it is: part of a topic, `daskbatch-<batch>[-<copy>]`."""
        return batch_of_topic(self.topic)

    def begin_waiting(self) -> None:
        """Release the slot, unless another thread of the task already waits."""
        with self._lock:
            self._waiting += 1
            if self._waiting == 1:
                self.slot.release()

    def end_waiting(self) -> None:
        """Request the slot, unless another thread of the task still waits."""
        with self._lock:
            self._waiting = max(0, self._waiting - 1)
            if not self._waiting:
                self.slot.request()

    def await_slot(self, deadline: float | None) -> None:
        """Wait until the slot is regained; after `deadline`, continue without one.

        Parameters
        ----------
        deadline : float, optional
            A value of `time.monotonic()`.
        """
        pause = _MIN_SLOT_POLL_SECONDS
        while not (self._waiting or self.slot.is_held()):
            if deadline is not None and monotonic() > deadline:
                return
            # Without a lock, so that the thread can be stopped.
            sleep(pause)
            pause = min(2 * pause, _MAX_SLOT_POLL_SECONDS)

    def finish(self) -> None:
        """Wait until the resources of a task that has returned have completed."""
        for resource in list(self.resources.values()):
            resource.finish()
        self.resources.clear()

    def give_up(self) -> None:
        """End the resources of a task that has failed."""
        resources = list(self.resources.values())
        self.resources.clear()
        for resource in resources:
            resource.give_up()

    def next_task(self) -> None:
        """Record that another task begins."""
        self.task_number += 1
        if self._waiting:
            # A thread that the last task has left behind still waits.
            self._waiting = 0
            self.slot.request()


#: The contexts of running tasks, by the thread that runs the task.
_contexts: dict[int, TaskContext] = {}

#: The context for all threads of a process that runs one task at a time.
_process_context: TaskContext | None = None


def current_context() -> TaskContext | None:
    """Return the context of the task that runs in this thread; None outside of tasks."""
    return _contexts.get(get_ident(), _process_context) if _contexts else _process_context


@contextmanager
def active_context(context: TaskContext | None, whole_process: bool = False) -> Iterator[None]:
    """Make a context the current one of this thread, for the body of a `with` statement.

    Parameters
    ----------
    context : TaskContext, optional
        The context; with None nothing changes.
    whole_process : bool
        Whether it becomes that of all other threads, too: this process runs no other tasks.
    """
    global _process_context
    if context is None:
        yield
        return
    thread = get_ident()
    outer = _contexts.get(thread)
    _contexts[thread] = context
    if whole_process:
        _process_context = context
    try:
        yield
    finally:
        if outer is None:
            del _contexts[thread]
        else:
            _contexts[thread] = outer
        if whole_process:
            _process_context = None


@after_fork
def _forget_contexts() -> None:
    """Forget all contexts: a process that a task has forked is not part of the task."""
    global _process_context
    _contexts.clear()
    _process_context = None


@contextmanager
def waiting(context: TaskContext | None, deadline: float | None = None) -> Iterator[None]:
    """Release the task's slot while the body of the `with` statement waits.

    Parameters
    ----------
    context : TaskContext, optional
        The task's context; with None nothing is released.
    deadline : float, optional
        When to continue without a slot, if none is free: a value of `time.monotonic()`.
    """
    if context is None:
        yield
        return
    context.begin_waiting()
    try:
        yield
    finally:
        context.end_waiting()
    # Not if the body raised: a task that is stopped needs no slot to end.
    context.await_slot(deadline)


def wait_releasing_slot(
    context: TaskContext | None,
    wait: Callable[[float | None], bool],
    timeout: float | None = None,
) -> bool:
    """Wait for something with the slot released; return False if the timeout has passed.

    Parameters
    ----------
    context : TaskContext, optional
        The task's context; None outside of tasks.
    wait : callable
        Takes the seconds that it may wait, or None for no limit; returns whether the wait is
        over.
    timeout : float, optional
        Seconds to wait at most.
    """
    if context is None:
        return wait(timeout)
    if wait(0.0):
        return True
    deadline = None if timeout is None else monotonic() + timeout
    with waiting(context, deadline):
        while True:
            remaining = (
                STOP_POLL_SECONDS
                if deadline is None
                else min(STOP_POLL_SECONDS, deadline - monotonic())
            )
            if wait(max(0.0, remaining)):
                return True
            if remaining < STOP_POLL_SECONDS:
                return False


@asynccontextmanager
async def waiting_in_loop() -> AsyncIterator[None]:
    """Release the task's slot while a coroutine of the task waits."""
    context = current_context()
    if context is None:
        yield
        return
    context.begin_waiting()
    try:
        yield
    finally:
        context.end_waiting()
    import asyncio  # not at the top: a child starts faster without it

    # In another thread: other coroutines of the task continue meanwhile.
    await asyncio.get_running_loop().run_in_executor(None, context.await_slot, None)


def call_releasing_slot(function: Callable[[], T]) -> T:
    """Call a function that may take long, in a new thread, with the slot released.

    Outside of tasks it is called in this thread.
    """
    context = current_context()
    if context is None:
        return function()
    with waiting(context):
        return call_in_thread(function)


def call_in_thread(function: Callable[[], T]) -> T:
    """Call a function in a new thread, while this thread waits and can be stopped."""
    done: Future[T] = Future()

    def call() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=call, name="daskbatch-aside", daemon=True).start()
    while not done.done():
        with suppress(TimeoutError):
            done.exception(STOP_POLL_SECONDS)
    # Not `result`: it takes an exception that is false, like an empty container, for none.
    error = done.exception()
    if error is not None:
        raise error
    return done.result()

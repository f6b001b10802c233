"""Says which task runs here, has it give its slot back while it waits, and ends what it uses.

Does not know what a task waits for, nor whose slot it is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from threading import get_ident
from time import monotonic, sleep
from typing import Any, Protocol, TypeVar

from daskbatch.worker.execution.client_names import batch_of_topic

T = TypeVar("T")

#: How often a task that waits looks up: only then can it be stopped. Seconds.
PACE = 0.05

#: Between two looks at whether a slot is free; longer and longer. Seconds.
_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02


class WorkerSlot(Protocol):
    """The right to compute on a worker, as long as there is none for all."""

    def give(self) -> None:
        """Give it back: another task may have it."""

    def ask(self) -> None:
        """Ask to have it again, once it is free."""

    def has(self) -> bool:
        """Say whether the task has it."""


class TaskResource(Protocol):
    """What a task uses as long as it runs, and no longer."""

    def finish(self) -> None:
        """The task has returned: wait until this is over."""

    def give_up(self) -> None:
        """The task has failed, or is stopped: so does this, now."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class TaskContext:
    """What the task that runs here has around it; one after another have the same.

    Parameters
    ----------
    slot : Slot
        Where it computes.
    topic : str
        The client whose task it is.
    key : object
        Dask's task that it is part of.
    scheduler : str
        The scheduler's address, as it is reached from here.
    security : bytes, optional
        What it takes to connect there, pickled, for a process that does not have it.
    """

    slot: WorkerSlot
    topic: str
    key: Any
    scheduler: str
    security: bytes | None = None
    #: By the Batches that they are clients of.
    guests: dict[str, TaskResource] = field(default_factory=dict)
    #: Goes up with every task.
    turn: int = 0
    _waits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def batch(self) -> str:
        """The Batch that the task is of."""
        return batch_of_topic(self.topic)

    def begin_to_wait(self) -> None:
        """Give the slot back, unless another thread of the task has."""
        with self._lock:
            self._waits += 1
            if self._waits == 1:
                self.slot.give()

    def end_to_wait(self) -> None:
        """Ask for the slot, unless another thread of the task still waits."""
        with self._lock:
            self._waits = max(0, self._waits - 1)
            if not self._waits:
                self.slot.ask()

    def await_slot(self, deadline: float | None) -> None:
        """Wait for the slot, but not beyond a time: then it is done without."""
        pause = _PAUSE
        while not (self._waits or self.slot.has()):
            if deadline is not None and monotonic() > deadline:
                return
            # Not a lock: the thread must be able to be stopped.
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def finish(self) -> None:
        """Let the guests of a task that has returned come to their end."""
        for guest in list(self.guests.values()):
            guest.finish()
        self.guests.clear()

    def give_up(self) -> None:
        """End the guests of a task that has failed."""
        guests = list(self.guests.values())
        self.guests.clear()
        for guest in guests:
            guest.give_up()

    def next_task(self) -> None:
        """Tell apart the task that ran and the one that comes."""
        self.turn += 1
        if self._waits:
            # A thread that the last one has left behind.
            self._waits = 0
            self.slot.ask()


#: By thread; or of all threads of a process that is there for one task at a time.
_hosts: dict[int, TaskContext] = {}
_everywhere: TaskContext | None = None


def current() -> TaskContext | None:
    """Give what the task has around it that runs in this thread, if one does."""
    return _hosts.get(get_ident(), _everywhere) if _hosts else _everywhere


@contextmanager
def hosted(host: TaskContext | None, everywhere: bool = False) -> Iterator[None]:
    """Have tasks run in this thread; or in any of this process, if it has no other tasks."""
    global _everywhere
    if host is None:
        yield
        return
    thread = get_ident()
    outer = _hosts.get(thread)
    _hosts[thread] = host
    if everywhere:
        _everywhere = host
    try:
        yield
    finally:
        if outer is None:
            del _hosts[thread]
        else:
            _hosts[thread] = outer
        if everywhere:
            _everywhere = None


def _forget() -> None:
    """Be no task: this is a process that one has forked."""
    global _everywhere
    _hosts.clear()
    _everywhere = None


os.register_at_fork(after_in_child=_forget)


@contextmanager
def waiting(host: TaskContext | None, deadline: float | None = None) -> Iterator[None]:
    """Let another task have the slot while this one waits.

    Parameters
    ----------
    host : Host, optional
        What the task has around it; None where none runs.
    deadline : float, optional
        When it no longer waits for a slot to be free, but goes on without. Of `monotonic`.
    """
    if host is None:
        yield
        return
    host.begin_to_wait()
    try:
        yield
    finally:
        host.end_to_wait()
    # Not where something was raised: who is stopped needs no slot to come to an end.
    host.await_slot(deadline)


def wait_releasing_slot(
    host: TaskContext | None, wait: Callable[[float | None], bool], timeout: float | None = None
) -> bool:
    """Wait for something, and let another task have the slot meanwhile; False if time is up.

    Parameters
    ----------
    host : Host, optional
        What the task has around it; None where none runs.
    wait : callable
        Waits so many seconds at most, and says whether there is no more to wait for.
    timeout : float, optional
        Seconds to wait at most.
    """
    if host is None:
        return wait(timeout)
    if wait(0.0):
        return True
    deadline = None if timeout is None else monotonic() + timeout
    with waiting(host, deadline):
        while True:
            left = PACE if deadline is None else min(PACE, deadline - monotonic())
            if wait(max(0.0, left)):
                return True
            if left < PACE:
                return False


@asynccontextmanager
async def waiting_in_loop() -> AsyncIterator[None]:
    """Let another task have the slot while a coroutine of this one waits."""
    host = current()
    if host is None:
        yield
        return
    host.begin_to_wait()
    try:
        yield
    finally:
        host.end_to_wait()
    import asyncio  # not at the top: a child starts faster without it

    # Other coroutines of the task go on meanwhile.
    await asyncio.get_running_loop().run_in_executor(None, host.await_slot, None)


def called_aside(function: Callable[[], T]) -> T:
    """Call what may take long and cannot be stopped, and let another task have the slot."""
    host = current()
    if host is None:
        return function()
    with waiting(host):
        return in_thread(function)


def in_thread(function: Callable[[], T]) -> T:
    """Call something in a thread of its own, while this one can be stopped."""
    done: Future[T] = Future()

    def call() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=call, name="daskbatch-aside", daemon=True).start()
    while not done.done():
        with suppress(TimeoutError):
            done.exception(PACE)
    return done.result()

"""Runs a block in the worker's own thread, so that what runs can be stopped.

Does not know who stops it, nor why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

from daskbatch.errors import TaskTimeout
from daskbatch.serialization.exceptions import reworded
from daskbatch.worker.execution import executable as process
from daskbatch.worker.execution.block import BlockSpec, Link
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.execution.interrupt import Interruption, Stopped
from daskbatch.worker.execution.outcome import Status


class ThreadRun(BlockRun):
    """A block whose members run in the thread that calls it.

    Whether a member completes or is cancelled is decided once, by `dict.setdefault`: whoever
    comes first, the end or the cancelling. To stop it really may take a while, since code
    that is not Python's is not interrupted, and is tried again until it is over.
    """

    def __init__(self, spec: BlockSpec, inputs: Sequence[Any]) -> None:
        super().__init__(spec, inputs)
        self._thread = 0
        self._interruption = Interruption()
        #: What members came to, or that they were cancelled first.
        self._ends: dict[int, int] = {}
        #: The member that has a time limit and runs, and when it is over.
        self._due: tuple[int, float] | None = None
        #: The member whose time was up.
        self._late = -1
        #: The member whose executable runs. The lock keeps it from being another's.
        self._executing = -1
        self._pressing = threading.Lock()

    # -- the thread that runs the block ---------------------------------------------------

    def _run(self, member: int, link: Link, capture: Capture) -> tuple[int, bytes | None]:
        status, value = super()._run(member, link, capture)
        if self._ends.setdefault(member, status) == Status.CANCELLED:
            return Status.CANCELLED, None
        return status, value

    def _call(
        self, member: int, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        if function is process.execute:
            return self._execute(member, kwargs)
        # A function may say in which form it wants to be stopped.
        self._interruption.thrown = getattr(function, "stopped_by", Stopped)
        limits = self.spec.limits.get(member)
        if limits is None or limits.timeout is None:
            return self._interruption.call(member, function, args, kwargs)
        began = perf_counter()
        self._due = member, began + limits.timeout
        try:
            value = self._interruption.call(member, function, args, kwargs)
        except Stopped:
            if self._late != member or member in self._ends:
                raise
        else:
            if perf_counter() - began <= limits.timeout:
                return value
        finally:
            self._due = None
            self._late = -1
        raise TaskTimeout(
            f"it ran for longer than its timeout of {limits.timeout:g} s: "
            f"it was stopped after {perf_counter() - began:.1f} s"
        )

    def _execute(self, member: int, kwargs: Mapping[str, Any]) -> Any:
        self._thread = threading.get_ident()
        self._executing = member
        try:
            return process.execute(**kwargs)
        except OSError as error:
            if isinstance(error, TaskTimeout) or error.errno is None:
                raise
            raise reworded(error, f"task {self.spec.label(member)}: {error.strerror}") from None
        finally:
            with self._pressing:
                self._executing = -1

    def _may_try_again(self, member: int) -> bool:
        return member not in self._ends

    # -- other threads --------------------------------------------------------------------

    def stop_running(self, member: int) -> bool:
        if member < len(self.statuses):
            return False
        if self._ends.setdefault(member, Status.CANCELLED) != Status.CANCELLED:
            return False
        self._press(member)
        return True

    def look(self) -> None:
        super().look()
        due, running = self._due, self.running
        if due is not None and perf_counter() > due[1]:
            self._late = due[0]
            self._press(due[0])
        elif self._ends.get(running) == Status.CANCELLED:
            self._press(running)

    def _press(self, member: int) -> None:
        with self._pressing:
            if self._executing != member:
                self._interruption.stop(member)
            elif (executable := process.running.get(self._thread)) is not None:
                executable.stop()

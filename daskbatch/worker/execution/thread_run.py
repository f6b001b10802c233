"""Runs a block in the worker's own thread, so that other threads can stop its members.

The worker's event loop calls `tick` and `stop_running`, which interrupt the thread of the block.
An interrupted member fails with `TaskTimeout`, or is cancelled.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from daskbatch.errors import ProcessFailed, TaskTimeout
from daskbatch.serialization.exceptions import reworded
from daskbatch.worker.execution import executable, thread_directory
from daskbatch.worker.execution.block import BlockSpec, Link
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.execution.ending import ended_with_worker
from daskbatch.worker.execution.interrupt import StoppableCaller, Stopped
from daskbatch.worker.execution.loaded_function import LoadedFunction
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.mpi.job import run_job
from daskbatch.worker.mpi.rank_function import PackedCall, RankFunction
from daskbatch.worker.processes import initial_state


class ThreadRun(BlockRun):
    """A block whose members run in the thread that calls it.

    To stop a member may take a while, since only Python code is interrupted: `tick` tries again
    until the member is over. `Progress` says what other threads may call.
    """

    def __init__(self, spec: BlockSpec, inputs: Sequence[Any]) -> None:
        super().__init__(spec, inputs)
        self._thread = 0
        self._caller = StoppableCaller()
        #: The exception that stops each function of the block, by the function's index. A function
        #: may name it by an attribute of its class, so that it can catch it.
        self._stopped_by: dict[int, type[Stopped]] = {}
        # There are two decisions on each member. The claim on it decides whether it begins; this
        # one decides how it ends. It is made once, by `dict.setdefault`, which is atomic: the
        # entry is either the member's status when it is over, or CANCELLED. If the member ends
        # first, `stop_running` returns False; if the cancelling is first, the result does not
        # count. A `Claims` cannot do this: its `revoke` gives no status to a member that has
        # begun.
        self._decided: dict[int, int] = {}
        # A member with a time limit may be called several times: for each attempt, and to run a
        # coroutine. Each such call has a number that no other has, below 0, so that a stop that
        # comes too late does not hit the next call.
        #: The number of the last call with a time limit.
        self._limited_call = -1
        #: The running call with a time limit: its number, its member, and when the limit passes.
        self._due: tuple[int, int, float] | None = None
        #: The call that was interrupted because its time limit had passed.
        self._timed_out = 0
        #: The member that was last told to stop, and when that was first done.
        self._told_to_stop = (-1, 0.0)
        #: The member whose executable runs; it stays the same while the lock is held to stop it.
        self._executing = -1
        self._stop_lock = threading.Lock()
        #: Why the directory of functions cannot be entered; None if it can.
        self._directory_error: OSError | None = None

    # -- the thread that runs the block ---------------------------------------------------

    def __call__(self) -> BlockResult:
        entered = self._enter_directory()
        try:
            return super().__call__()
        finally:
            if entered:
                thread_directory.leave()
            # What a task leaves in this thread must not reach the next one.
            initial_state.restore_signal_mask()
            initial_state.open_standard_descriptors()

    def _enter_directory(self) -> bool:
        """Enter the directory of functions; False if the thread has it, or cannot enter it."""
        directory = self.spec.directory
        if directory is None:
            return False
        try:
            return thread_directory.enter(directory)
        except OSError as error:
            self._directory_error = error
            return False

    def _run(self, member: int, link: Link, capture: Capture) -> tuple[int, bytes | None]:
        index, _ = self.spec.calls[member]
        self._caller.thrown = self._stopped_by.get(index, Stopped)
        status, value = super()._run(member, link, capture)
        capture.end_task()
        if self._decided.setdefault(member, status) == Status.CANCELLED:
            return Status.CANCELLED, None
        return status, value

    def _load(self, index: int) -> LoadedFunction:
        function, definitions = super()._load(index)
        stopped_by = getattr(type(function), "stopped_by", Stopped)
        self._caller.thrown = self._stopped_by[index] = stopped_by
        return function, definitions

    def _call(
        self, member: int, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        if function is executable.execute:
            run = partial(executable.execute, **kwargs, measured=self.add_usage)
            return self._execute(member, run)
        if function is run_job:
            directory = "" if self.journal is None else os.path.dirname(self.journal.location()[0])
            job = partial(run_job, **kwargs, directory=directory, measured=self.add_usage)
            return self._execute(member, job)
        if type(function) is RankFunction:
            return self._execute(member, partial(self._run_on_ranks, member, function, *args))
        if self._directory_error is not None:
            error = self._directory_error
            raise reworded(error, f"task {self.spec.label(member)}: {error.strerror or error}")
        limits = self.spec.limits.get(member)
        if limits is None or limits.timeout is None:
            return self._caller.call(member, function, args, kwargs)
        began = perf_counter()
        number = self._limited_call = self._limited_call - 1
        self._due = number, member, began + limits.timeout
        try:
            value = self._caller.call(number, function, args, kwargs)
        except Stopped:
            if self._timed_out != number or member in self._decided:
                raise
        else:
            if perf_counter() - began <= limits.timeout:
                return value
        finally:
            self._due = None
        raise TaskTimeout(
            f"it ran for longer than its timeout of {limits.timeout:g} s: "
            f"it was stopped after {perf_counter() - began:.1f} s"
        )

    def _run_on_ranks(self, member: int, function: RankFunction, call: PackedCall) -> Any:
        # Not at the top: most workers run no ranks.
        from daskbatch.worker.mpi.callable_job import run_callable

        return run_callable(
            call,
            function.settings,
            topic=self.spec.topic,
            label=self.spec.name(member),
            context=self.context,
            started=self._count_out,
            measured=self.add_usage,
            directory="" if self.journal is None else os.path.dirname(self.journal.location()[0]),
        )

    def _count_out(self, seconds: float) -> None:
        self.preparation = seconds

    def _execute(self, member: int, execute: Callable[[], Any]) -> Any:
        self._thread = threading.get_ident()
        self._executing = member
        try:
            value = execute()
            if type(value) is int and ended_with_worker(value):
                self.interrupted = member
            return value
        except ProcessFailed as error:
            if ended_with_worker(error.returncode):
                self.interrupted = member
            raise
        except OSError as error:
            if isinstance(error, TaskTimeout) or error.errno is None:
                raise
            raise reworded(error, f"task {self.spec.label(member)}: {error.strerror}") from None
        finally:
            with self._stop_lock:
                self._executing = -1

    def _may_retry(self, member: int) -> bool:
        return member not in self._decided and member != self.interrupted

    # -- other threads --------------------------------------------------------------------

    def _pid_of(self, member: int) -> int:
        running = executable.running_by_thread.get(self._thread)
        if self._executing != member or running is None or not running.pid:
            return super()._pid_of(member)
        return running.pid

    def stop_running(self, member: int) -> bool:
        if member < len(self.log.statuses):
            return False
        if self._decided.setdefault(member, Status.CANCELLED) != Status.CANCELLED:
            return False
        self._interrupt(member)
        return True

    def tick(self) -> None:
        super().tick()
        due, running = self._due, self.running
        if due is not None and perf_counter() > due[2]:
            self._timed_out = due[0]
            self._note_stop(due[1])
            self._caller.stop(due[0])
        elif self._decided.get(running) == Status.CANCELLED:
            self._interrupt(running)

    def seconds_stopping(self) -> float:
        member, since = self._told_to_stop
        return perf_counter() - since if member >= 0 and member == self.running else 0.0

    def _note_stop(self, member: int) -> None:
        if self._told_to_stop[0] != member:
            self._told_to_stop = member, perf_counter()

    def _interrupt(self, member: int) -> None:
        self._note_stop(member)
        with self._stop_lock:
            if self._executing != member:
                due = self._due
                self._caller.stop(member if due is None or due[1] != member else due[0])
            elif (running := executable.running_by_thread.get(self._thread)) is not None:
                running.stop()

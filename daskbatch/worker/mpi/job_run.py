"""Runs a parallel job of executables: starts the launcher, and waits for the ends of all ranks.

The thread of the task runs the job; other threads may stop it, as they stop a serial executable. If
the worker dies, its reaper ends what runs on this host, and each supervisor on another host ends
its rank.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import IO, NamedTuple

from daskbatch.errors import ProcessFailed, TaskTimeout
from daskbatch.serialization.exceptions import unusable_directory_error
from daskbatch.worker.execution.allocation import Allocation
from daskbatch.worker.execution.capture import BoundedText
from daskbatch.worker.execution.executable import (
    MAX_POLL_SECONDS,
    RunningExecutable,
    clean_environment,
    shell_hint,
)
from daskbatch.worker.execution.measures import UNKNOWN_CPU, Usage, sum_usage
from daskbatch.worker.mpi import rank_supervisor
from daskbatch.worker.mpi.launcher import Launcher, Part
from daskbatch.worker.mpi.local_ranks import LocalRanks, can_watch_locally
from daskbatch.worker.mpi.rank_events import Ended, NotStarted, Output, RankStart
from daskbatch.worker.mpi.rank_output import RankOutput
from daskbatch.worker.mpi.shared_memory import remove_unused, remove_unused_later
from daskbatch.worker.mpi.supervised_ranks import SupervisedRanks
from daskbatch.worker.processes.captured_process import start_captured
from daskbatch.worker.processes.process_tree import (
    MARKER,
    OWNER,
    end_of,
    kill_tree,
    processes_before,
    sweep,
    sweep_all,
)
from daskbatch.worker.processes.reaper import get_reaper

#: The address of this host, where all ranks run on it.
LOOPBACK = "127.0.0.1"

#: How long all ranks may take to start.
_START_TIMEOUT_SECONDS = 180.0

#: How long to wait, once a rank has failed, for other ranks that fail by themselves; and once the
#: launcher has ended, for what the ranks have reported before.
_SETTLE_SECONDS = 0.2

#: How long a rank may take to end after SIGTERM; how much longer its supervisor, and the launcher.
_GRACE_SECONDS = 2.0
_SUPERVISOR_SECONDS = 3.0
_LAUNCHER_END_SECONDS = 10.0

#: How long the launcher may take to end before this worker looks what hinders it.
_LAUNCHER_HINDERED_SECONDS = 0.5

#: How often to look whether the launcher has ended, on systems that offer no way to wait for it.
_POLL_INTERVAL_SECONDS = 0.05

#: How much of the launcher's own output is kept for messages.
_LAUNCHER_OUTPUT_BYTES = 1 << 16

_READ_BYTES = 1 << 16

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126

#: Makes the markers of this process's jobs different from those of its executables.
_jobs = count()


class RankEnd(NamedTuple):
    """How a rank has ended.

    Parameters
    ----------
    code : int
        Its exit code; negative for a signal.
    by_itself : bool
        Whether neither the launcher nor this worker had stopped it.
    cpu_seconds : float
        The processor time of its executable; `UNKNOWN_CPU` if it is not known.
    max_memory : int
        The peak of the memory of its executable, at least that of its supervisor; 0 if it is not
        known. Bytes.
    """

    code: int
    by_itself: bool = True
    cpu_seconds: float = UNKNOWN_CPU
    max_memory: int = 0


class JobRun:
    """One run of a job. The thread that runs it makes it, and calls `run` once.

    Parameters
    ----------
    parts : sequence of Part
        The executables with their ranks.
    allocation : Allocation
        Where the ranks run.
    launcher : Launcher
        Starts them.
    output : RankOutput
        Receives what the ranks write.
    directory : str
        Where files of the job may be made; empty for the directory of temporary files.

    Attributes
    ----------
    ends : dict
        The ends of the ranks that have reported them.
    lost : set of int
        The ranks whose supervisors have ended without a report.
    started : int
        The number of ranks that the launcher has started.
    launcher_code : int, optional
        The exit code of the launcher, once it has ended.
    launcher_output : BoundedText
        What the launcher itself has written.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        allocation: Allocation,
        launcher: Launcher,
        output: RankOutput,
        directory: str = "",
    ) -> None:
        self.parts = parts
        self.size = sum(part.num_procs for part in parts)
        self.ends: dict[int, RankEnd] = {}
        self.lost: set[int] = set()
        self.launcher_code: int | None = None
        self.launcher_output = BoundedText(_LAUNCHER_OUTPUT_BYTES)
        self.command: list[str] = []
        self._allocation = allocation
        self._launcher = launcher
        self._output = output
        self._directory = directory
        reaper = get_reaper()
        reaper.ensure()
        self._owner = reaper.owner
        self.marker = f"{reaper.owner}-job{next(_jobs)}"
        self.started = 0
        self._stop_requested = False
        #: The ranks that were not started, because the job was being stopped already.
        self._refused: set[int] = set()
        #: The error of a rank whose directory cannot be used.
        self._directory_error: OSError | None = None
        #: When the first rank has failed, or the launcher has ended too early.
        self._failed_at: float | None = None
        self._stopping = False
        self._began = time.time()

    # -- the course of a job --------------------------------------------------------------

    def run(
        self, running: RunningExecutable, source: IO[bytes] | None, timeout: float | None
    ) -> None:
        """Start all ranks, and wait until nothing of the job is left.

        Parameters
        ----------
        running : RunningExecutable
            Becomes readable when the job is to be stopped.
        source : binary file, optional
            The standard input of the first rank.
        timeout : float, optional
            After this time all ranks are ended. Seconds.

        Raises
        ------
        TaskTimeout
            The job ran for longer than `timeout`.
        ProcessFailed
            The launcher could not be started.
        OSError
            The directory of a rank cannot be used.
        """
        began = time.monotonic()
        self._source = source
        with (
            selectors.DefaultSelector() as self._selector,
            contextlib.closing(self._make_ranks()) as self._ranks,
            self._launched() as self._process,
            end_of(self._process.pid) as self._end,
        ):
            running.pid = self._process.pid
            self._selector.register(running, selectors.EVENT_READ, self._on_stop_request)
            self._selector.register(self._ranks, selectors.EVENT_READ, self._on_ranks)
            for pipe in (self._process.stdout, self._process.stderr):
                assert pipe is not None
                self._selector.register(pipe, selectors.EVENT_READ, (self._on_output, pipe))
            if self._end is not None:
                self._selector.register(self._end, selectors.EVENT_READ, self._on_launcher_end)
            due = None if timeout is None else began + timeout
            start_due = began + _START_TIMEOUT_SECONDS
            try:
                self._pump(self._is_decided, due, start_due)
                timed_out = not self._is_decided() and due is not None and time.monotonic() >= due
                if not self._has_ended():
                    self._stop_ranks()
            finally:
                self._end_launcher()
        if timed_out:
            raise TaskTimeout(
                f"the job ran for longer than its timeout of {timeout:g} s: all ranks were ended "
                f"after {time.monotonic() - began:.1f} s{self._output.last_errors()}"
            )
        if self._directory_error is not None:
            raise self._directory_error

    def _has_ended(self) -> bool:
        """Return whether all ranks have ended, without a failure that stops others."""
        return len(self.ends) == self.size

    def _is_decided(self) -> bool:
        """Return whether all ranks have ended, or the others are to be stopped."""
        if self._has_ended() or self._stop_requested:
            return True
        return self._failed_at is not None and time.monotonic() >= self._failed_at + _SETTLE_SECONDS

    def _pump(
        self, is_over: Callable[[], bool], due: float | None, start_due: float | None = None
    ) -> None:
        """Handle what happens, until something holds or a time has come."""
        while not is_over():
            now = time.monotonic()
            times = [each for each in (due,) if each is not None]
            if start_due is not None and self.started < self.size:
                times.append(start_due)
            if times and now >= min(times):
                return
            if self._failed_at is not None and not self._stopping:
                times.append(self._failed_at + _SETTLE_SECONDS)
            if self._end is None and self.launcher_code is None:
                times.append(now + _POLL_INTERVAL_SECONDS)
            wait = MAX_POLL_SECONDS
            ranks_due = self._ranks.due()
            if ranks_due is not None:
                wait = min(wait, max(0.0, ranks_due - now))
            if times:
                wait = min(wait, max(0.0, min(times) - now))
            for key, events in self._selector.select(wait):
                if isinstance(key.data, tuple):
                    handle, argument = key.data
                    handle(argument, events)
                else:
                    key.data()
            if ranks_due is not None and time.monotonic() >= ranks_due:
                self._on_ranks()
            if self._end is None:
                self._on_launcher_end()

    def _stop_ranks(self) -> None:
        """End all ranks: SIGTERM, and after a while SIGKILL."""
        self._stopping = True
        if not self.started:
            return
        for rank in range(self.size):
            if rank not in self.ends:
                self._ranks.stop(rank, _GRACE_SECONDS)
        due = time.monotonic() + _GRACE_SECONDS + _SUPERVISOR_SECONDS
        self._pump(self._have_started_ended, due)

    def _have_started_ended(self) -> bool:
        over = {*self.ends, *self.lost, *self._refused}
        return all(rank in over for rank in self._ranks.numbers)

    def _end_launcher(self) -> None:
        """End the supervisors, wait for the end of the launcher, and end what is left."""
        self._stopping = True
        is_regular = self._has_ended() and not any(end.code for end in self.ends.values())
        self._ranks.release()
        if self.started == self.size:
            self._await_launcher(_LAUNCHER_HINDERED_SECONDS)
            if self.launcher_code is None:
                # A process that a rank has left behind may hold a pipe to the launcher open.
                for rank in range(self.size):
                    sweep(rank_supervisor.RANK_MARKER, f"{self.marker}-{rank}")
                self._await_launcher(_LAUNCHER_END_SECONDS if is_regular else _GRACE_SECONDS)
        if self.launcher_code is None:
            kill_tree(self._process.pid, self.marker, _GRACE_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
            is_regular = False
        self._pump(lambda: False, time.monotonic())
        if is_regular:
            sweep(MARKER, self.marker, self._earlier)
            # A rank that has not ended MPI may have left some. The search may take as long as a
            # short job.
            remove_unused_later(self._began)
        else:
            sweep_all(MARKER, self.marker)
            remove_unused(self._began)

    def _await_launcher(self, seconds: float) -> None:
        self._pump(lambda: self.launcher_code is not None, time.monotonic() + seconds)

    # -- the launcher ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _launched(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the launcher."""
        with self._launcher_directory() as directory:
            parts = [Part(part.num_procs, self._ranks.command) for part in self.parts]
            variables = (rank_supervisor.ADDRESS, MARKER, OWNER)
            self.command = self._launcher.command(
                parts, self._allocation.hosts, directory, variables, self._ranks.needs_port
            )
            values = (self._ranks.address, self.marker, self._owner)
            self._earlier = processes_before()
            try:
                environment = clean_environment(dict(zip(variables, values, strict=True)))
                process = start_captured(self.command, "/", environment)
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                raise ProcessFailed(
                    f"the MPI launcher {self.command[0]} cannot be started: {error.strerror}: "
                    "check daskbatch.mpi-launcher and the PATH of the workers",
                    returncode=_NOT_FOUND if missing else _NOT_EXECUTABLE,
                    command=self.command,
                ) from None
            try:
                yield process
            finally:
                for pipe in (process.stdout, process.stderr):
                    assert pipe is not None
                    pipe.close()

    def _launcher_directory(self) -> AbstractContextManager[str]:
        """Make a directory for the list of hosts, if the launcher reads one."""
        if not self._launcher.reads_hostfile:
            return contextlib.nullcontext("")
        return tempfile.TemporaryDirectory(prefix="daskbatch-job-", dir=self._directory or None)

    def _on_output(self, pipe: IO[bytes], events: int) -> None:
        if data := os.read(pipe.fileno(), _READ_BYTES):
            self.launcher_output.add(data)
        else:
            self._selector.unregister(pipe)

    def _on_launcher_end(self) -> None:
        if self.launcher_code is None and (code := self._process.poll()) is not None:
            self.launcher_code = code
            if self._end is not None:
                self._selector.unregister(self._end)
            if len(self.ends) < self.size:
                self._note_failure()

    def _on_stop_request(self) -> None:
        self._stop_requested = True

    def _note_failure(self) -> None:
        if self._failed_at is None:
            self._failed_at = time.monotonic()

    # -- the ranks ------------------------------------------------------------------------

    def _make_ranks(self) -> SupervisedRanks | LocalRanks:
        """Decide how the ranks are watched."""
        hosts = self._allocation.hosts
        if len(hosts) == 1 and self._launcher.offers_port and can_watch_locally(self.size):
            return LocalRanks(self.size, self.marker, self._start_of)
        host = LOOPBACK if len(hosts) == 1 else hosts[0][0]
        return SupervisedRanks(self.size, host, self.marker, self._start_of)

    def _start_of(self, rank: int) -> RankStart | None:
        """Return what a rank runs; None if the job is to end."""
        if self._stopping:
            self._refused.add(rank)
            return None
        part = self.part_of(rank)
        env = {**part.env, MARKER: self.marker, OWNER: self._owner}
        if len(self._allocation.hosts) > 1:
            # Not all launchers pass their environment on to other hosts.
            whole = clean_environment(env)
            env = {os.fsdecode(name): os.fsdecode(text) for name, text in whole.items()}
        source = self._source if rank == 0 else None
        is_remote = self.host_of(rank) is not None
        return RankStart(part.command, part.cwd or os.getcwd(), env, source, is_remote)

    def _on_ranks(self) -> None:
        events = list(self._ranks.take())
        self.started = len(self._ranks.numbers)
        for event in events:
            rank = event.rank
            if isinstance(event, Output):
                streams = self._output.stderr if event.is_error else self._output.stdout
                streams[rank].add(event.data)
            elif isinstance(event, Ended):
                by_itself = not (event.was_signalled or self._stopping)
                self._on_end(
                    rank, RankEnd(event.code, by_itself, event.cpu_seconds, event.max_memory)
                )
            elif isinstance(event, NotStarted):
                self._on_end(rank, self._not_started(rank, event.number, event.is_directory))
            else:
                self.lost.add(rank)
                self._note_failure()

    def _on_end(self, rank: int, end: RankEnd) -> None:
        self.ends[rank] = end
        if end.code:
            self._note_failure()

    def _not_started(self, rank: int, number: int, is_directory: bool) -> RankEnd:
        part, text = self.part_of(rank), os.strerror(number)
        if is_directory:
            error = OSError(number, text, part.cwd)
            host = self.host_of(rank) or self._allocation.hosts[0][0]
            self._directory_error = unusable_directory_error("its cwd", error, host)
            return RankEnd(_NOT_EXECUTABLE)
        error = OSError(number, text)
        hint = shell_hint(part.command) if isinstance(error, FileNotFoundError) else ""
        line = f"{part.command[0]}: {text}{self.place_of(rank)}{hint}\n"
        self._output.stderr[rank].add(os.fsencode(line))
        return RankEnd(_NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE)

    def usage(self) -> Usage:
        """Return what the executables of all ranks have used, as far as they have reported it."""
        return sum_usage(
            (Usage(end.cpu_seconds, end.max_memory or None) for end in self.ends.values()),
            self._process.pid,
        )

    # -- where ranks belong ---------------------------------------------------------------

    def part_of(self, rank: int) -> Part:
        """Return the part of the job that a rank belongs to."""
        for part in self.parts:
            if rank < part.num_procs:
                return part
            rank -= part.num_procs
        raise IndexError(rank)

    def host_of(self, rank: int) -> str | None:
        """Return the host of a rank; None if it is this one."""
        for position, (host, ranks) in enumerate(self._allocation.hosts):
            if rank < ranks:
                return host if position else None
            rank -= ranks
        return None

    def place_of(self, rank: int) -> str:
        """Return the host of a rank for a message; nothing if all ranks are on this host."""
        if len(self._allocation.hosts) == 1:
            return ""
        return f" on host {self.host_of(rank) or self._allocation.hosts[0][0]}"

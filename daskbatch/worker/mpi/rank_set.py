"""Starts the ranks of a job, keeps the connections to them, and ends them.

A `RankSet` outlives its jobs: the next job with the same `SetKey` runs in the same ranks. One
thread at a time uses a set: that of the job, or the one that ends idle sets.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

from daskbatch.errors import ProcessFailed
from daskbatch.timeouts import Deadline
from daskbatch.worker.execution import executable
from daskbatch.worker.isolation.unnamed_file import new_file
from daskbatch.worker.mpi.launcher import Part, find_launcher
from daskbatch.worker.mpi.messages import MessageKind, MessageReader, RankMessage, encode
from daskbatch.worker.mpi.rank_connection import LINK_VARIABLE
from daskbatch.worker.mpi.rank_listener import Arrival, RankListener
from daskbatch.worker.mpi.shared_memory import remove_unused
from daskbatch.worker.processes.process_tree import MARKER, OWNER, kill_tree, sweep_all
from daskbatch.worker.processes.reaper import get_reaper

#: What the interpreter of a rank runs.
_PROGRAM = """\
import sys
sys.path[:] = {path!r}
from daskbatch.worker.mpi.rank_main import main
main()
"""

#: How long the ranks of a set may take to start.
_START_TIMEOUT_SECONDS = 120.0

#: How long the other ranks may take once one has connected. A launcher starts all of them at nearly
#: the same time; and MPICH's does not end if a rank is killed before it has started MPI.
_OTHERS_TIMEOUT_SECONDS = 30.0

#: After the worker has closed the connections, how long the ranks may take to end by themselves.
_FAREWELL_SECONDS = 2.0

#: After SIGTERM, how long the ranks and the launcher may take to end.
_TERMINATION_GRACE_SECONDS = 2.0

#: How long the launcher may take to end after SIGKILL.
_KILL_TIMEOUT_SECONDS = 5.0

#: How long the ranks may take to check that a job has left no message behind.
_CHECK_TIMEOUT_SECONDS = 5.0

#: How often to look whether the launcher has ended, on systems that offer no way to wait for it.
_POLL_INTERVAL_SECONDS = 0.05

#: How much is read from a stream at once, and how often, to drop it.
_DRAIN_BYTES, _MAX_DRAIN_READS = 1 << 16, 64

#: How much of the launcher's output a message contains.
_MAX_MESSAGE_BYTES = 4000


class SetKey(NamedTuple):
    """What two jobs must have in common to run in the same ranks.

    Parameters
    ----------
    topic : str
        The client of the jobs.
    hosts : tuple of (str, int)
        Each host and its number of ranks, as in an `Allocation`.
    cores : int
        The slots of each rank.
    env : tuple of (str, str)
        What is added to the worker's environment.
    launcher : str
        The setting of the launcher.
    """

    topic: str
    hosts: tuple[tuple[str, int], ...]
    cores: int
    env: tuple[tuple[str, str], ...]
    launcher: str

    @property
    def size(self) -> int:
        """The number of ranks."""
        return sum(count for _, count in self.hosts)


class JobStopped(Exception):
    """Another thread has stopped the job while its ranks started, or while they ran."""


class Rank:
    """One rank, seen from the worker. Used by the thread that uses its set.

    Parameters
    ----------
    number : int
        The rank.
    sock : socket.socket
        The connection to the rank.
    reader : MessageReader
        Reads from it.
    host : str
        The name of its host.
    is_local : bool
        Whether that is this host.

    Attributes
    ----------
    supervisor : MessageReader, optional
        Reads what its supervisor sends.
    streams : list of int
        Descriptors from which its stdout and stderr are read.
    closed : bool
        Whether the rank has closed its connection.
    exit_code : int, optional
        How it has ended, if its supervisor has said so.
    aborted : int, optional
        The exit code with which it calls `Abort`.
    """

    def __init__(
        self, number: int, sock: socket.socket, reader: MessageReader, host: str, is_local: bool
    ) -> None:
        self.number = number
        self.sock = sock
        self.reader = reader
        self.host = host
        self.is_local = is_local
        self.supervisor: MessageReader | None = None
        self.streams = [-1, -1]
        self.closed = False
        self.exit_code: int | None = None
        self.aborted: int | None = None
        self._outgoing: list[memoryview] = []

    def post(
        self, kind: MessageKind, fields: tuple[object, ...], *body: bytes, file: int = -1
    ) -> None:
        """Send a message, or as much of it as the socket takes; `flush` sends the rest."""
        size = sum(map(len, body))
        data = encode(kind, fields, size, file >= 0)
        try:
            if file >= 0:
                data = data[socket.send_fds(self.sock, [data], [file]) :]
        except BlockingIOError:  # only if the rank has not read what it was sent before
            self.sock.setblocking(True)
            try:
                data = data[socket.send_fds(self.sock, [data], [file]) :]
            finally:
                self.sock.setblocking(False)
        except OSError:
            return  # to read from the connection says why
        self._outgoing += [memoryview(each) for each in (data, *body) if each]
        self.flush()

    def flush(self) -> bool:
        """Send what the socket takes; return whether something remains to be sent."""
        while self._outgoing:
            try:
                sent = self.sock.send(self._outgoing[0])
            except BlockingIOError:
                return True
            except OSError:
                self._outgoing.clear()
                return False
            rest = self._outgoing[0][sent:]
            self._outgoing[:1] = [rest] if rest else []
        return False

    def read(self) -> list[RankMessage]:
        """Return the messages that have arrived; note if it has closed the connection."""
        messages: list[RankMessage] = []
        try:
            while (message := self.reader.read()) is not None:
                messages.append(message)
        except (OSError, EOFError):
            self.closed = True
        return messages

    def read_supervisor(self) -> bool:
        """Note how the rank has ended; False if nothing more arrives from its supervisor."""
        assert self.supervisor is not None
        try:
            while (message := self.supervisor.read()) is not None:
                if message.kind == MessageKind.ENDED:
                    (self.exit_code,) = message.fields
        except (OSError, EOFError):
            return False
        return True

    def close(self) -> None:
        """Close all that connects to it."""
        for reader in (self.reader, self.supervisor):
            if reader is not None:
                reader.sock.close()
                reader.close()
        for position, stream in enumerate(self.streams):
            if stream >= 0:
                os.close(stream)
                self.streams[position] = -1


class RankSet:
    """The ranks of a job, and of those after it. One thread at a time uses it.

    Attributes
    ----------
    key : SetKey
        What a job must have to run in these ranks.
    ranks : list of Rank
        The ranks, once they have started.
    mark : bytes
        What ranks on other hosts write to their streams at the end of each job.
    marker : str
        The value of `MARKER` in the environment of all processes of the set.
    closed : bool
        Whether it has ended, and its connections are closed.
    """

    def __init__(self, key: SetKey) -> None:
        self.key = key
        self.ranks: list[Rank] = []
        self.mark = b""
        self.marker = os.urandom(12).hex()
        #: How many ranks have yet to check what their last job has left.
        self._checking = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._output = -1
        self._started = 0.0
        self._directory: str | None = None
        self._lock = threading.Lock()
        self._ended = False
        self.closed = False

    # -- start ----------------------------------------------------------------------------

    def start(self, stop: int, directory: str = "") -> None:
        """Start the ranks, and wait until all have connected.

        Parameters
        ----------
        stop : int
            A descriptor that is readable when the job is to be stopped.
        directory : str
            Where a directory for the list of hosts may be made; the nanny removes it if the worker
            is killed. Empty for the directory of temporary files.

        Raises
        ------
        ProcessFailed
            There is no launcher, or it has ended, or the ranks do not connect in time.
        JobStopped
            The job was stopped.
        """
        size = self.key.size
        remote = len(self.key.hosts) > 1
        launcher = find_launcher(self.key.launcher, for_python=True)
        listener = RankListener(size, self.key.hosts[0][0] if remote else None)
        try:
            self.mark = bytes.fromhex(listener.address.mark)
            if remote or any("{hostfile}" in word for word in launcher.words):
                self._directory = tempfile.mkdtemp(prefix="daskbatch-ranks-", dir=directory or None)
            # multiprocessing starts its children with the same flags.
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            program = [sys.executable, *flags, "-c", _PROGRAM.format(path=sys.path)]
            env = self._environment()
            env[LINK_VARIABLE] = listener.address.encode()
            command = launcher.command(
                [Part(size, program)],
                self.key.hosts,
                self._directory or "",
                _passed_on(env, self.key),
            )
            self._launch(command, env)
            self._connect(listener, stop, command)
        except BaseException:
            self.end()
            raise
        finally:
            listener.close()
            self._remove_directory()

    def _environment(self) -> dict[str, str]:
        reaper = get_reaper()
        reaper.ensure()
        added = {**dict(self.key.env), OWNER: reaper.owner, MARKER: self.marker}
        environ = executable.clean_environment(added)
        return {os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()}

    def _launch(self, command: list[str], env: dict[str, str]) -> None:
        self._output = new_file()
        self._started = time.time()
        try:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )
        except OSError as error:
            raise ProcessFailed(
                f"the launcher of the ranks cannot be started: {command[0]}: {error.strerror}: "
                "check daskbatch.mpi-launcher and the PATH of the workers",
                command=command,
            ) from None

    def _connect(self, listener: RankListener, stop: int, command: list[str]) -> None:
        """Wait until each rank and each supervisor has connected."""
        arrivals: dict[tuple[str, int], Arrival] = {}
        try:
            self._take_all(listener, stop, command, arrivals)
        finally:
            for arrival in arrivals.values():  # those that no rank has taken
                arrival.discard()

    def _take_all(
        self,
        listener: RankListener,
        stop: int,
        command: list[str],
        arrivals: dict[tuple[str, int], Arrival],
    ) -> None:
        assert self._process is not None
        limit = _START_TIMEOUT_SECONDS
        deadline = Deadline(limit)
        found: dict[int, Rank] = {}
        size = self.key.size
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(stop, select.POLLIN)
        complete: set[int] = set()
        arrived: set[tuple[str, int]] = set()
        while len(complete) < size:
            ready = [file for file, _ in poll.poll(_POLL_INTERVAL_SECONDS * 1000)]
            if stop in ready:
                raise JobStopped
            while (arrival := listener.take()) is not None:
                limit = _OTHERS_TIMEOUT_SECONDS
                deadline = Deadline(limit)
                role, number = arrival.hello.role, arrival.hello.rank
                if (role, number) in arrived or not 0 <= number < size:
                    arrival.discard()
                    raise self._failure(
                        command,
                        f"it has started a process that takes itself for rank {number} of {size}: "
                        "it may belong to another MPI than the launcher's",
                    )
                arrived.add((role, number))
                arrivals[role, number] = arrival
                self._sort(arrivals, number, found)
            complete = {number for number, rank in found.items() if _is_complete(rank)}
            # Also if all ranks are there: a supervisor may have been killed before it connected.
            if len(complete) < size and self._process.poll() is not None:
                raise self._failure(command, f"it ended with exit code {self._process.returncode}")
            if len(complete) < size and deadline.passed:
                missing = sorted(set(range(size)) - complete)
                raise self._failure(
                    command,
                    f"ranks {missing} have not connected within {limit:g} s",
                )
        self.ranks = [found[number] for number in range(size)]

    def _sort(
        self, arrivals: dict[tuple[str, int], Arrival], number: int, found: dict[int, Rank]
    ) -> None:
        """Give a rank the connections that have arrived for it."""
        rank = found.get(number)
        if rank is None:
            main = arrivals.pop(("rank", number), None)
            if main is None:
                return
            main.sock.setblocking(False)
            is_local = main.sock.family == socket.AF_UNIX
            rank = Rank(number, main.sock, main.reader, main.hello.host, is_local)
            found[number] = rank
            self.ranks.append(rank)
            if is_local:
                rank.streams = list(main.files)
        if (supervisor := arrivals.pop(("supervisor", number), None)) is not None:
            supervisor.sock.setblocking(False)
            rank.supervisor = supervisor.reader
        for position, name in enumerate(("stdout", "stderr")):
            if (output := arrivals.pop((name, number), None)) is not None:
                rank.streams[position] = output.sock.detach()
        for stream in rank.streams:
            if stream >= 0:
                os.set_blocking(stream, False)

    def _failure(self, command: list[str], what: str) -> ProcessFailed:
        """Return the error of a set that does not start."""
        assert self._process is not None
        text = self.launcher_output()
        return ProcessFailed(
            f"the ranks could not be started by {command[0]}: {what}"
            + (f"; its output: {text}" if text else ""),
            returncode=self._process.poll(),
            command=command,
            stderr=text,
        )

    def launcher_output(self) -> str:
        """Return the end of what the launcher itself has written."""
        if self._output < 0:
            return ""
        with contextlib.suppress(OSError):
            size = os.fstat(self._output).st_size
            data = os.pread(self._output, _MAX_MESSAGE_BYTES, max(0, size - _MAX_MESSAGE_BYTES))
            return data.decode("utf-8", "replace").strip()
        return ""

    def launcher_code(self, seconds: float) -> int | None:
        """Return the exit code of the launcher; None if it does not end within some seconds."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    # -- between jobs ---------------------------------------------------------------------

    def expect_check(self, checked: int) -> None:
        """Note that the ranks check what their last job has left; `is_usable` waits for them.

        Parameters
        ----------
        checked : int
            How many have reported already that the next job may use them.
        """
        self._checking = len(self.ranks) - checked

    def is_usable(self) -> bool:
        """Return whether the next job may run in these ranks; waits for a check to end."""
        if self._ended or self._process is None or self._process.poll() is not None:
            return False
        deadline = Deadline(_CHECK_TIMEOUT_SECONDS)
        poll = select.poll()
        by_file = {rank.sock.fileno(): rank for rank in self.ranks}
        for file in by_file:
            poll.register(file, select.POLLIN)
        for rank in self.ranks:
            assert rank.supervisor is not None
            by_file[rank.supervisor.sock.fileno()] = rank
            poll.register(rank.supervisor.sock, select.POLLIN)
        while True:
            remaining = deadline.remaining() if self._checking else 0.0
            assert remaining is not None
            ready = poll.poll(remaining * 1000)
            for file, _ in ready:
                rank = by_file[file]
                if rank.supervisor is not None and file == rank.supervisor.sock.fileno():
                    return False  # the rank has ended
                for message in rank.read():
                    if message.kind == MessageKind.CHECKED and message.fields == (True,):
                        self._checking -= 1
                    elif message.kind == MessageKind.CHECKED:
                        return False
                if rank.closed:
                    return False
            if not self._checking:
                return self._drain()
            if deadline.passed:
                return False

    def _drain(self) -> bool:
        """Drop what arrived since the last job; False if a process writes without an end."""
        for stream in (stream for rank in self.ranks for stream in rank.streams):
            try:
                for _ in range(_MAX_DRAIN_READS):
                    if not os.read(stream, _DRAIN_BYTES):
                        return False
            except BlockingIOError:
                continue
            except OSError:
                pass
            return False
        return True

    # -- end ------------------------------------------------------------------------------

    def end_idle(self, farewell: float = _FAREWELL_SECONDS) -> None:
        """End ranks that run no job: they end MPI first.

        Parameters
        ----------
        farewell : float
            How long they may take for that. Seconds.
        """
        with self._lock:
            if self._ended or self._process is None:
                return
        for rank in self.ranks:
            with contextlib.suppress(OSError):
                rank.sock.shutdown(socket.SHUT_RDWR)
        self.launcher_code(farewell)
        self.end()

    def end(self, grace: float = _TERMINATION_GRACE_SECONDS, close: bool = True) -> None:
        """End all processes of the set, and close it.

        Parameters
        ----------
        grace : float
            How long they may take after SIGTERM. Seconds.
        close : bool
            Whether to close the connections, too; else what they hold can still be read, until
            this is called again.
        """
        with self._lock:
            if self._process is not None and not self._ended:
                kill_tree(self._process.pid, self.marker, grace)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_KILL_TIMEOUT_SECONDS)
                sweep_all(MARKER, self.marker)
                # Ranks that were ended while they started MPI.
                remove_unused(self._started)
            self._ended = True
            if close:
                self.closed = True
                for rank in self.ranks:
                    rank.close()
                self.ranks = []
                if self._output >= 0:
                    os.close(self._output)
                    self._output = -1

    def _remove_directory(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _is_complete(rank: Rank) -> bool:
    """Return whether all connections of a rank are there."""
    return rank.supervisor is not None and min(rank.streams) >= 0


def _passed_on(env: dict[str, str], key: SetKey) -> list[str]:
    """Return the variables that the ranks on other hosts must have."""
    names = [LINK_VARIABLE, MARKER, OWNER, *(name for name, _ in key.env)]
    return [name for name in names if name in env]

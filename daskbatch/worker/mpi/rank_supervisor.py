"""Supervises one rank of a job: starts its executable, and reports its output and its end.

The launcher starts this program once for each rank, on any host. The program connects to the
worker that runs the job, receives what to start, and sends what the executable writes. So the
worker knows which rank wrote what, which rank failed first, and how: launchers merge the output
and the exit codes of all ranks, each in another way. When the connection closes because the worker
has died, the program ends the executable.

The program is two processes, since a launcher may end what it has started by SIGKILL, and then the
last output of the rank would be lost::

    launcher -- guard -- supervisor -- executable

The launcher knows the guard alone. If the guard is killed, or the launcher's process that has
started it, the supervisor ends the executable, and reports its output and its end. If the
supervisor is killed, the guard ends the executable.

The program imports this very file, without the package and its imports. So this module uses only
modules in C and those that Python has imported at its start: all others would take longer than the
start of Python itself.

Both sides prove that they know the secret of the job, by keyed BLAKE2 (RFC 7693). The proof of the
supervisor is of the number of its rank and of its nonce; the worker accepts each rank once, so it
is of no use to repeat a proof. The proof of the worker is of that nonce (challenge and response,
ISO/IEC 9798-4). Then both send messages: a head with the kind and the length, and the content.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import os
import sys
import time
from _blake2 import blake2b
from select import POLLIN, poll
from struct import Struct

#: The environment variable that says where the worker is, and the secret of the job.
ADDRESS = "DASKBATCH_JOB"

#: The environment variable that marks the processes of one rank.
RANK_MARKER = "DASKBATCH_RANK_MARK"

#: The variables in which the launchers say the number of a rank.
RANK_VARIABLES = (
    *("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"),
    *("MV2_COMM_WORLD_RANK", "PALS_RANKID", "ALPS_APP_PE", "FLUX_TASK_RANK", "JSM_NAMESPACE_RANK"),
)

#: What the proof of a supervisor is of: what it is, the number of its rank, and a nonce. Together
#: with the proof, this is the first message.
HELLO = Struct(">8sI32s")
GREETING = b"dbrank-1"
NONCE_BYTES = DIGEST_BYTES = 32

#: Python code that runs this program. In this way Python takes the compiled file.
PROGRAM = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
import rank_supervisor
del sys.path[0]
rank_supervisor.main()
"""

#: The head of each later message: its kind, and the length of its content.
HEAD = Struct(">cI")

# To the supervisor:
#: Content for the standard input of the rank.
STDIN = b"i"
#: What to start: see `pack_start`.
START = b"s"
#: End the executable: SIGTERM, and SIGKILL after this time (`GRACE`).
STOP = b"t"
GRACE = Struct(">d")
#: End the supervisor itself.
END = b"e"

# From the supervisor:
STDOUT, STDERR = b"o", b"r"
#: The executable has ended: its exit code, whether a signal to this supervisor came before, the
#: processor time of the executable in seconds, and the peak of its memory in bytes.
EXIT = b"x"
ENDED = Struct(">i?dq")
#: It could not be started: the number of the error, and whether the directory is the reason.
FAILED = b"f"
FAILURE = Struct(">i?")

#: How long to wait for the connection, and for each answer before the start of the executable.
_CONNECT_TIMEOUT_SECONDS = 60.0

#: How long to wait for more output once the executable has ended, as for serial executables.
_FINAL_OUTPUT_SECONDS = 0.2

#: How long an executable may take to end after a signal of the launcher.
_GRACE_SECONDS = 2.0

_READ_BYTES = 1 << 16

#: How many searches in a row must find no process of the rank, and the pause between them.
_REQUIRED_MISSES, _SWEEP_INTERVAL_SECONDS = 3, 0.01

#: A process that hangs in the kernel cannot be ended.
_SWEEP_TIMEOUT_SECONDS = 5.0

#: The directory from which the package is imported.
_ROOT = os.path.abspath(__file__ + "/../../../..")


#: When this process began, in seconds since the epoch.
_began = time.time()


def proof(secret: bytes, side: bytes, content: bytes) -> bytes:
    """Return the proof that one side, named `side`, knows the secret."""
    return blake2b(side + content, digest_size=DIGEST_BYTES, key=secret).digest()


def pack_start(
    argv: list[bytes], cwd: bytes, env: dict[bytes, bytes], size: int, is_remote: bool
) -> bytes:
    """Return the content of a `START` message.

    Parameters
    ----------
    argv : list of bytes
        The executable and its arguments.
    cwd : bytes
        Its working directory.
    env : dict
        The variables that are added to the environment of this process.
    size : int
        The number of ranks.
    is_remote : bool
        Whether this is another host than that of the worker: then the supervisor removes what an
        executable that was killed has left on the host.
    """
    texts = [b"%d" % size, b"%d" % is_remote, cwd, b"%d" % len(argv), *argv]
    texts += [name + b"=" + value for name, value in env.items()]
    return b"\0".join(texts)


# -- processes by their environments ------------------------------------------------------


# The modules below are not imported at the top: few ranks must be killed, and the imports take as
# long as Python's start.


def _kill_carriers(marker: str) -> bool:
    """Send SIGKILL to all processes of a rank; return whether there was any."""
    _find_package()
    from daskbatch.worker.processes.reaper import HAS_PROC, carriers, kill_carriers

    if not HAS_PROC:
        return False  # the process group of the rank is all that can be found
    return bool(kill_carriers(RANK_MARKER, marker, carriers(RANK_MARKER, marker)))


def _sweep(marker: str) -> None:
    """Search until no process of the rank is found; give up on what cannot be ended."""
    misses = 0
    deadline = time.monotonic() + _SWEEP_TIMEOUT_SECONDS
    while misses < _REQUIRED_MISSES and time.monotonic() < deadline:
        misses = 0 if _kill_carriers(marker) else misses + 1
        time.sleep(_SWEEP_INTERVAL_SECONDS)


def _remove_shared_memory() -> None:
    _find_package()
    from daskbatch.worker.mpi.shared_memory import remove_unused

    remove_unused(_began)


def _find_package() -> None:
    if _ROOT not in sys.path:
        sys.path.append(_ROOT)


# -- the supervisor -----------------------------------------------------------------------


class _Closed(Exception):
    """The worker has closed the connection."""


class _Connection:
    """The connection to the worker."""

    def __init__(self, host: str, port: int) -> None:
        family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
        self.socket = _socket.socket(family, _socket.SOCK_STREAM)
        self.socket.settimeout(_CONNECT_TIMEOUT_SECONDS)
        self.socket.connect((host, port))
        # A host that has died does not close its connections: the system finds this out.
        self.socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
        self.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(_socket, name):
                self.socket.setsockopt(_socket.IPPROTO_TCP, getattr(_socket, name), value)

    def authenticate(self, secret: bytes, rank: int) -> None:
        nonce = os.urandom(NONCE_BYTES)
        hello = HELLO.pack(GREETING, rank, nonce)
        self.socket.sendall(hello + proof(secret, b"rank", hello))
        if self.read(DIGEST_BYTES) != proof(secret, b"worker", nonce):
            raise _Closed("the other side does not know the secret of the job")

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise _Closed("the worker has closed the connection")
            data += part
        return data

    def receive(self) -> tuple[bytes, bytes]:
        """Return the kind and the content of the next message."""
        kind, length = HEAD.unpack(self.read(HEAD.size))
        return kind, self.read(length)

    def send(self, kind: bytes, content: bytes = b"") -> None:
        self.socket.sendall(HEAD.pack(kind, len(content)) + content)


def _rank() -> int:
    for name in RANK_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdecimal():
            return int(value)
    raise _Closed(f"the launcher has set none of {', '.join(RANK_VARIABLES)}")


def _receive_start(connection: _Connection) -> tuple[bytes, int] | None:
    """Return what to start, and a file with the standard input; None if nothing is to be started.

    The file is a descriptor.
    """
    source = -1
    while True:
        kind, content = connection.receive()
        if kind == STDIN:
            if source < 0:
                source = _unnamed_file()
            while content:
                content = content[os.write(source, content) :]
        elif kind == START:
            if source < 0:
                source = os.open(os.devnull, os.O_RDONLY)
            else:
                os.lseek(source, 0, os.SEEK_SET)
            return content, source
        elif kind == END:
            return None


def _unnamed_file() -> int:
    # Not at the top: few jobs have an input, and the import takes as long as Python's start.
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Rank:
    """The executable of the rank."""

    def __init__(self, rank: int, marker: str, start: bytes, source: int) -> None:
        size, is_remote, self._cwd, count, *texts = start.split(b"\0")
        self.is_remote = is_remote == b"1"
        self._argv, added = texts[: int(count)], texts[int(count) :]
        self._env = {**os.environb, **dict(text.split(b"=", 1) for text in added)}
        self._env[b"DASKBATCH_RANK"] = b"%d" % rank
        self._env[b"DASKBATCH_SIZE"] = size
        self._env[RANK_MARKER.encode()] = marker.encode()
        self._source = source
        self._marker = marker
        self._group = 0
        #: Its process; 0 before the start and after the end.
        self.pid = 0
        #: The read ends of the pipes, each with the kind of its messages.
        self.pipes: dict[int, bytes] = {}

    def start(self) -> tuple[int, bool] | None:
        """Start it; if this fails, return the error, and whether its directory is the reason."""
        (out_read, out_write), (err_read, err_write) = os.pipe(), os.pipe()
        error_read, error_write = os.pipe()
        self.pid = self._group = os.fork()
        if not self.pid:
            self._execute(out_write, err_write, error_write)
        for fd in (out_write, err_write, error_write, self._source):
            os.close(fd)
        failure = os.read(error_read, FAILURE.size)
        os.close(error_read)
        self.pipes = {out_read: STDOUT, err_read: STDERR}
        if not failure:
            return None
        os.waitpid(self.pid, 0)
        self.pid = 0
        number, is_directory = FAILURE.unpack(failure)
        return number, is_directory

    def _execute(self, out: int, err: int, failure: int) -> None:
        """Become the executable."""
        is_directory = True
        try:
            os.setsid()
            for number in (_signal.SIGCHLD, _signal.SIGPIPE):
                _signal.signal(number, _signal.SIG_DFL)
            for fd, target in ((self._source, 0), (out, 1), (err, 2)):
                os.dup2(fd, target)
            os.chdir(self._cwd)
            is_directory = False
            os.execvpe(self._argv[0], self._argv, self._env)
        except OSError as error:
            os.write(failure, FAILURE.pack(error.errno or 0, is_directory))
        finally:
            os._exit(127)

    def terminate(self) -> None:
        """Send SIGTERM to the executable and to what it has started."""
        self._signal(_signal.SIGTERM)

    def kill(self) -> None:
        """End the executable and all that it has started."""
        self._signal(_signal.SIGKILL)
        _sweep(self._marker)
        if self.is_remote:
            _remove_shared_memory()

    def has_left_behind(self) -> bool:
        """Return whether processes of its group still run."""
        try:
            os.killpg(self._group, 0)
        except OSError:
            return False
        return True

    def _signal(self, number: int) -> None:
        # The number of a group stays taken while a process of the group runs, or while the
        # executable has not been waited for.
        if self.pid or self.has_left_behind():
            try:  # noqa: SIM105 - contextlib takes longer to import than all else here
                os.killpg(self._group, number)
            except OSError:
                pass  # they have ended


class _Supervisor:
    """Passes output on, and waits for the end of the executable and for the worker's orders."""

    def __init__(self, connection: _Connection, rank: _Rank, guards: list[int]) -> None:
        self._connection = connection
        self._rank = rank
        #: Descriptors that are readable once the guard, or the launcher's process that has started
        #: it, has ended.
        self._guards = guards
        self._code: int | None = None
        #: The processor time and the peak of the memory, once it has ended.
        self._usage = -1.0, 0
        #: When the executable is sent SIGKILL.
        self._kill_at: float | None = None
        #: Whether the worker has requested to stop; or the launcher has, before the end.
        self._stopping = self._signalled = False
        # A byte arrives in this pipe when the executable has ended.
        self._signals, write = os.pipe()
        for fd in (self._signals, write):
            os.set_blocking(fd, False)
        _signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Start the executable, and return when the worker needs this process no longer."""
        # From here on this process reads only what is there; to send may take as long as the
        # worker needs.
        self._connection.socket.settimeout(None)
        failure = self._rank.start()
        if failure is not None:
            self._connection.send(FAILED, FAILURE.pack(*failure))
        else:
            self._supervise()
            assert self._code is not None
            was_signalled = self._signalled and not self._stopping
            self._connection.send(EXIT, ENDED.pack(self._code, was_signalled, *self._usage))
        while self._connection.receive()[0] != END:
            pass

    def _supervise(self) -> None:
        poller = poll()
        pipes = self._rank.pipes
        for fd in (self._connection.socket.fileno(), *self._guards, self._signals, *pipes):
            poller.register(fd, POLLIN)
        until: float | None = None
        while pipes or self._code is None:
            now = time.monotonic()
            if self._kill_at is not None and now >= self._kill_at:
                self._kill_at = None
                self._rank.kill()
            if until is not None and now >= until:
                break
            ends = [each for each in (self._kill_at, until) if each is not None]
            wait = None if not ends else max(0.0, min(ends) - now) * 1000 + 1
            for fd, _ in poller.poll(wait):
                if fd in pipes:
                    data = os.read(fd, _READ_BYTES)
                    if data:
                        self._connection.send(pipes[fd], data)
                    else:
                        poller.unregister(fd)
                        del pipes[fd]
                elif fd == self._signals:
                    os.read(fd, _READ_BYTES)
                elif fd in self._guards:
                    poller.unregister(fd)
                    self._on_guard_end()
                else:
                    self._obey()
            if self._code is None:
                pid, status, used = os.wait4(self._rank.pid, os.WNOHANG)
                if pid:
                    unit = 1 if sys.platform == "darwin" else 1024
                    self._usage = used.ru_utime + used.ru_stime, used.ru_maxrss * unit
                    self._code = os.waitstatus_to_exitcode(status)
                    self._rank.pid = 0
                    until = time.monotonic() + _FINAL_OUTPUT_SECONDS
        if self._stopping or self._signalled or self._rank.has_left_behind():
            # What the executable has started, and what has not ended after SIGTERM.
            self._rank.kill()

    def _on_guard_end(self) -> None:
        """End the executable: the launcher has killed the guard, or has ended without it."""
        if self._code is None and not self._stopping and not self._signalled:
            self._signalled = True
            self._kill_at = time.monotonic() + _GRACE_SECONDS
            self._rank.terminate()

    def _obey(self) -> None:
        kind, content = self._connection.receive()
        if kind == STOP and self._code is None:
            (grace,) = GRACE.unpack(content)
            if not self._stopping and not self._signalled and grace > 0:
                self._rank.terminate()
            self._stopping = True
            self._kill_at = time.monotonic() + grace


def _supervise(rank: int, marker: str, connection: _Connection, guards: list[int]) -> None:
    """Do all that the supervisor does, after its connection was made."""
    start = _receive_start(connection)
    if start is None:
        return
    # The launcher waits until its pipes are closed.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    executable = _Rank(rank, marker, *start)
    try:
        _Supervisor(connection, executable, guards).run()
    except BaseException:
        # The worker has died.
        executable.kill()
        raise


def _open_process(pid: int) -> list[int]:
    """Return a descriptor that is readable once a process has ended; none where that is unknown."""
    if not hasattr(os, "pidfd_open"):
        return []
    try:
        return [os.pidfd_open(pid)]
    except OSError:
        return []


def _run() -> int:
    """Do all that this program does; return its exit code."""
    address = os.environ.pop(ADDRESS, "")
    if not address:
        sys.stderr.write(f"daskbatch: the launcher has not passed on the variable {ADDRESS}\n")
        return 1
    host, port, secret, job = address.split(" ")
    read, write = os.pipe()
    try:
        rank = _rank()
        marker = f"{job}-{rank}"
        guards = [read, *_open_process(os.getppid())]
        supervisor = os.fork()
        if supervisor:
            os.close(read)
            _, status = os.waitpid(supervisor, 0)
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                _sweep(marker)
            return abs(code)
        os.close(write)
        os.setsid()
        connection = _Connection(host, int(port))
        connection.authenticate(bytes.fromhex(secret), rank)
        _supervise(rank, marker, connection, guards)
        return 0
    except (_Closed, OSError) as error:
        sys.stderr.write(f"daskbatch: a rank cannot report to its worker: {error}\n")
        return 1


def main() -> None:
    """Run the program; does not return."""
    code = 1
    try:
        code = _run()
    finally:
        sys.stderr.flush()
        # Python's own end would take longer, and there is nothing left to do.
        os._exit(code)

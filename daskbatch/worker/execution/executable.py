"""Runs an executable to its end: its output, its exit code, its time limit, its being stopped.

Does not know tasks; what the executable writes goes to the capture of the context. What
comes of it when this process dies is the warden's matter.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from daskbatch.errors import ProcessFailed, TaskTimeout
from daskbatch.serialization.exceptions import unusable_path_error
from daskbatch.worker.execution import capture
from daskbatch.worker.processes.process_tree import MARKER, OWNER, end_of, kill_tree, sweep_all
from daskbatch.worker.processes.reaper import warden

#: How much of its output is read at a time; and how often again once it was ended.
_CHUNK, _DRAINED = 1 << 16, 16

#: How long a process and its children may take to end after SIGTERM. Seconds.
_GRACE = 2.0

#: How long its output is waited for once a process has ended: a child that it left behind
#: may hold the pipes open for ever. Seconds.
_LINGER = 0.2

#: How often is looked whether a process has ended, on systems that do not tell. Seconds.
_POLL = 0.05

#: Names the environment variables that whoever started the worker has set for it alone.
ADDED_VARIABLE = "DASKBATCH_ADDED_ENVIRONMENT"

#: What an MPI launcher sets for the ranks that it starts. If this worker is one, an MPI
#: program that inherits them takes itself for that rank, and ends at once.
_MPI_PREFIXES = (b"PMI", b"HYD", b"OMPI_", b"MPI_LOCAL", b"MPIR_", b"I_MPI_")
#: By one of these a process knows that it is a rank. Else the others are the user's settings.
_MPI_RANKS = (b"PMI_RANK", b"PMI_FD", b"PMIX_RANK", b"OMPI_COMM_WORLD_RANK")

#: The system cannot be told to wait for a month. Seconds.
_LONGEST = 86400.0

#: How much of its output the message about a process says at most: lines, characters.
_TOLD_LINES, _TOLD_CHARACTERS = 10, 2000

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126

#: What means something to a shell alone.
_SHELLS = frozenset("|&;<>()$`*?~'\"\\")

_launches = itertools.count()


class ProcessStopped(BaseException):
    """The executable was stopped, by `Running.stop`."""


class Running:
    """An executable while it runs, for threads other than that which waits for it.

    Parameters
    ----------
    marker : str
        What `MARKER` says in its environment.
    """

    def __init__(self, marker: str) -> None:
        self.marker = marker
        self._lock = threading.Lock()
        self._over = self._stopped = False
        self._read, self._write = os.pipe()

    def stop(self) -> bool:
        """Have it ended, with all that it has started; does not wait for that.

        Returns
        -------
        bool
            Whether it had not ended by itself. If so, `execute` raises `ProcessStopped`.
        """
        with self._lock:
            if not self._over and not self._stopped:
                self._stopped = True
                os.write(self._write, b".")
            return self._stopped

    def fileno(self) -> int:
        """Give a file descriptor that is readable once it is to be stopped."""
        return self._read

    def __enter__(self) -> Running:
        running[threading.get_ident()] = self
        return self

    def __exit__(self, *_: object) -> None:
        del running[threading.get_ident()]
        with self._lock:
            self._over = True  # from here on it cannot be stopped any more
            os.close(self._read)
            os.close(self._write)
        if self._stopped:
            # It may have ended by itself meanwhile, and left something behind.
            sweep_all(MARKER, self.marker)
            raise ProcessStopped from None


#: By thread, what each is waiting for in `execute`.
running: dict[int, Running] = {}


def execute(
    command: Sequence[Any],
    cwd: str,
    env: Mapping[str, str],
    stdin: Any,
    check: bool,
    timeout: float | None,
) -> int:
    """Run an executable and wait for it.

    Parameters
    ----------
    command : sequence
        The executable and its arguments; what is not text is turned into it.
    cwd : str
        Its working directory.
    env : mapping
        Added to this process's environment.
    stdin : str, bytes, Path or None
        What it reads; None is nothing.
    check : bool
        Whether an exit code other than 0 is an error.
    timeout : float, optional
        Seconds after which it is killed, with all its children.

    Returns
    -------
    int
        The exit code; negative for a signal, 127 when the executable was not found.

    Raises
    ------
    ProcessFailed
        The exit code is not 0, and `check` is set.
    TaskTimeout
        It ran for longer than `timeout`.
    OSError
        `cwd` is no directory, or what `stdin` names cannot be read.
    ProcessStopped
        It was stopped by another thread.
    """
    argv = [_text(each) for each in command]
    sink = capture.current.get()
    if sink is None:
        sink = capture.Capture(1 << 20)
    with _source(stdin, cwd) as source:
        code = _run(argv, cwd, env, source, timeout, sink)
    if code and check:
        stderr = sink.stderr.text()
        raise ProcessFailed(
            _describe(argv, code, stderr), returncode=code, command=argv, stderr=stderr
        )
    return code


def _text(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else str(value)


def _describe(argv: Sequence[str], code: int, stderr: str) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"{argv[0]} was ended by {signal.Signals(-code).name}"
    last = stderr.strip().splitlines()[-1:]
    return f"{argv[0]} ended with exit code {code}" + "".join(f": {line}" for line in last)


@contextlib.contextmanager
def _source(stdin: Any, cwd: str) -> Iterator[IO[bytes] | int]:
    """Make a file of what the process reads; a pipe would have to be fed while it runs."""
    if stdin is None:
        yield subprocess.DEVNULL
    elif isinstance(stdin, Path):
        try:
            given = Path(cwd, stdin).open("rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise unusable_path_error("its stdin", error) from None
        with given:
            yield given
    else:
        with tempfile.TemporaryFile() as file:
            # Another task's result may be anything; as text, as among the arguments.
            file.write(stdin if isinstance(stdin, bytes) else str(stdin).encode())
            file.seek(0)
            yield file


def _run(
    argv: list[str],
    cwd: str,
    env: Mapping[str, str],
    source: IO[bytes] | int,
    timeout: float | None,
    sink: capture.Capture,
) -> int:
    guard = warden()
    guard.ensure()
    marker = f"{guard.owner}-{next(_launches)}"
    environment = clean_environment({**env, OWNER: guard.owner, MARKER: marker})
    with Running(marker) as stop:
        began = time.monotonic()
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=environment,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            if not os.path.isdir(cwd):  # it is not the executable that is missing
                raise unusable_path_error("its cwd", error) from None
            is_missing = isinstance(error, FileNotFoundError)
            hint = _no_shell(argv) if is_missing else ""
            sink.stderr.add(f"{argv[0]}: {error.strerror}{hint}\n".encode())
            return _NOT_FOUND if is_missing else _NOT_EXECUTABLE
        assert process.stdout is not None
        assert process.stderr is not None
        streams = {process.stdout: sink.stdout, process.stderr: sink.stderr}
        ended = False
        try:
            deadline = None if timeout is None else began + timeout
            ended = _collect(process, deadline, streams, stop)
            if ended:
                return process.wait()
        finally:
            if not ended:
                kill_tree(process.pid, marker, _GRACE)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)  # not for ever: it may hang in the kernel
                _drain(streams)
            for pipe in streams:
                pipe.close()
        raise TaskTimeout(
            f"{argv[0]} ran for longer than its timeout of {timeout:g} s: it was ended after "
            f"{time.monotonic() - began:.1f} s{_last_output(sink)}"
        )


def _no_shell(argv: Sequence[str]) -> str:
    """Say what to write in place of a line that is meant for a shell."""
    target = argv[0]
    if not any(map(str.isspace, target)):
        return ""
    what, command = "give arguments apart", [*target.split(), *argv[1:]]
    if not _SHELLS.isdisjoint(target):
        what, command = "call one", ["sh", "-c", " ".join(argv)]
    return f"; there is no shell: {what}: process({', '.join(map(repr, command))})"


def clean_environment(more: Mapping[str, str]) -> dict[bytes, bytes]:
    """Give the worker's environment without what only its worker should have."""
    # As bytes, since each of many short processes would have all of it decoded and encoded.
    added = os.environb.get(os.fsencode(ADDED_VARIABLE), b"").split(b",")
    found = {name: value for name, value in os.environb.items() if name not in added}
    if any(name in found for name in _MPI_RANKS):
        found = {n: value for n, value in found.items() if not n.startswith(_MPI_PREFIXES)}
    found.pop(os.fsencode(ADDED_VARIABLE), None)
    found.update((os.fsencode(name), os.fsencode(value)) for name, value in more.items())
    return found


def _last_output(sink: capture.Capture) -> str:
    said = ""
    for what, text in zip(("output", "errors"), sink.texts(), strict=True):
        told = "\n".join(text.splitlines()[-_TOLD_LINES:])[-_TOLD_CHARACTERS:]
        if told.strip():
            said += f"; its last {what}: {told}"
    return said


def _collect(
    process: subprocess.Popen[bytes],
    deadline: float | None,
    streams: Mapping[IO[bytes], capture.BoundedText],
    stop: Running,
) -> bool:
    """Read what a process writes until it has ended; False if that is to be brought about."""
    ended = False
    with end_of(process.pid) as end, selectors.PollSelector() as selector:
        selector.register(stop, selectors.EVENT_READ, stop)
        for pipe, text in streams.items():
            selector.register(pipe, selectors.EVENT_READ, text)
        open_pipes = len(streams)
        if end is not None:
            selector.register(end, selectors.EVENT_READ)
        while open_pipes or not ended:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return ended
            if end is None and not ended:
                left = _POLL if left is None else min(left, _POLL)
            if left is not None:
                left = min(left, _LONGEST)
            for key, _ in selector.select(left):
                if key.data is stop:
                    return False
                if key.data is None:
                    selector.unregister(key.fileobj)
                    ended = True
                elif data := os.read(key.fd, _CHUNK):
                    key.data.add(data)
                else:
                    selector.unregister(key.fileobj)
                    open_pipes -= 1
            if not ended and end is None and process.poll() is not None:
                ended = True
            if ended:
                linger = time.monotonic() + _LINGER
                deadline = linger if deadline is None else min(deadline, linger)
    return True


def _drain(streams: Mapping[IO[bytes], capture.BoundedText]) -> None:
    """Read what is left in the pipes of a process that was ended."""
    for pipe, text in streams.items():
        os.set_blocking(pipe.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            # Whatever may still hold them open and write must not keep us.
            for _ in range(_DRAINED):
                text.add(os.read(pipe.fileno(), _CHUNK))

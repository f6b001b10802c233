"""Runs an executable to its end: its output, its exit code, its time limit, and stopping it.

What the executable writes goes to the capture of the current context. If this process dies,
its reaper ends the executable. Any number of threads may run executables.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from daskbatch.errors import ProcessFailed, TaskTimeout
from daskbatch.serialization.exceptions import unusable_directory_error, unusable_path_error
from daskbatch.worker.execution import capture
from daskbatch.worker.execution.measures import Usage
from daskbatch.worker.mpi.rank_variables import without_rank_variables
from daskbatch.worker.processes.captured_process import start_captured
from daskbatch.worker.processes.process_tree import MARKER, OWNER, end_of, kill_tree, sweep_all
from daskbatch.worker.processes.reaper import get_reaper
from daskbatch.worker.processes.reaping import ProcessMeter

#: How much of the output is read with one system call; and how many reads are made at most
#: once the process was ended.
_READ_BYTES, _MAX_FINAL_READS = 1 << 16, 16

#: How long a process and its children may take to end after SIGTERM.
_TERMINATION_GRACE_SECONDS = 2.0

#: How long to wait for more output once a process has ended: a child that it left behind
#: may hold the pipes open for ever.
_FINAL_OUTPUT_SECONDS = 0.2

#: How often to look whether a process has ended, on systems that offer no way to wait for it.
_POLL_INTERVAL_SECONDS = 0.05

#: Names the environment variables that were set for the worker alone, when it was started.
ADDED_VARIABLE = "DASKBATCH_ADDED_ENVIRONMENT"

#: `poll` does not accept much longer times.
MAX_POLL_SECONDS = 86400.0

#: How much of the output a message contains at most.
_MAX_MESSAGE_LINES, _MAX_MESSAGE_CHARACTERS = 10, 2000

#: The exit codes that a shell returns.
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126

#: How much of each stream is kept where no capture is active.
_DEFAULT_OUTPUT_BYTES = 1 << 20

#: Characters that have a meaning only to a shell.
_SHELL_CHARACTERS = frozenset("|&;<>()$`*?~'\"\\")

#: Makes the markers of this process's executables different.
_launches = itertools.count()


class ProcessStopped(BaseException):
    """The executable was stopped by `RunningExecutable.stop`."""


class RunningExecutable:
    """An executable while it runs. Other threads may call `stop`.

    Parameters
    ----------
    marker : str
        The value of `MARKER` in its environment.
    """

    def __init__(self, marker: str) -> None:
        self.marker = marker
        #: The process; 0 before the start.
        self.pid = 0
        self._lock = threading.Lock()
        self._ended = self._stopped = False
        self._read, self._write = os.pipe()

    def stop(self) -> bool:
        """Request that it is ended, with all that it has started; does not wait for that.

        Returns
        -------
        bool
            True if it had not ended by itself: then `execute` raises `ProcessStopped`.
        """
        with self._lock:
            if not self._ended and not self._stopped:
                self._stopped = True
                os.write(self._write, b".")
            return self._stopped

    def fileno(self) -> int:
        """Return a file descriptor that is readable once `stop` was called."""
        return self._read

    def __enter__(self) -> RunningExecutable:
        running_by_thread[threading.get_ident()] = self
        return self

    def __exit__(self, *_: object) -> None:
        del running_by_thread[threading.get_ident()]
        with self._lock:
            self._ended = True  # from here on it cannot be stopped
            os.close(self._read)
            os.close(self._write)
        if self._stopped:
            # It may have ended by itself meanwhile, and left processes behind.
            sweep_all(MARKER, self.marker)
            raise ProcessStopped from None


#: The executable that each thread waits for in `execute`.
running_by_thread: dict[int, RunningExecutable] = {}


def execute(
    command: Sequence[Any],
    cwd: str,
    env: Mapping[str, str],
    stdin: Any,
    check: bool,
    timeout: float | None,
    measured: Callable[[Usage], None] | None = None,
) -> int:
    """Run an executable and wait for its end.

    Any number of threads may call this at the same time.

    Parameters
    ----------
    command : sequence
        The executable and its arguments; those that are not text are converted to it.
    cwd : str
        Its working directory.
    env : mapping
        Added to this process's environment.
    stdin : str, bytes, Path or None
        Its input; None for no input. A Path names a file.
    check : bool
        Whether an exit code other than 0 is an error.
    timeout : float, optional
        After this time it is ended, with all its children. Seconds.
    measured : callable, optional
        Called with what it has used, when it has ended.

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
        `cwd` is not a directory, or the file that `stdin` names cannot be read.
    ProcessStopped
        It was stopped by another thread.
    """
    argv = [as_text(each) for each in command]
    sink = capture.current_capture.get()
    if sink is None:
        sink = capture.Capture(_DEFAULT_OUTPUT_BYTES)
    with open_stdin(stdin, cwd) as source:
        code = _run(argv, cwd, env, source, timeout, sink, measured)
    if code and check:
        stderr = sink.stderr.text()
        raise ProcessFailed(
            _describe_end(argv, code, stderr), returncode=code, command=argv, stderr=stderr
        )
    return code


def as_text(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else str(value)


def _describe_end(argv: Sequence[str], code: int, stderr: str) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"{argv[0]} was ended by {signal.Signals(-code).name}"
    last = stderr.strip().splitlines()[-1:]
    return f"{argv[0]} ended with exit code {code}" + "".join(f": {line}" for line in last)


@contextlib.contextmanager
def open_stdin(stdin: Any, cwd: str) -> Iterator[IO[bytes] | int]:
    """Yield a file with the process's input: a pipe would have to be fed while it runs."""
    if stdin is None:
        yield subprocess.DEVNULL
    elif isinstance(stdin, Path):
        try:
            opened = Path(cwd, stdin).open("rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise unusable_path_error("its stdin", error) from None
        with opened:
            yield opened
    else:
        with tempfile.TemporaryFile() as file:
            try:
                # Another task's result may be of any type; it is converted as an argument is.
                file.write(stdin if isinstance(stdin, bytes) else str(stdin).encode())
                file.seek(0)
            except OSError as error:
                place = f"its stdin cannot be stored in {tempfile.gettempdir()}"
                raise OSError(error.errno, f"{place}: {error.strerror}") from None
            yield file


def _run(
    argv: list[str],
    cwd: str,
    env: Mapping[str, str],
    source: IO[bytes] | int,
    timeout: float | None,
    sink: capture.Capture,
    measured: Callable[[Usage], None] | None,
) -> int:
    """Start the process, wait for its end, and return its exit code."""
    reaper = get_reaper()
    reaper.ensure()
    marker = f"{reaper.owner}-{next(_launches)}"
    environment = clean_environment({**env, OWNER: reaper.owner, MARKER: marker})
    with RunningExecutable(marker) as running:
        began = time.monotonic()
        try:
            process = start_captured(argv, cwd, environment, source)
        except OSError as error:
            if not os.path.isdir(cwd):  # then the directory is missing
                raise unusable_directory_error("its cwd", error) from None
            is_missing = isinstance(error, FileNotFoundError)
            hint = shell_hint(argv) if is_missing else ""
            hint = hint or _path_hint(argv[0], cwd, is_missing)
            sink.stderr.add(f"{argv[0]}: {error.strerror}{hint}\n".encode())
            return _NOT_FOUND if is_missing else _NOT_EXECUTABLE
        running.pid = process.pid
        meter = ProcessMeter(process)
        assert process.stdout is not None
        assert process.stderr is not None
        streams = {process.stdout: sink.stdout, process.stderr: sink.stderr}
        ended = False
        try:
            deadline = None if timeout is None else began + timeout
            ended = _read_until_end(process, deadline, streams, running, meter)
            if ended:
                return meter.wait()
        finally:
            if not ended:
                meter.look_now()
                kill_tree(process.pid, marker, _TERMINATION_GRACE_SECONDS)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    # Not for ever: it may hang in the kernel.
                    meter.wait(_TERMINATION_GRACE_SECONDS)
                _drain(streams)
            for pipe in streams:
                pipe.close()
            if measured is not None:
                measured(meter.usage())
        raise TaskTimeout(
            f"{argv[0]} ran for longer than its timeout of {timeout:g} s: it was ended after "
            f"{time.monotonic() - began:.1f} s{_last_output(sink)}"
        )


def _path_hint(target: str, cwd: str, is_missing: bool) -> str:
    """Return where an executable that cannot be run was looked for, and what is wrong there."""
    path = os.path.normpath(os.path.join(cwd, target))
    if os.sep not in target:
        if not is_missing:
            return ""
        here = f"; {path} is there: write ./{target}" if os.path.exists(path) else ""
        return f"; it is in no directory of the worker's PATH{here}"
    if os.path.isdir(path):
        return f"; {path} is a directory"
    if not os.path.exists(path):
        return f"; there is no {path}"
    if is_missing:
        return f"; {path} is there, but not the interpreter that its first line names"
    if os.access(path, os.X_OK):
        return ""
    return f"; {path} has no permission to be executed (chmod +x)"


def shell_hint(argv: Sequence[str]) -> str:
    """Return what to write instead, if the executable is a line for a shell."""
    target = argv[0]
    if not any(map(str.isspace, target)):
        return ""
    advice, command = "pass the arguments separately", [*target.split(), *argv[1:]]
    if not _SHELL_CHARACTERS.isdisjoint(target):
        advice, command = "call one", ["sh", "-c", " ".join(argv)]
    return f"; there is no shell: {advice}: process({', '.join(map(repr, command))})"


def clean_environment(more: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return the worker's environment without what only the worker should have.

    Parameters
    ----------
    more : mapping
        What to add.
    """
    # As bytes: to decode and encode all of it would be costly for many short processes.
    added = os.environb.get(os.fsencode(ADDED_VARIABLE), b"").split(b",")
    clean = {name: value for name, value in os.environb.items() if name not in added}
    # If this worker is a rank, an MPI program that inherits its variables takes itself for that
    # rank, and ends at once.
    clean = without_rank_variables(clean)
    clean.pop(os.fsencode(ADDED_VARIABLE), None)
    clean.update((os.fsencode(name), os.fsencode(value)) for name, value in more.items())
    return clean


def _last_output(sink: capture.Capture) -> str:
    """Return the end of the output, for a message."""
    message = ""
    for stream, text in zip(("output", "errors"), sink.texts(), strict=True):
        last = "\n".join(text.splitlines()[-_MAX_MESSAGE_LINES:])[-_MAX_MESSAGE_CHARACTERS:]
        if last.strip():
            message += f"; its last {stream}: {last}"
    return message


def _read_until_end(
    process: subprocess.Popen[bytes],
    deadline: float | None,
    streams: Mapping[IO[bytes], capture.BoundedText],
    running: RunningExecutable,
    meter: ProcessMeter,
) -> bool:
    """Read what a process writes until it has ended; False if it must be ended now."""
    ended = False
    with end_of(process.pid) as end, selectors.PollSelector() as selector:
        selector.register(running, selectors.EVENT_READ, running)
        for pipe, text in streams.items():
            selector.register(pipe, selectors.EVENT_READ, text)
        open_pipes = len(streams)
        if end is not None:
            selector.register(end, selectors.EVENT_READ)
        while open_pipes or not ended:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return ended
            if end is None and not ended:
                remaining = (
                    _POLL_INTERVAL_SECONDS
                    if remaining is None
                    else min(remaining, _POLL_INTERVAL_SECONDS)
                )
            if not ended:
                meter.look()
                look = meter.seconds_until_look()
                remaining = look if remaining is None else min(remaining, look)
            for key, _ in selector.select(remaining):
                if key.data is running:
                    return False
                if key.data is None:
                    selector.unregister(key.fileobj)
                    ended = True
                elif data := os.read(key.fd, _READ_BYTES):
                    key.data.add(data)
                else:
                    selector.unregister(key.fileobj)
                    open_pipes -= 1
            if not ended and end is None and process.poll() is not None:
                ended = True
            if ended:
                last = time.monotonic() + _FINAL_OUTPUT_SECONDS
                deadline = last if deadline is None else min(deadline, last)
    return True


def _drain(streams: Mapping[IO[bytes], capture.BoundedText]) -> None:
    """Read what remains in the pipes of a process that was ended."""
    for pipe, text in streams.items():
        os.set_blocking(pipe.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            # Not for ever: another process may still hold the pipes open and write.
            for _ in range(_MAX_FINAL_READS):
                text.add(os.read(pipe.fileno(), _READ_BYTES))

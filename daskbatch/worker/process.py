"""Runs an executable to its end: its output, its exit code, its time limit.

Does not know tasks; what the executable writes goes to the capture of the context.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from daskbatch.errors import ProcessFailed, TaskTimeout
from daskbatch.worker import capture

_CHUNK = 1 << 16

#: How long a process and its children may take to end after SIGTERM. Seconds.
_GRACE = 2.0

#: How long its output is waited for once a process has ended: a child that it left behind
#: may hold the pipes open for ever. Seconds.
_LINGER = 0.2

#: How often is looked whether a process has ended, on systems that do not tell. Seconds.
_POLL = 0.05

#: Names the environment variables that whoever started the worker has set for it alone.
ADDED_VARIABLE = "DASKBATCH_ADDED_ENVIRONMENT"

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


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
def _source(stdin: str | bytes | Path | None, cwd: str) -> Iterator[IO[bytes] | int]:
    """Make a file of what the process reads; a pipe would have to be fed while it runs."""
    if stdin is None:
        yield subprocess.DEVNULL
    elif isinstance(stdin, Path):
        with Path(cwd, stdin).open("rb") as file:
            yield file
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
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=_environment(env),
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        if not os.path.isdir(cwd):
            raise  # it is not the executable that is missing
        sink.stderr.add(f"{argv[0]}: {error.strerror}\n".encode())
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    try:
        if not _collect(process, None if timeout is None else began + timeout, sink):
            raise TaskTimeout(f"{argv[0]} ran for longer than its timeout of {timeout:g} s")
        return process.wait()
    finally:
        if process.poll() is None:
            end_tree(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Give the worker's environment without what only its worker should have."""
    added = os.environ.get(ADDED_VARIABLE, "").split(",")
    found = {name: value for name, value in os.environ.items() if name not in added}
    found.pop(ADDED_VARIABLE, None)
    found.update(more)
    return found


def _collect(
    process: subprocess.Popen[bytes], deadline: float | None, sink: capture.Capture
) -> bool:
    """Read what a process writes until it has ended; False if the deadline came first."""
    ended = False
    with _end_of(process) as end, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, sink.stdout)  # type: ignore[arg-type]
        selector.register(process.stderr, selectors.EVENT_READ, sink.stderr)  # type: ignore[arg-type]
        open_pipes = 2
        if end is not None:
            selector.register(end, selectors.EVENT_READ)
        while open_pipes or not ended:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return ended
            if end is None and not ended:
                left = _POLL if left is None else min(left, _POLL)
            for key, _ in selector.select(left):
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


@contextlib.contextmanager
def _end_of(process: subprocess.Popen[bytes]) -> Iterator[int | None]:
    """Give a file descriptor that is readable once a process has ended, where there are such."""
    if not hasattr(os, "pidfd_open"):
        yield None
        return
    try:
        end = os.pidfd_open(process.pid)
    except OSError:
        yield None
        return
    try:
        yield end
    finally:
        os.close(end)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process with its children: SIGTERM, a grace, SIGKILL."""
    try:
        parent = psutil.Process(process.pid)
        tree = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    for each in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.terminate()
    _, alive = psutil.wait_procs(tree, timeout=_GRACE)
    for each in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(alive, timeout=_GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""Profiles the children of a worker: they run the worker's profilers, and report by a socket.

With each block, the worker sends a child the list of the profilers that run. From then on a
thread of the child answers the worker's requests. So a child reports while it runs a task, and
also afterwards. Any thread may call these functions.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from daskbatch.forking import after_fork, make_lock
from daskbatch.worker.profiling import profilers

#: How long a child may take to report: it may be in a long call of C code.
_REPORT_TIMEOUT_SECONDS = 10.0

_SIZE = struct.Struct("!q")


class ChildOrder(NamedTuple):
    """What a worker sends to its children: the profilers to run.

    Parameters
    ----------
    directory : str
        The directory in which each child makes its socket.
    wanted : tuple of (str, str)
        The kinds of the profilers to run, with their owners.
    """

    directory: str
    wanted: tuple[tuple[str, str], ...]


_lock = make_lock()
_directory: str | None = None


@after_fork
def _forget_directory() -> None:
    global _directory
    _directory = None


# -- the worker ---------------------------------------------------------------------------


def order() -> ChildOrder | None:
    """Return what to send to a child; None if no profiler runs, and no child has to stop one."""
    global _directory
    if not profilers.active() and _directory is None:
        return None
    with _lock:
        # `forget` removes the directory under this lock, once no profiler is active.
        wanted = profilers.active()
        if _directory is None:
            if not wanted:
                return None
            import tempfile  # not at the top: a child starts faster without it

            _directory = tempfile.mkdtemp(prefix="daskbatch-profile-")
    return ChildOrder(_directory, wanted)


def reports(kind: str) -> Iterator[tuple[int, bytes]]:
    """Yield the process id and the report of each child that profiles."""
    for path, data in _ask(kind.encode()):
        if data:
            yield int(path.name), data


def forget(owners: str) -> None:
    """Stop the profilers of some owners in the children; see `profilers.forget`."""
    global _directory
    for _ in _ask(b"-" + owners.encode()):
        pass
    with _lock:
        if _directory is not None and not profilers.active():
            import shutil  # not at the top, as above

            shutil.rmtree(_directory, ignore_errors=True)
            _directory = None


def _ask(question: bytes) -> Iterator[tuple[Path, bytes]]:
    directory = _directory
    if directory is None:
        return
    with contextlib.suppress(OSError):
        for path in sorted(Path(directory).iterdir()):
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(_REPORT_TIMEOUT_SECONDS)
                    connection.connect(str(path))
                    connection.sendall(_SIZE.pack(len(question)) + question)
                    yield path, _receive(connection)
            except (ConnectionError, FileNotFoundError):
                path.unlink(missing_ok=True)  # the child has ended
            except OSError:
                continue  # the child does not answer in time


def _receive(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        head = file.read(_SIZE.size)
        if len(head) < _SIZE.size:
            raise ConnectionError("the other process has closed the connection")
        return file.read(_SIZE.unpack(head)[0])


# -- a child ------------------------------------------------------------------------------

_listener: socket.socket | None = None


def obey(told: ChildOrder | None) -> None:
    """Run exactly the profilers that the worker has sent to this child.

    The first call with profilers also starts the thread that answers the worker.
    """
    if told is None:
        # An order can arrive after the worker has stopped the profilers that it names.
        if profilers.active():
            profilers.follow(())
        return
    try:
        _listen(told)
    except FileNotFoundError:
        # The worker has stopped its profilers, and removed the directory, in the meantime.
        profilers.follow(())
    else:
        profilers.follow(told.wanted)


def _listen(told: ChildOrder) -> None:
    """Start to answer the worker in the directory of an order, unless this child does so."""
    global _listener
    if _listener is not None and not os.path.exists(_listener.getsockname()):
        # The worker has stopped all its profilers and removed the directory; this call
        # starts new profilers, which have another directory.
        _listener.close()
        _listener = None
    if _listener is None and told.wanted:
        listener = socket.socket(socket.AF_UNIX)
        listener.settimeout(None)  # a task may have set a default
        try:
            listener.bind(os.path.join(told.directory, str(os.getpid())))
        except OSError:
            listener.close()
            raise
        listener.listen()
        _listener = listener
        threading.Thread(
            target=_serve, args=(listener,), name="daskbatch-profile", daemon=True
        ).start()


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.settimeout(None)
        with connection, contextlib.suppress(OSError):
            question = _receive(connection).decode()
            answer = b""
            if question.startswith("-"):
                profilers.forget(question[1:])
            else:
                answer = profilers.report(question) or b""
            connection.sendall(_SIZE.pack(len(answer)) + answer)


@after_fork
def _forget_listener() -> None:
    global _listener
    if _listener is not None:
        _listener.close()
        _listener = None

"""Profiles of a worker's children: they follow their worker, and report by a socket.

The worker tells a child with each block which profilers run; from then on a thread of the child
answers. So a child reports while it runs a task, and after it. Any thread may call these.
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

#: How long a child may take to report: one may be in a long call of C code. Seconds.
_ANSWER_SECONDS = 10.0

_SIZE = struct.Struct("!q")


class ChildOrder(NamedTuple):
    """What a worker tells its children.

    Parameters
    ----------
    directory : str
        Where they listen.
    wanted : tuple of (str, str)
        The profilers that are to run, with their owners.
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
    """Return what a child is to do; None if there has never been a profiler here."""
    global _directory
    wanted = profilers.active()
    if not wanted and _directory is None:
        return None
    with _lock:
        if _directory is None:
            import tempfile  # not at the top: a child starts faster without it

            _directory = tempfile.mkdtemp(prefix="daskbatch-profile-")
    return ChildOrder(_directory, wanted)


def reports(kind: str) -> Iterator[tuple[int, bytes]]:
    """Yield the process numbers of the children that profile, and what they report."""
    for path, data in _ask(kind.encode()):
        if data:
            yield int(path.name), data


def forget(owners: str) -> None:
    """Have children stop what belongs to owners; see `profilers.forget`."""
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
                    connection.settimeout(_ANSWER_SECONDS)
                    connection.connect(str(path))
                    connection.sendall(_SIZE.pack(len(question)) + question)
                    yield path, _receive(connection)
            except (ConnectionError, FileNotFoundError):
                path.unlink(missing_ok=True)  # the child has ended
            except OSError:
                continue  # it does not answer in time


def _receive(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        head = file.read(_SIZE.size)
        if len(head) < _SIZE.size:
            raise ConnectionError("it was closed")
        return file.read(_SIZE.unpack(head)[0])


# -- a child ------------------------------------------------------------------------------

_listener: socket.socket | None = None


def obey(told: ChildOrder | None) -> None:
    """Do what the worker has told this child."""
    global _listener
    if told is None:
        return
    if _listener is not None and not os.path.exists(_listener.getsockname()):
        # The worker has done with its profilers; these are new ones.
        _listener.close()
        _listener = None
    if _listener is None and told.wanted:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.join(told.directory, str(os.getpid())))
        listener.listen()
        _listener = listener
        threading.Thread(
            target=_serve, args=(listener,), name="daskbatch-profile", daemon=True
        ).start()
    profilers.follow(told.wanted)


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
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

"""Profiles the children of a worker: they run the worker's profilers, and report by a socket.

With each block, the worker sends a child the list of the profilers to run. From then on a thread
of the child answers the worker's requests. So a child reports while it runs a task, and also
afterwards. This module is the worker's side; `child_server` is the child's side. Any thread may
call these functions.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from daskbatch.forking import after_fork, make_lock
from daskbatch.worker.profiling import profilers

#: How long a child may take to report: it may be in a long call of C code.
_REPORT_TIMEOUT_SECONDS = 10.0

#: How often the worker tries to remove the directory of the sockets: a child may just make one.
_MAX_REMOVAL_ATTEMPTS = 10

#: Whether a path may name a directory by a descriptor, as on Linux.
_HAS_DESCRIPTOR_PATHS = os.path.isdir("/proc/self/fd")

#: The two requests to a child: to report a kind of profiler, and to end owners.
REPORT, FORGET = b"report ", b"forget "

_SIZE = struct.Struct("!q")


class WantedProfilers(NamedTuple):
    """What a worker sends to its children: the profilers to run.

    Parameters
    ----------
    directory : str
        The directory in which each child makes its socket.
    profilers : tuple of (str, str)
        The kinds of the profilers to run, with their owners.
    """

    directory: str
    profilers: tuple[tuple[str, str], ...]


_lock = make_lock()
_parent: str | None = None
_directory: str | None = None


@after_fork
def _forget_directory() -> None:
    global _directory
    _directory = None


def set_parent_directory(path: str) -> None:
    """Set the directory below which the worker makes the directory of the sockets."""
    global _parent
    _parent = path


def wanted_in_children() -> WantedProfilers | None:
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

            # Elsewhere the path must be short: the directory for temporary files has a short one.
            parent = _parent if _HAS_DESCRIPTOR_PATHS else None
            _directory = tempfile.mkdtemp(prefix="daskbatch-profile-", dir=parent)
    return WantedProfilers(_directory, wanted)


def reports(kind: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name and the report of each child that profiles.

    The report is None if the child has not answered in time.
    """
    for name, data in _request(REPORT + kind.encode()):
        if data != b"":
            yield name, data


def forget(owners: str) -> None:
    """Stop the profilers of some owners in the children; see `profilers.forget`."""
    for _ in _request(FORGET + owners.encode()):
        pass
    remove_directory()


def remove_directory() -> None:
    """Remove the directory of the sockets if no profiler is active."""
    global _directory
    with _lock:
        if _directory is None or profilers.active():
            return
        directory, _directory = _directory, None
        import shutil  # not at the top, as above

        for _ in range(_MAX_REMOVAL_ATTEMPTS):
            shutil.rmtree(directory, ignore_errors=True)
            if not os.path.exists(directory):
                break


def _request(request: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Send a request to each child, and yield its name and its answer; None if it has not come."""
    with _lock:
        directory, descriptor = _directory, -1
        if directory is not None:
            with contextlib.suppress(OSError):
                descriptor = os.open(directory, os.O_RDONLY)
    if directory is None or descriptor < 0:
        return
    try:
        for name in sorted(os.listdir(descriptor)):
            if name.startswith("."):
                continue  # the child does not listen yet: it starts its profilers afterwards
            path = socket_path(directory, descriptor, name)
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(_REPORT_TIMEOUT_SECONDS)
                    connection.connect(path)
                    send(connection, request)
                    yield name, receive(connection)
            except (ConnectionError, FileNotFoundError):
                with contextlib.suppress(OSError):
                    os.unlink(path)  # the child has ended
            except OSError:
                yield name, None
    finally:
        os.close(descriptor)


# -- messages -----------------------------------------------------------------------------


def socket_path(directory: str, descriptor: int, name: str) -> str:
    """Return the path of a socket: one by the descriptor of the directory, if that is possible.

    The path of a socket may have at most 107 bytes, and that of the directory may be longer.
    """
    if _HAS_DESCRIPTOR_PATHS:
        return f"/proc/self/fd/{descriptor}/{name}"
    return os.path.join(directory, name)


def send(connection: socket.socket, message: bytes) -> None:
    """Send a message with its size."""
    connection.sendall(_SIZE.pack(len(message)) + message)


def receive(connection: socket.socket) -> bytes:
    """Receive a message.

    Raises
    ------
    ConnectionError
        The other process has closed the connection.
    """
    with connection.makefile("rb") as file:
        head = file.read(_SIZE.size)
        message = file.read(_SIZE.unpack(head)[0]) if len(head) == _SIZE.size else b""
    if len(head) < _SIZE.size or len(message) < _SIZE.unpack(head)[0]:
        raise ConnectionError("the other process has closed the connection")
    return message

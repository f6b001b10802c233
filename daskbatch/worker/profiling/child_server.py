"""Runs the profilers of a child process, and answers the requests of its worker.

The thread that runs the child's tasks calls `run_wanted`. A daemon thread answers the worker; see
`child_profiles`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading

from daskbatch.forking import after_fork
from daskbatch.worker.profiling import profilers
from daskbatch.worker.profiling.child_profiles import (
    FORGET,
    REPORT,
    WantedProfilers,
    receive,
    send,
    socket_path,
)

#: How long the worker may take to send a request and to receive the answer.
_REQUEST_TIMEOUT_SECONDS = 30.0

_listener: socket.socket | None = None

#: The path of the socket of the listener. The worker removes it when no profiler is active.
_path = ""


def run_wanted(wanted: WantedProfilers | None) -> None:
    """Run exactly the profilers that the worker has sent to this child.

    The first call with profilers also starts the thread that answers the worker.
    """
    if wanted is None:
        # The record can arrive after the worker has stopped the profilers that it names.
        if profilers.active():
            profilers.run_exactly(())
        return
    try:
        _listen(wanted)
    except FileNotFoundError:
        # The worker has stopped its profilers, and removed the directory, in the meantime.
        profilers.run_exactly(())
    else:
        profilers.run_exactly(wanted.profilers)


def close() -> None:
    """Stop answering the worker; the thread ends."""
    global _listener
    listener, _listener = _listener, None
    if listener is not None:
        # To close the socket does not wake up the thread that waits for a connection.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _listen(wanted: WantedProfilers) -> None:
    """Start to answer the worker in the directory of its record, unless this child does so."""
    global _listener, _path
    if _listener is not None and not os.path.exists(_path):
        # The worker has stopped all its profilers and removed the directory; this call
        # starts new profilers, which have another directory.
        close()
    if _listener is not None or not wanted.profilers:
        return
    descriptor = os.open(wanted.directory, os.O_RDONLY)
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(None)  # a task may have set a default
    try:
        # The worker must not find the socket before it accepts connections.
        name = os.urandom(8).hex()
        listener.bind(socket_path(wanted.directory, descriptor, f".{name}"))
        listener.listen()
        os.rename(f".{name}", name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(descriptor)
    _listener, _path = listener, os.path.join(wanted.directory, name)
    threading.Thread(target=_serve, args=(listener,), name="daskbatch-profile", daemon=True).start()


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_REQUEST_TIMEOUT_SECONDS)
            send(connection, _answer(receive(connection)))


def _answer(request: bytes) -> bytes:
    try:
        if request.startswith(FORGET):
            profilers.forget(request.removeprefix(FORGET).decode())
            return b""
        return profilers.report(request.removeprefix(REPORT).decode()) or b""
    except Exception:
        # This must not end the thread: the worker would wait for each later answer.
        logging.getLogger("daskbatch").exception("a profiler of a child has failed")
        return b""


@after_fork
def _forget_listener() -> None:
    global _listener
    if _listener is not None:
        _listener.close()
        _listener = None

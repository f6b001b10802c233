"""The program of a rank: becomes two processes, the rank itself and its supervisor.

The launcher of MPI starts this program, and sees the supervisor. The supervisor reports to the
worker how the rank has ended, which the launcher does not say; and it ends the rank when the
worker has ended, even while the rank holds its interpreter lock. It imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from typing import NoReturn

from daskbatch.worker.mpi.messages import MessageKind, send
from daskbatch.worker.mpi.rank_connection import LINK_VARIABLE, SetAddress, connect, find_rank
from daskbatch.worker.processes.parent_death import end_with_parent

#: After the failure of a rank its supervisor stays for this time, unless the worker closes the
#: connection: once the supervisor has ended, the launcher kills all other ranks.
_FAREWELL_SECONDS = 5.0

#: How often to look whether the rank has ended, on systems that offer no way to wait for it.
_POLL_INTERVAL_SECONDS = 0.05

#: A shell reports a signal by this plus its number.
_SIGNAL_BASE = 128


def main() -> NoReturn:
    """Run a rank, to its end."""
    address = SetAddress.decode(os.environ.pop(LINK_VARIABLE))
    rank = find_rank(dict(os.environ))
    os.environ["DASKBATCH_RANK"] = str(rank)
    os.environ["DASKBATCH_SIZE"] = str(address.size)
    supervisor = os.getpid()
    child = os.fork()
    if child:
        _supervise(address, rank, child)
    end_with_parent(supervisor)
    from daskbatch.worker.mpi.rank_server import serve  # not for the supervisor

    serve(address, rank)


def _supervise(address: SetAddress, rank: int, child: int) -> NoReturn:
    """Report how the rank ends, and end it if the worker ends first."""
    ending = _Ending()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ending.on_signal)
    try:
        sock = connect(address, "supervisor", rank)
    except OSError:
        os.kill(child, signal.SIGKILL)
        os._exit(1)
    if not _wait(child, sock):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        send(sock, MessageKind.ENDED, (code,))
    ending.code = code if code >= 0 else _SIGNAL_BASE - code
    if code and not ending.signalled:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        poll.poll(_FAREWELL_SECONDS * 1000)
    os._exit(ending.code)


class _Ending:
    """Whether this process was sent a signal to end. It outlives its rank, to report its end.

    The sender of the signal has sent it to the rank, too.
    """

    def __init__(self) -> None:
        self.signalled = False
        #: The exit code of this process, once the rank has ended.
        self.code: int | None = None

    def on_signal(self, *_: object) -> None:
        self.signalled = True
        if self.code is not None:
            os._exit(self.code)


def _wait(child: int, sock: socket.socket) -> bool:
    """Wait until the rank has ended; False if the worker has ended first."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    end: int | None = None
    with contextlib.suppress(OSError, AttributeError):
        end = os.pidfd_open(child)
        poll.register(end, select.POLLIN)
    while True:
        found = [
            file
            for file, _ in poll.poll(None if end is not None else _POLL_INTERVAL_SECONDS * 1000)
        ]
        if end in found or (end is None and _has_ended(child)):
            return True
        if found:
            return False  # the worker sends a supervisor nothing: it has closed the connection


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

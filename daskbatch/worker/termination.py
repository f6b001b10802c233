"""Has a worker leave in good order when its process gets SIGTERM.

A batch system sends SIGTERM to all processes of a job whose time is up, or which is cancelled, and
SIGKILL some time later. By default the worker would end at once, beside its nanny, which could no
longer say what the worker had done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import Any

from distributed import Worker

from daskbatch.forking import after_fork
from daskbatch.worker.execution.ending import notice_sigterm, told_to_end

#: How long the nanny may take to answer.
_NANNY_TIMEOUT_SECONDS = 2.0

#: The process whose signal handler is set; -1 for none.
_pid = -1

#: The departures of workers that run; asyncio itself keeps no references to its tasks.
_tasks: set[asyncio.Task[None]] = set()


def leave_on_sigterm(worker: Worker) -> None:
    """Set the handler of SIGTERM of this process, which has a nanny; in the main thread alone."""
    global _pid
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None):
        return
    loop = asyncio.get_running_loop()

    def leave() -> None:
        task = loop.create_task(_leave(worker))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)

    def handle(number: int, frame: Any) -> None:
        told_to_end.set()
        loop.call_soon_threadsafe(leave)

    signal.signal(signal.SIGTERM, handle)
    notice_sigterm()
    _pid = os.getpid()


async def _leave(worker: Worker) -> None:
    """Leave the cluster, and close the worker and its nanny."""
    # Whatever goes wrong: the process is to end.
    with contextlib.suppress(Exception):
        await worker.scheduler.daskbatch_leave(worker=worker.address)
    # Not by `close(nanny=True)`: the nanny may have been signalled, too, and be gone.
    with contextlib.suppress(Exception):
        nanny = worker.rpc(worker.nanny)
        reason = "daskbatch: the worker has got SIGTERM"
        await asyncio.wait_for(nanny.close_gracefully(reason=reason), _NANNY_TIMEOUT_SECONDS)
    await worker.close(nanny=False, reason="daskbatch: SIGTERM")


# SIGTERM ends a process that a task forks, such as one of `multiprocessing`, from its first moment:
# until the handler is reset there, the signal is held back.

#: Whether a thread has held SIGTERM back for a fork.
_forking = threading.local()


def _hold_back() -> None:
    """Before a fork."""
    if _pid >= 0:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        _forking.held = signal.SIGTERM not in mask


def _release_in_parent() -> None:
    if getattr(_forking, "held", False):
        _forking.held = False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


@after_fork
def _release_in_child() -> None:
    global _pid
    if _pid >= 0:
        _pid = -1
        with contextlib.suppress(ValueError):  # not the main thread of an embedded interpreter
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _release_in_parent()


os.register_at_fork(before=_hold_back, after_in_parent=_release_in_parent)

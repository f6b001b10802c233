"""Settings of a process that a task leaves harm no other task."""

from __future__ import annotations

import locale
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daskbatch import Batch, DDict, TaskCrashed

SECONDS = 60


@pytest.fixture(scope="module")
def soiled() -> Iterator[Batch]:
    """A Batch with one worker of one slot, in which tasks leave all kinds of settings."""
    batch = Batch(num_workers=1)
    yield batch
    batch.terminate()


# -- in a thread: what we make ourselves does not depend on it --------------------------------


def default_timeout() -> None:
    socket.setdefaulttimeout(0.01)


def mask_for_files() -> None:
    os.umask(0o777)


def closed_descriptors() -> None:
    for number in range(3):
        os.close(number)


def deleted_directory(path: str) -> None:
    os.mkdir(path)
    os.chdir(path)
    os.rmdir(path)


def blocked_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT})


def foreign_locale() -> None:
    for name in ("de_DE.UTF-8", "C.UTF-8", "POSIX"):
        try:
            locale.setlocale(locale.LC_ALL, name)
        except locale.Error:
            continue
        break


def closed_streams() -> None:
    sys.stdin = sys.__stdin__ = None  # type: ignore[assignment]
    sys.stdout.close()


THREAD_LEFTOVERS: list[Callable[..., Any]] = [
    *(default_timeout, mask_for_files, closed_descriptors, deleted_directory, blocked_signals),
    *(foreign_locale, closed_streams),
]


def crash() -> None:
    os._exit(7)


def use(shared: DDict, number: int) -> None:
    shared[number] = bytes(100_000)
    assert len(shared[number]) == 100_000
    print("printed")


def use_in_child(shared: DDict, number: int) -> str:
    use(shared, number)
    return os.getcwd()


@pytest.mark.parametrize("leave", THREAD_LEFTOVERS)
def test_what_a_task_leaves_in_a_thread(
    soiled: Batch, leave: Callable[..., Any], tmp_path: Path
) -> None:
    args = [str(tmp_path / "gone")] if leave is deleted_directory else []
    task = soiled.options(isolation="thread").function(leave, *args)
    task.run(timeout=SECONDS)
    assert task.get() is None
    # A new child, since the one that is there was started before.
    crashed = soiled.options(isolation="process").function(crash)
    crashed.run(timeout=SECONDS)
    with pytest.raises(TaskCrashed):
        crashed.get()
    shared = soiled.ddict()
    tasks = [
        *(soiled.options(isolation="process").function(use_in_child, shared, n) for n in range(3)),
        *(soiled.options(isolation="thread").function(use, shared, n) for n in range(3, 6)),
    ]
    made = str(tmp_path / "made")
    executables = [
        soiled.process("touch", made, timeout=30),
        soiled.process("sh", "-c", "echo printed; pwd; trap '' USR1; kill -TERM $$; echo not here"),
    ]
    for each in (*tasks, *executables):
        each.start()
    for each in tasks[:3]:
        assert each.get(SECONDS) == os.getcwd()
    for each in tasks:
        each.get(SECONDS)
        assert each.stdout.get() == "printed"
    assert executables[0].get(SECONDS) == 0
    assert os.stat(made).st_mode & 0o700 == 0o600
    executables[1].wait(SECONDS)
    assert executables[1].stdout.get() == f"printed\n{os.getcwd()}"
    shared.close()


# -- in a child: the next task finds what it was ----------------------------------------------


def leave_alarm() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def leave_handlers() -> None:
    def handle(*_: Any) -> None:
        raise ValueError("of the task before")

    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, handle)


def leave_recursion_limit() -> None:
    sys.setrecursionlimit(sys.getrecursionlimit() * 2)


def leave_environment() -> None:
    os.environ = {"only": "this"}  # type: ignore[assignment]  # noqa: B003


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise SystemExit(f"a hostile stream has no {name}")


def leave_streams() -> None:
    sys.stdout = sys.stderr = Hostile()  # type: ignore[assignment]


CHILD_LEFTOVERS: list[Callable[..., Any]] = [
    *(leave_alarm, leave_handlers, leave_recursion_limit, leave_environment, leave_streams),
    *(default_timeout, mask_for_files, closed_descriptors, deleted_directory, blocked_signals),
    *(foreign_locale, closed_streams),
]


def settings() -> dict[str, Any]:
    print("printed")
    time.sleep(0.1)  # an alarm of the task before would come meanwhile
    handlers = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)]
    return {
        "handlers": [str(handler) for handler in handlers],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "umask": os.umask(0o022),
        "timeout": socket.getdefaulttimeout(),
        "recursion limit": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "directory": os.getcwd(),
        "environment": sorted(os.environ),
        "descriptors": [os.fstat(number).st_ino > 0 for number in range(3)],
        "process": os.getpid(),
    }


@pytest.mark.parametrize("leave", CHILD_LEFTOVERS)
def test_what_a_task_leaves_in_a_child(
    soiled: Batch, leave: Callable[..., Any], tmp_path: Path
) -> None:
    args = [str(tmp_path / "gone")] if leave is deleted_directory else []
    make = soiled.options(isolation="process").function
    program = soiled.compile([make(settings), make(leave, *args), make(settings)])
    program.run(timeout=SECONDS)
    before, left, after = program.result.get()
    assert left is None
    assert before == after
    assert program.tasks[2].stdout.get() == "printed"

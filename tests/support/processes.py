"""Trees of processes for tests, and whether a process still runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

#: A program that starts one process of each kind and is itself the last, "root". Each process
#: writes its kind and its pid to stdout, and stays. All of them ignore SIGTERM.
TREE = """
import os, signal, sys

def stay(kind):
    os.write(1, f"{kind} {os.getpid()}\\n".encode())
    while True:
        signal.pause()

signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    if os.fork() == 0:
        stay("grandchild")
    stay("child")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        stay("of-session")
    stay("session")
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:
        stay("daemon")
    os._exit(0)
os.waitpid(middle, 0)
middle = os.fork()
if middle == 0:
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", '''
import os, signal
os.setsid()
os.write(1, f"executed {os.getpid()}\\\\n".encode())
while True:
    signal.pause()
'''])
    os._exit(0)
os.waitpid(middle, 0)
stay("root")
"""
KINDS = {"root", "child", "grandchild", "session", "of-session", "daemon", "executed"}


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shared_memory_of(pid: int) -> set[Path]:
    """Return the files of shared memory that MPICH has made for a process."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]) for line in lines if "/dev/shm/mpich_" in line}


def read_pids(pipe: IO[bytes], count: int = len(KINDS)) -> dict[str, int]:
    """Read the pids that a tree writes to its stdout, by kind."""
    lines = [pipe.readline().split() for _ in range(count)]
    return {kind.decode(): int(pid) for kind, pid in lines}


@contextmanager
def killed_if_failed(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Wait for a process at the end, as ``with process`` does; kill it if the test has failed.

    A test whose time is over would otherwise wait for a process that hangs, without a limit.
    """
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def end_all(started: Sequence[subprocess.Popen[Any]]) -> None:
    """Ask processes to end, the last one first, and kill those that do not."""
    for process in reversed(started):
        process.terminate()
    for process in reversed(started):
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

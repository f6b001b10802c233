"""Runs a program in a fresh process, with a time limit, and ends all processes that it leaves.

Libraries start processes in sessions of their own, which a kill of the program does not reach. On
Linux this process adopts them when their parents end, so that it finds them among its children.
Not thread-safe: `run_alone` ends all children of this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # of Linux's <sys/prctl.h>
_TERMINATE_SECONDS = 3.0


class Finished(NamedTuple):
    """What a program has returned and written, and how long it took.

    `returncode` is None if the program was ended at its limit. `remaining` is how many processes
    it left.
    """

    returncode: int | None
    stdout: str
    stderr: str
    seconds: float
    remaining: int


def run_alone(
    command: Sequence[str], limit_seconds: float, environment: Mapping[str, str]
) -> Finished:
    """Run a program until it ends, at most for a time; end it and all that it has started."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Files, and not pipes: a process that the program leaves would keep a pipe open.
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment) as program:
            try:
                returncode: int | None = program.wait(limit_seconds)
            except subprocess.TimeoutExpired:
                returncode = None
            finally:
                seconds = time.perf_counter() - began
                remaining = end_children()
        stdout.seek(0)
        stderr.seek(0)
        remaining -= returncode is None  # the program itself
        return Finished(returncode, stdout.read(), stderr.read(), seconds, remaining)


def end_children() -> int:
    """End all descendants of this process, also those that they leave; return how many."""
    ended: set[int] = set()
    while remaining := psutil.Process().children(recursive=True):
        for each in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                if each.status() != psutil.STATUS_ZOMBIE:
                    ended.add(each.pid)
                each.terminate()
        for each in psutil.wait_procs(remaining, _TERMINATE_SECONDS)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    return len(ended)

"""Waits until a condition holds or a file exists, and makes tasks that others can wait for.

Tests call these functions, and send some of them to workers as tasks. A worker imports this module
by its name, so it imports nothing but the standard library. Nothing here measures speed: the limits
are so long that only a test that hangs reaches them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: After this time a wait counts as hanging.
HANG_SECONDS = 60.0
_POLL_INTERVAL_SECONDS = 0.005


def wait_until(
    condition: Callable[[], object],
    message: str = "the condition did not become true",
    seconds: float = HANG_SECONDS,
) -> None:
    """Wait until a condition holds, for which there is no event to wait for.

    Parameters
    ----------
    condition
        Called again and again until its result is true.
    message
        What the test says if the condition does not become true.
    seconds
        The test fails after this time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{message} within {seconds} s"
        time.sleep(_POLL_INTERVAL_SECONDS)


def wait_until_running(*tasks: Any) -> None:
    """Wait until all of these tasks are in the state "running"."""
    for task in tasks:
        wait_until(lambda task=task: task.state == "running", f"{task} did not begin to run")


def read_pid(path: Path) -> int:
    """Wait until a process has written its pid and a line end to a file, and return the pid."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), f"no pid is in {path}")
    return int(path.read_text())


# -- what tests call, and send to workers -----------------------------------------------------


def wait_for_file(path: Path, *_: object) -> str:
    """Wait, for any time, until a file exists; return its name.

    Further arguments are not used: a task can so depend on other tasks.
    """
    while not path.exists():
        time.sleep(_POLL_INTERVAL_SECONDS)
    return path.name


def file_appears(path: Path, seconds: float = HANG_SECONDS) -> bool:
    """Wait until a file exists, and return whether it did within a time."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL_SECONDS)
    return path.exists()


def touch(path: Path) -> str:
    """Make an empty file, and return its name."""
    path.touch()
    return path.name


def spin() -> None:
    """Compute until something stops this function."""
    while True:
        pass


def touch_and_spin(path: Path) -> None:
    """Make a file to show that this has begun, then compute until something stops this."""
    path.touch()
    spin()

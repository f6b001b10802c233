"""Runs a function of a module of tests in a process that runs nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

#: How long such a process may take, in seconds.
TIME_LIMIT = 120.0


def in_own_process(test: Callable[..., None]) -> Callable[..., None]:
    """Make of a test one that runs in a new process.

    What it counts, such as open files and threads, is its own then: other tests leave some, which
    come and go. Its arguments are such that their `repr` makes them again.
    """

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        path = [each for each in sys.path if each]
        script = f"import sys; sys.path[:] = {path!r}; import {test.__module__} as module"
        script += f"; module.{test.__qualname__}.__wrapped__(*{args!r}, **{kwargs!r})"
        subprocess.run([sys.executable, "-c", script], check=True, timeout=TIME_LIMIT)

    return run

"""Calls a function of a module of tests in a process that runs nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable


def run_in_own_process(function: Callable[[], None], seconds: float = 120.0) -> None:
    """Call a function in a new process; it must not raise.

    What it counts, such as open files and threads, is its own: other tests leave some, which come
    and go.
    """
    path = [each for each in sys.path if each]
    script = f"import sys; sys.path[:] = {path!r}; import {function.__module__} as module"
    script += f"; module.{function.__name__}()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=seconds)

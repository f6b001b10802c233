"""Tasks that compute something of their inputs, some of which end their process first.

A process that replaces an ended one imports this module anew: it imports only the standard library.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def mix(number: int, *values: int) -> int:
    """Return a number that depends on all inputs."""
    return (number + 31 * sum(values)) % 1_000_003


def die_once(directory: str, number: int, *values: int) -> int:
    """End the process of every seventh task, each once; of every 21st each time."""
    path = Path(directory, f"died {number}")
    if number % 7 == 0 and (number % 21 == 0 or not path.exists()):
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mix(number, *values)

"""Finds out when a worker will end, as far as that is announced."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import psutil

#: Variables in which batch systems say when a job ends, in seconds since the epoch.
_END_VARIABLES = ("SLURM_JOB_END_TIME",)


def announced_end(
    lifetime: Any, started: float | None = None, environment: Mapping[str, str] = os.environ
) -> float:
    """Return the time at which a worker ends, in seconds since the epoch; infinite if unknown.

    Parameters
    ----------
    lifetime : float, optional
        The worker's `lifetime`, in seconds.
    started : float, optional
        When its process began; by default this process.
    environment : mapping
        Its environment.

    Examples
    --------
    >>> announced_end(60, started=1000.0, environment={})
    1060.0
    >>> announced_end(None, environment={"SLURM_JOB_END_TIME": "1030"})
    1030.0
    """
    ends = [math.inf]
    if lifetime:
        # The lifetime begins with the worker, a little later than the process.
        ends.append((psutil.Process().create_time() if started is None else started) + lifetime)
    for name in _END_VARIABLES:
        text = environment.get(name, "")
        if text.isdigit():
            ends.append(float(text))
    return min(ends)

"""Finds out when a worker will end, as far as that is announced.

Any thread may call the functions. They raise nothing: what cannot be found out is not announced.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psutil

#: How long SLURM may take to say when a job ends.
_ANSWER_TIMEOUT_SECONDS = 20.0

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


def ask_slurm(environment: Mapping[str, str] = os.environ) -> float:
    """Ask SLURM, for some seconds, when the job of this process ends; infinite if unknown.

    Older versions of SLURM do not say it in the environment.

    Parameters
    ----------
    environment : mapping
        The environment of this process.
    """
    job = environment.get("SLURM_JOB_ID", "")
    if not job.isdigit() or "SLURM_JOB_END_TIME" in environment:
        return math.inf
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%e"],
            capture_output=True,
            text=True,
            timeout=_ANSWER_TIMEOUT_SECONDS,
            check=True,
        )
        return parse_time(answer.stdout)
    except (OSError, subprocess.SubprocessError):
        return math.inf


def parse_time(text: str) -> float:
    """Return a time of SLURM, in seconds since the epoch; infinite if it is none.

    Examples
    --------
    >>> parse_time("N/A")
    inf
    """
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        return math.inf

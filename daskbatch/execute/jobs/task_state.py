"""Defines the states of a task of a job.

The order of the states matters: a task is over in each state after `EXECUTING`.
"""

from __future__ import annotations

from enum import IntEnum


class TaskState(IntEnum):
    """The state of a task. A larger number is a later state."""

    NEW = 0
    EXECUTING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4

"""Defines the states of a task of a job."""

from __future__ import annotations

from enum import IntEnum


class TaskState(IntEnum):
    """The state of a task. A larger number is a later state."""

    NEW = 0
    EXECUTING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4

"""Checks the names and values of environment variables.

Pure functions; the caller decides which error to raise.
"""

from __future__ import annotations

import os


def is_variable(name: str) -> bool:
    """Return whether an environment variable can have that name.

    Examples
    --------
    >>> is_variable("PATH"), is_variable("A=B"), is_variable("")
    (True, False, False)
    """
    return name != "" and "=" not in name and _can_be_passed(name)


def is_value(value: object) -> bool:
    """Return whether an environment variable can have that value: a text, or a path."""
    return isinstance(value, (str, os.PathLike)) and _can_be_passed(os.fsdecode(value))


def _can_be_passed(text: str) -> bool:
    """Return whether a process can receive the text: the system cuts it at the first zero byte."""
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False

"""What can be added to an environment: texts by names.

Does not know who asks for it, nor how it gets into a process.
"""

from __future__ import annotations

import os


def is_variable(name: str) -> bool:
    """Say whether an environment can hold something by that name.

    Examples
    --------
    >>> is_variable("PATH"), is_variable("A=B"), is_variable("")
    (True, False, False)
    """
    return name != "" and "=" not in name and _passes(name)


def is_value(value: object) -> bool:
    """Say whether an environment can hold that: a text, or a path."""
    return isinstance(value, (str, os.PathLike)) and _passes(os.fsdecode(value))


def _passes(text: str) -> bool:
    """Say whether a process can be given the text: in bytes that end with the first 0."""
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False

"""Reads `max_workers`.

Pure functions; they raise `SpecError` for a value that is wrong.
"""

from __future__ import annotations

import operator
from typing import SupportsIndex

from daskbatch.errors import SpecError


def count_workers(max_workers: SupportsIndex) -> int:
    """Return a user's number of workers as an int.

    Parameters
    ----------
    max_workers : int
        A positive whole number, of any type with ``__index__``.

    Raises
    ------
    SpecError
        The value is not a whole number, or not positive.

    Examples
    --------
    >>> count_workers(2)
    2
    """
    try:
        count = operator.index(max_workers)
    except TypeError:
        count = None
    if count is None or isinstance(max_workers, bool):
        raise SpecError(f"max_workers must be a whole number, not {max_workers!r}")
    if count <= 0:
        raise SpecError("max_workers must be greater than 0")
    return count

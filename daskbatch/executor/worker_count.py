"""Reads `max_workers`.

Pure functions; they raise `SpecError` for a value that is wrong.
"""

from __future__ import annotations

from typing import SupportsIndex

from daskbatch.describe.values import whole_number_of
from daskbatch.errors import SpecError
from daskbatch.serialization.safe_text import safe_repr


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
    count = whole_number_of(max_workers)
    if count is None:
        raise SpecError(f"max_workers must be a whole number, not {safe_repr(max_workers)}")
    if count <= 0:
        raise SpecError("max_workers must be greater than 0")
    return count

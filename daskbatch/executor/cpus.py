"""Reads `max_workers` and `cpus_per_job`, and limits the threads of linear algebra libraries.

Pure functions; they raise `SpecError` for a value that is wrong.
"""

from __future__ import annotations

import re
from typing import SupportsIndex

from daskbatch.describe.values import number_of, text_of, whole_number_of
from daskbatch.errors import SpecError
from daskbatch.serialization.safe_text import safe_repr

#: The environment variables from which libraries read how many threads to use.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def count_cpus(cpus: int | float | str) -> float:
    """Return a user's number of cores as a float.

    Parameters
    ----------
    cpus : int, float or str
        A number, or a text such as ``"2"``, ``"0.25"`` or ``"500m"`` (thousandths).

    Raises
    ------
    SpecError
        The value is of another form, or not positive.

    Examples
    --------
    >>> count_cpus("1500m")
    1.5
    """
    count = 0.0
    if (text := text_of(cpus)) is not None:
        found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(m?)", text.strip())
        if found is not None:
            count = float(found[1]) / (1000 if found[2] else 1)
    else:
        count = number_of(cpus) or 0.0
    if not 0 < count < float("inf"):
        raise SpecError(
            f'cpus_per_job= must be a number such as 2, "0.5" or "500m", not {safe_repr(cpus)}'
        )
    return count


def thread_limits(cpus: float) -> dict[str, str]:
    """Return the environment variables that limit libraries to a number of threads, at least 1.

    Examples
    --------
    >>> thread_limits(2.5)["OMP_NUM_THREADS"]
    '2'
    """
    return dict.fromkeys(_THREAD_VARIABLES, str(max(1, int(cpus))))


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

"""Says how many slots a task takes at once, and reads a user's number of cores.

Pure functions and an immutable record; they raise `SpecError` for a value that is wrong.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from daskbatch.describe.values import number_of, text_of
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


class Gang(NamedTuple):
    """The slots that a task takes, granted all at once or not at all.

    Parameters
    ----------
    ranks : int
        The number of processes of a parallel job; 1 for a function or a serial executable.
    cores : int
        The slots of each rank. All slots of a rank are on one host.

    Examples
    --------
    >>> Gang(ranks=3, cores=2).slots
    6
    """

    ranks: int
    cores: int = 1

    @property
    def slots(self) -> int:
        """The number of slots of all ranks."""
        return self.ranks * self.cores


def count_cores(cores: int | float | str, what: str) -> float:
    """Return a user's number of cores as a float.

    Parameters
    ----------
    cores : int, float or str
        A number, or a text such as ``"2"``, ``"0.25"`` or ``"500m"`` (thousandths).
    what : str
        The name of the parameter, for the message.

    Raises
    ------
    SpecError
        The value is of another form, or not positive.

    Examples
    --------
    >>> count_cores("1500m", "cores=")
    1.5
    """
    count = 0.0
    if (text := text_of(cores)) is not None:
        found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(m?)", text.strip())
        if found is not None:
            count = float(found[1]) / (1000 if found[2] else 1)
    else:
        count = number_of(cores) or 0.0
    if not 0 < count < float("inf"):
        raise SpecError(
            f'{what} must be a number such as 2, "0.5" or "500m", not {safe_repr(cores)}'
        )
    return count


def whole_slots(cores: float) -> int:
    """Return how many slots a number of cores takes: a part of a slot counts as a slot.

    Examples
    --------
    >>> whole_slots(0.5), whole_slots(2), whole_slots(2.5)
    (1, 2, 3)
    """
    return math.ceil(cores)


def thread_limits(cores: float) -> dict[str, str]:
    """Return the environment variables that limit libraries to a number of threads, at least 1.

    Examples
    --------
    >>> thread_limits(2.5)["OMP_NUM_THREADS"]
    '2'
    """
    return dict.fromkeys(_THREAD_VARIABLES, str(max(1, int(cores))))

"""Reads how many workers an embedded cluster has: a number, or the least and the most.

The function is pure; it raises `SpecError` for a value that is wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from daskbatch.describe.values import whole_number_of
from daskbatch.errors import SpecError
from daskbatch.serialization.safe_text import safe_repr


class WorkerRange(NamedTuple):
    """How many workers a cluster has at least and at most.

    Parameters
    ----------
    least, most : int
        The numbers; the same for a cluster that does not grow.
    """

    least: int
    most: int

    @property
    def is_elastic(self) -> bool:
        """Whether the cluster grows and shrinks."""
        return self.least < self.most


def worker_range(num_workers: Any) -> WorkerRange:
    """Return what the parameter `num_workers` of a Batch says.

    Raises
    ------
    SpecError
        It is neither a whole number from 1, nor a pair of them, the least and the most.

    Examples
    --------
    >>> worker_range(2)
    WorkerRange(least=2, most=2)
    >>> worker_range((1, 4))
    WorkerRange(least=1, most=4)
    """
    if not isinstance(num_workers, (tuple, list)):
        count = whole_number_of(num_workers)
        if count is None or count < 1:
            raise SpecError(
                f"num_workers= must be a whole number from 1, not {safe_repr(num_workers)}"
            )
        return WorkerRange(count, count)
    counts = [whole_number_of(each) for each in num_workers]
    if len(counts) == 2:
        least, most = counts
        if least is not None and most is not None and 1 <= least <= most:
            return WorkerRange(least, most)
    raise SpecError(
        "num_workers= must be a whole number from 1, or a pair of the least and the most, not "
        f"{safe_repr(num_workers)}"
    )

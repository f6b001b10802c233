"""Describes a Dask future whose result tasks take as an argument.

Any thread may read it; the dispatcher changes it with its lock held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False, slots=True)
class FutureSource:
    """A Dask future, for the task that fetches its result.

    Parameters
    ----------
    key : object
        The Dask key.
    future : object
        The Dask future. Dask keeps the value of the key as long as this object exists.
    renew : callable
        Makes the record of another task that fetches the result.
    """

    key: Any
    future: Any
    renew: Callable[[], Any]
    #: The unfinished tasks that were started and take the result.
    takers: set[Any] = field(default_factory=set)
    #: Whether the task that fetches the result is being cancelled, because no task needs it.
    abandoned: bool = False

    @property
    def is_cancelled(self) -> bool:
        """Whether the program has cancelled the future, or closed the Dask client that made it."""
        return bool(self.future.status == "cancelled")

"""Converts users' timeouts to seconds, and keeps deadlines.

Several threads may use the same `Deadline`: it never changes.
"""

from __future__ import annotations

import math
import threading
from datetime import timedelta
from numbers import Real
from time import monotonic

from daskbatch.errors import SpecError


def parse_timeout(timeout: float | timedelta | None) -> float | None:
    """Convert a user's timeout to seconds; None means no limit.

    Parameters
    ----------
    timeout : float or timedelta, optional
        Seconds. Negative values mean 0; values beyond the limit of the clock mean no limit.

    Raises
    ------
    SpecError
        The timeout is neither a number of seconds nor a `timedelta`.

    Examples
    --------
    >>> parse_timeout(float("inf")) is None
    True
    """
    if timeout is None:
        return None
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if not isinstance(timeout, Real) or math.isnan(timeout):
        raise SpecError(f"timeout= must be a number of seconds or a timedelta, not {timeout!r}")
    return None if timeout > threading.TIMEOUT_MAX else max(0.0, float(timeout))


class Deadline:
    """The moment at which a timeout is up; without a timeout it never passes.

    Parameters
    ----------
    seconds : float, optional
        Seconds from now; None for a deadline that never passes.

    Examples
    --------
    >>> Deadline(None).remaining() is None, Deadline(0).remaining(), Deadline(0).passed
    (True, 0.0, True)
    """

    __slots__ = ("_end",)

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else monotonic() + seconds

    def remaining(self, at_most: float | None = None) -> float | None:
        """Return the seconds until the deadline, never negative; None if it never passes.

        Parameters
        ----------
        at_most : float, optional
            An upper bound for the seconds returned; with it the result is never None.
        """
        if self._end is None:
            return at_most
        seconds = max(0.0, self._end - monotonic())
        return seconds if at_most is None else min(seconds, at_most)

    @property
    def passed(self) -> bool:
        """Whether the deadline has passed."""
        return self._end is not None and monotonic() >= self._end

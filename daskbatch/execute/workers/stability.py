"""Decides from connect times whether all workers of a cluster have probably connected. Pure.

The code reads no clock: the caller passes all times.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise


def is_stable(
    connected: Iterable[float], now: float, connect_timeout: float, stable_timeout: float
) -> bool:
    """Return whether no more workers are likely to connect soon.

    That holds once the time since the last worker connected is more than twice the longest time
    between two recent ones.

    Parameters
    ----------
    connected : iterable of float
        When each worker connected. Seconds.
    now : float
        The present time. Seconds, of the same clock.
    connect_timeout : float
        If one worker alone has connected recently: how many seconds to wait for a second one.
    stable_timeout : float
        Workers that connected this many seconds ago, or earlier, are ignored.

    Examples
    --------
    >>> is_stable([0.0, 1.0, 1.5], now=3.0, connect_timeout=5, stable_timeout=60)
    False
    >>> is_stable([0.0, 1.0, 1.5], now=3.6, connect_timeout=5, stable_timeout=60)
    True
    """
    recent = sorted(each for each in connected if now - each < stable_timeout)
    if not recent:
        return True
    since = now - recent[-1]
    if len(recent) == 1:
        return since >= connect_timeout
    return since > 2 * max(after - before for before, after in pairwise(recent))

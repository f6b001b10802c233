"""When a cluster whose workers connect one after another has settled. Pure.

Nothing here knows workers or reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise


def is_stable(
    connected: Iterable[float], now: float, connect_timeout: float, stable_timeout: float
) -> bool:
    """Return whether no more workers are likely to connect soon.

    Parameters
    ----------
    connected : iterable of float
        When each worker connected. Seconds.
    now : float
        The time. Seconds, of the same clock.
    connect_timeout : float
        A single worker that has just connected counts as the only one after this many seconds.
    stable_timeout : float
        What connected longer ago than this many seconds tells nothing.

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

"""Decides how long the client may leave the reports of open blocks unread.

To wake up for a report takes the client as long as all that it does for it, and keeps a task from
a core meanwhile. So reports are read together while each block has members for some time.
"""

from __future__ import annotations

from collections.abc import Collection

from daskbatch.dispatch.open_blocks.open_block import OpenBlock

#: The client reads reports this long before a block may be through with its members: it then has to
#: send others.
_LEAD_SECONDS = 0.0005

#: How long reports wait at most; and the shortest pause for which it pays to sleep.
_MAX_PAUSE_SECONDS = 0.001
_MIN_PAUSE_SECONDS = 0.0002

#: The way from the members to the end takes at most this share of the time that the blocks need for
#: all held tasks. Else a task on the longest way could begin later because of a pause.
_MAX_URGENT_SHARE = 0.5


def pause_seconds(blocks: Collection[OpenBlock], slots: int, work: float) -> float:
    """Return how long the reports of open blocks may wait.

    Parameters
    ----------
    blocks : collection of OpenBlock
        All open blocks of the client.
    slots : int
        The number of tasks that run at once. While a slot has no open block, nothing waits.
    work : float
        The expected seconds of all held tasks.
    """
    if len(blocks) < slots:
        return 0.0
    least = _MAX_PAUSE_SECONDS
    for each in blocks:
        if not each.is_open or each.level * len(blocks) > _MAX_URGENT_SHARE * work:
            return 0.0
        least = min(least, each.seconds_ahead - _LEAD_SECONDS)
    return least if least >= _MIN_PAUSE_SECONDS else 0.0

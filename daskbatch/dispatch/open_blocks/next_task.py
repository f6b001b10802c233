"""Decides which task an open block receives next, and whether it has room for it.

Not thread-safe: the dispatcher's lock is held.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from daskbatch.dispatch.open_blocks.held import HeldTasks
from daskbatch.dispatch.open_blocks.open_block import Urgency, is_held
from daskbatch.dispatch.task_record import TaskRecord

#: A member is sent ahead if those before it are expected to take no longer than this.
_AHEAD_SECONDS = 0.002
_MAX_AHEAD = 64

#: Longer tasks are not sent ahead: the slot then waits for the client, for less than a fiftieth of
#: the time that they take.
_MAX_AHEAD_TASK_SECONDS = 0.03

#: Another one may be sent ahead, if the way from it to the end takes at most this share of the time
#: that the slots need for all held tasks.
_MAX_URGENT_SHARE = 0.5


class NextTask:
    """Chooses the next task of an open block. Not thread-safe.

    Parameters
    ----------
    held : HeldTasks
        The tasks that wait at the client.
    expected : callable
        Returns how long a task is expected to run; None if that is not known.
    """

    def __init__(self, held: HeldTasks, expected: Callable[[TaskRecord], float | None]) -> None:
        self._held = held
        self._expected = expected

    def ready(
        self, ready: list[Urgency], behind: Urgency | None, count: int, blocks: int
    ) -> TaskRecord | None:
        """Return, and remove, the next task for an open block; None if there is no task or no room.

        Parameters
        ----------
        ready : list of Urgency
            The heap of ready tasks.
        behind : Urgency, optional
            A task that may be sent behind those that it waits for.
        count : int
            How many members the block has.
        blocks : int
            The number of open blocks.
        """
        while ready and not is_held(ready[0].record):
            heapq.heappop(ready)
        first = ready[0] if ready else None
        chosen = behind if first is None or (behind is not None and behind < first) else first
        if chosen is None:
            return None
        seconds = self._expected(chosen.record)
        most = 1
        if seconds is not None:
            ahead = _count_ahead(seconds)
            if not ahead and seconds <= _MAX_AHEAD_TASK_SECONDS and self._has_plenty(ready, blocks):
                ahead = 1
            most += ahead
        if count >= most:
            return None
        if chosen is first:
            heapq.heappop(ready)
        return chosen.record

    def _has_plenty(self, ready: list[Urgency], blocks: int) -> bool:
        """Return whether a block may take a ready task behind the one that it runs.

        There must be another one for each block. And a block that is through first would then run
        a less urgent task. That does no harm while the work of all is longer than the way to the
        end.
        """
        return (
            len(ready) > blocks and -ready[0].order * blocks <= _MAX_URGENT_SHARE * self._held.work
        )

    def has_room_to_wait(self, record: TaskRecord, count: int) -> bool:
        """Return whether a block that has some members may receive a task that waits for others."""
        seconds = self._expected(record)
        return seconds is not None and count <= _count_ahead(seconds)


def _count_ahead(seconds: float) -> int:
    """Return how many tasks of some seconds are sent ahead."""
    return min(_MAX_AHEAD, int(_AHEAD_SECONDS / max(seconds, 1e-6)))

"""Computes how many slots of a run were taken at each time.

Pure; made in O(n log n) for n tasks, and asked in O(log n).
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise

from daskbatch.records.run_record import RunRecord


class Occupancy:
    """The number of slots that tasks took, as a step function of time.

    Any number of threads may read it.

    Parameters
    ----------
    run : RunRecord
        The run. Its slots are the largest number that there were at one time; if that is not
        known, the largest number taken at once.
    worker : str, optional
        Only the slots of this worker; by default those of all.

    Attributes
    ----------
    slots, peak : int
        The number of slots; the largest number that was taken at once.
    """

    def __init__(self, run: RunRecord, worker: str | None = None) -> None:
        changes: dict[float, int] = {}
        for task in run.tasks:
            if worker is not None and task.worker != worker:
                continue
            if task.started is not None and task.ended is not None:
                changes[task.started] = changes.get(task.started, 0) + task.slots
                changes[task.ended] = changes.get(task.ended, 0) - task.slots
        self._times = sorted(changes)
        self._taken = [*accumulate(changes[time] for time in self._times)]
        self.peak = max(self._taken, default=0)
        threads = sum(each.threads for each in run.slots if worker in (None, each.worker))
        self.slots = (run.capacity if worker is None else 0) or threads or self.peak
        full = [
            (end - begin) if taken >= self.slots else 0.0
            for (begin, end), taken in zip(pairwise(self._times), self._taken, strict=False)
        ]
        self._full_until = [0.0, *accumulate(full)]

    def seconds_full(self, begin: float, end: float) -> float:
        """Return for how long between two times all slots were taken."""
        return max(0.0, self._full_before(end) - self._full_before(begin))

    def _full_before(self, time: float) -> float:
        at = bisect_right(self._times, time) - 1
        if at < 0:
            return 0.0
        passed = time - self._times[at] if self._taken[at] >= self.slots > 0 else 0.0
        return self._full_until[min(at, len(self._full_until) - 1)] + passed

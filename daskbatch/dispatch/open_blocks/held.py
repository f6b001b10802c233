"""Keeps the tasks that wait at the client, and finds those that become ready.

Not thread-safe. A task may wait for any other one, held or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daskbatch.dispatch.task_record import TaskRecord


class HeldTasks:
    """The tasks that wait at the client for others, and the order in which they are sent.

    Not thread-safe. What is long on the way to the end comes first (the bottom level: Adam,
    Chandy and Dickson, CACM 17(12), 1974).
    """

    def __init__(self) -> None:
        #: How many unfinished tasks each held task waits for.
        self._missing: dict[TaskRecord, int] = {}
        #: For each awaited task the held tasks that wait for it; some may be gone.
        self._after: dict[TaskRecord, dict[TaskRecord, None]] = {}
        #: For each held task the expected seconds from its begin to the end of the program, and
        #: its own.
        self._levels: dict[TaskRecord, tuple[float, float]] = {}
        #: The expected seconds of all held tasks.
        self.work = 0.0

    def __bool__(self) -> bool:
        """Return whether any task is held, or a held task has waited for one that is not over."""
        return bool(self._after or self._levels)

    def add(self, records: Sequence[TaskRecord], seconds: Sequence[float]) -> list[TaskRecord]:
        """Hold tasks; returns those that are ready.

        Parameters
        ----------
        records : sequence of TaskRecord
            The tasks, each after those that it waits for.
        seconds : sequence of float
            How long each is expected to take.
        """
        ready = []
        for record in records:
            waits = record.unfinished_waits() if record.waits else {}
            for before in waits:
                self._after.setdefault(before, {})[record] = None
            self._missing[record] = len(waits)
            if not waits:
                ready.append(record)
        levels = self._levels
        for record, expected in zip(reversed(records), reversed(seconds), strict=True):
            if record in levels:
                self.work -= levels[record][1]
            level = 0.0
            for each in self._after.get(record, ()):
                found = levels.get(each)
                if found is not None and found[0] > level:
                    level = found[0]
            levels[record] = expected + level, expected
            self.work += expected
        return ready

    def remove(self, record: TaskRecord) -> bool:
        """Hold a task no longer: it was sent, or placed in another way, or is over.

        Returns whether it was held.
        """
        self._missing.pop(record, None)
        found = self._levels.pop(record, None)
        if found is None:
            return False
        if self._levels:
            self.work -= found[1]
        else:
            # A dictionary keeps the memory of all that it has held until it is cleared.
            self.work = 0.0
            self._levels.clear()
            self._missing.clear()
        return True

    def level(self, record: TaskRecord) -> float:
        """Return the expected seconds from the begin of a held task to the end."""
        found = self._levels.get(record)
        return 0.0 if found is None else found[0]

    def over(self, record: TaskRecord) -> tuple[list[TaskRecord], list[TaskRecord]]:
        """Record that a task is over.

        Returns
        -------
        tuple of two lists
            The held tasks that are ready now, and those that wait for one other task.
        """
        ready: list[TaskRecord] = []
        almost: list[TaskRecord] = []
        behind = self._after.pop(record, None)
        if not self._after:
            self._after.clear()
        if not behind:
            return ready, almost
        # It may be over before what it waits for, if it was cancelled; see `unfinished_waits`.
        through = record.unfinished_waits() if record.waits else ()
        missing = self._missing
        for each in behind:
            count = missing.get(each)
            if count is None:
                continue
            count -= 1
            for before in through:
                after = self._after.setdefault(before, {})
                if each not in after:
                    after[each] = None
                    count += 1
            missing[each] = count
            if not count:
                ready.append(each)
            elif count == 1:
                almost.append(each)
        return ready, almost

    def waits_for_one(self, record: TaskRecord) -> list[TaskRecord]:
        """Return the held tasks that wait for this task and for no other."""
        return [each for each in self._after.get(record, ()) if self._missing.get(each) == 1]

    def waiting_for(self, record: TaskRecord) -> Iterable[TaskRecord]:
        """Return the held tasks that wait for a task; some may be held no longer."""
        return self._after.get(record, ())

    def clear(self) -> None:
        """Forget all."""
        self._missing.clear()
        self._after.clear()
        self._levels.clear()
        self.work = 0.0

"""Holds the Batch that tests share, and makes a new one after a test that has not let go of it."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

from support.waiting import HANG_SECONDS, file_appears, touch, wait_until

from daskbatch import Batch


class BatchHolder:
    """A Batch for many tests, made when it is first needed.

    Parameters
    ----------
    workers
        The number of its workers.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._batch: Batch | None = None

    def get(self) -> Batch:
        """Return the Batch."""
        if self._batch is None:
            self._batch = Batch(num_workers=self._workers)
        return self._batch

    def fence(self) -> None:
        """Wait until all that was started is over; if that takes too long, have no test wait again.

        A test that failed may have left tasks that wait for it, for ever.
        """
        try:
            self.get().fence(timeout=HANG_SECONDS)
        except BaseException:
            self.drop()
            raise

    def check(self) -> None:
        """Check that as many tasks run at the same time as there are workers: no slot is lost."""
        if self._batch is None:
            return
        with tempfile.TemporaryDirectory() as directory:
            paths = [Path(directory, str(number)) for number in range(self._workers)]
            tasks = [self._batch.function(meet, paths, own) for own in paths]
            try:
                self._batch.compile(tasks).run(timeout=2 * HANG_SECONDS)
                assert all(task.get() for task in tasks), "a slot of the shared Batch is lost"
                del tasks
                wait_until(self._holds_no_value, "values stay in the memory of workers")
            except BaseException:
                self.drop()
                raise

    def _holds_no_value(self) -> bool:
        """Return whether the workers hold no value of a task: here, nothing refers to any."""
        assert self._batch is not None
        gc.collect()
        self._batch.client.run(gc.collect)
        return held_by_workers(self._batch) == 0

    def drop(self) -> None:
        """End the Batch and what it runs; the next test gets a new one."""
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.terminate()
            batch.close()


def held_by_workers(batch: Batch) -> int:
    """Return how many values the workers hold in their memory."""
    return sum(batch.client.run(_held).values())


def _held() -> int:
    from daskbatch.memory import segment

    return len(segment._segments)


def meet(paths: list[Path], own: Path) -> bool:
    """Return whether the tasks that make all of these files run at the same time."""
    touch(own)
    return all(file_appears(path) for path in paths)

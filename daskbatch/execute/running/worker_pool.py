"""Keeps the workers that may execute a job, and the time that the job has waited for a worker.

Only the thread of the scheduler uses a `WorkerPool`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from daskbatch import config
from daskbatch.execute.scheduling.assigner import Assigner
from daskbatch.execute.workers.worker import Worker
from daskbatch.execute.workers.worker_watch import WorkerSet, WorkerWatch
from daskbatch.timeouts import Deadline

_logger = logging.getLogger("daskbatch")

#: The longest time between two checks whether tasks have waited too long for a worker.
_POLL_INTERVAL_SECONDS = 1.0

#: After this time, a job that waits because the cluster has no worker at all says so in the log.
_EMPTY_WARNING_SECONDS = 5.0


class WorkerPool:
    """The connected workers that may execute a job.

    Only the thread of the scheduler uses it.

    Parameters
    ----------
    assigner : Assigner
        Receives each worker that joins or leaves.
    selected : sequence of Worker, optional
        The workers that the user has selected for the job; None for all workers.
    concurrency : int
        How many tasks of the job run at the same time on each worker.
    watch : WorkerWatch, optional
        The watch of the cluster's workers, if the job needs a cluster.
    """

    def __init__(
        self,
        assigner: Assigner,
        selected: Sequence[Any] | None,
        concurrency: int,
        watch: WorkerWatch | None = None,
    ) -> None:
        self._watch = watch
        self._assigner = assigner
        self._selected = selected
        self._concurrency = concurrency
        self._threads: dict[Any, int | None] = {}
        #: Whether the cluster has no worker that can run tasks. Then these wait: a worker may be on
        #: order. They do not wait for ever if workers are there, and all have other software.
        self._cluster_is_empty = self._has_only_unfit = False
        #: The workers of the job that have left the cluster, and may be restarted.
        self.departed: list[Any] = []
        #: When to log that; None if it has been logged.
        self._warning: Deadline | None = None
        #: When the job fails, if by then no worker has joined that may execute its tasks; None
        #: while no task waits for a worker, or the cluster has no worker at all.
        self._deadline: Deadline | None = None

    def add_fixed(self) -> None:
        """Add the selected workers, for a job that needs no cluster."""
        for worker in self._selected or ():
            self._add(worker, None)

    def update(self, workers: WorkerSet) -> tuple[list[Any], list[Any]]:
        """Apply a change of the cluster.

        Parameters
        ----------
        workers : WorkerSet
            The workers of the cluster.

        Returns
        -------
        (list of Worker, list of Worker)
            The workers of the job that have joined, and those that have left.
        """
        usable = {
            worker: threads
            for worker, threads in workers.threads.items()
            if self._selected is None or _is_selected(worker, self._selected)
        }
        departed = [worker for worker in self._assigner.workers if worker not in usable]
        for worker in departed:
            self._assigner.remove_worker(worker)
        joined = [worker for worker in usable if worker not in self._threads]
        for worker in joined:
            self._add(worker, usable[worker])
        self._threads = dict(usable)
        self.departed = [
            worker
            for worker in workers.departed
            if self._selected is None or _is_selected(worker, self._selected)
        ]
        was_empty, self._cluster_is_empty = self._cluster_is_empty, not workers.threads
        self._has_only_unfit = workers.has_unfit and not workers.threads
        if self._cluster_is_empty and not was_empty:
            self._warning = Deadline(_EMPTY_WARNING_SECONDS)
        if joined or self._may_wait:
            self._deadline = None
        return joined, departed

    def has_address(self, address: object) -> bool:
        """Return whether one of the workers has an address."""
        return any(getattr(worker, "address", None) == address for worker in self._assigner.workers)

    def must_release_slot(self, worker: Any) -> bool:
        """Return whether calls on a worker release its slot: more calls run than it has threads."""
        threads = self._threads.get(worker)
        return threads is not None and self._concurrency > threads

    def seconds_to_wait(self) -> float | None:
        """Return how long the scheduler may wait for an event; None for any time.

        If tasks wait for a worker, the time after which the job fails begins with the first call.
        """
        if self._assigner.workers and not self._assigner.stranded:
            self._deadline = None
        elif self._deadline is None and not self._may_wait:
            self._deadline = Deadline(config.get_optional_seconds("unmet-timeout"))
        warning = self._warning if self._cluster_is_empty else None
        moments = [each for each in (warning, self._deadline) if each is not None]
        found = [each.remaining(_POLL_INTERVAL_SECONDS) or 0.0 for each in moments]
        return min(found, default=None)

    def warn_if_empty(self) -> None:
        """Log, once, that the cluster has had no worker for a while."""
        if self._cluster_is_empty and self._warning is not None and self._warning.passed:
            self._warning = None
            _logger.warning("a job waits for a worker: %s", self._describe_missing())

    def overdue(self) -> str | None:
        """Return why tasks have waited longer than the ``unmet-timeout``; None if they have not."""
        if self._deadline is None or not self._deadline.passed:
            return None
        if self._has_only_unfit and self._watch is not None and self._watch.are_workers_on_order():
            self._deadline = None
            return None
        reason = f": {self._describe_missing()}" if self._cluster_is_empty else ""
        return f"has joined within the unmet-timeout{reason}"

    @property
    def _may_wait(self) -> bool:
        """Whether tasks wait without a limit."""
        return self._cluster_is_empty and not self._has_only_unfit

    def _describe_missing(self) -> str:
        return "the cluster has none" if self._watch is None else self._watch.describe_missing()

    def _add(self, worker: Any, threads: int | None) -> None:
        self._threads[worker] = threads
        self._assigner.add_worker(worker, bulk=not self.must_release_slot(worker))


def _is_selected(worker: Worker, selected: Sequence[Any]) -> bool:
    # A worker that was restarted has the same name, and another address.
    return any(
        worker == each or worker.name == getattr(each, "name", each) or worker.address == each
        for each in selected
    )

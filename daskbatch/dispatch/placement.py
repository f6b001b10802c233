"""A block on the cluster: its key, its members, what it hangs on.

Does not know how it was packed, nor what its members return.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from daskbatch.dispatch.task_record import SILENT, TaskRecord
from daskbatch.errors import LifecycleError, WorkerLost
from daskbatch.worker.execution.outcome import BlockResult
from daskbatch.worker.execution.task_context import called_aside


class Future(Protocol):
    """What of a Dask future is needed here. The key lives as long as it does."""

    @property
    def status(self) -> str: ...
    def result(self, timeout: float | None = None) -> Any: ...
    def release(self) -> None: ...


class SubmittedBlock:
    """A block that has been, or is about to be, submitted.

    Parameters
    ----------
    number : int
        Its number in reports and revocations.
    records : sequence of TaskRecord
        Its members; one that was deferred or revoked points to another placement.
    """

    __slots__ = (
        "__weakref__",
        "buffers",
        "failed",
        "future",
        "held",
        "key",
        "left",
        "long",
        "lost",
        "number",
        "records",
        "small",
        "waits",
    )

    def __init__(self, number: int, records: Sequence[TaskRecord]) -> None:
        self.number = number
        self.records = records
        self.key: tuple[str, int] = ("", number)
        #: Members whose outcome has not been told yet.
        self.left = len(records)
        #: Whether its result is known to be small, so that order-only edges may carry it.
        self.small = False
        #: Whether it may well run for a long time.
        self.long = False
        #: The placements that its key waits for.
        self.waits: frozenset[SubmittedBlock] = frozenset()
        self.future: Future | None = None
        #: Whether what its members returned is not to be had any more.
        self.lost = False
        #: Whether its key has failed as a whole.
        self.failed = False
        #: The keys of the shared buffers that it takes, and their futures, which must live
        #: as long as it runs.
        self.buffers: Sequence[str] = ()
        self.held: Sequence[Any] = ()

    @property
    def name(self) -> str:
        """What Dask's dashboard calls it."""
        return self.key[0].rpartition("-")[0]

    def fetch(self, label: str, timeout: float | None) -> BlockResult:
        """Get the result from the worker that holds it.

        Parameters
        ----------
        label : str
            The task that is asked for, for messages.
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            It is not here in time.
        WorkerLost
            It was lost with its worker.
        LifecycleError
            It was left there until the Batch ended.
        """
        if self.future is None or self.future.status == "cancelled":
            raise LifecycleError(
                f"the result of task {label} stayed on its worker, and the Batch has ended: "
                "get what is large before"
            )
        future = self.future
        try:
            result = called_aside(lambda: future.result(timeout))
        except TimeoutError:
            raise
        except Exception as error:
            raise WorkerLost(
                f"the result of task {label} was lost with the worker that held it: {error}"
            ) from error
        assert isinstance(result, BlockResult)
        return result

    def hand_out(self, result: BlockResult) -> None:
        """Give each member what the result has of it."""
        for member, record in enumerate(self.records):
            if record.block is self and record.over:
                record.value = result.values[member]
                record.output = result.outputs.get(member, SILENT)

    def members_left(self, members: Iterable[int] | None = None) -> list[TaskRecord]:
        """Give those members that are not over, and have not been placed elsewhere.

        Parameters
        ----------
        members : iterable of int, optional
            Only these; what is no position in the block is none of them.
        """
        count = len(self.records)
        records = (
            self.records
            if members is None
            else [self.records[member] for member in members if 0 <= member < count]
        )
        return [record for record in records if record.block is self and not record.over]


def by_block(records: Iterable[TaskRecord]) -> dict[int, list[int]]:
    """Give the positions of records by the numbers of the blocks that they are in."""
    members: dict[int, list[int]] = {}
    for record in records:
        if record.block is not None:
            members.setdefault(record.block.number, []).append(record.member)
    return members


def blocks_behind(
    some: Iterable[SubmittedBlock], all_: Iterable[SubmittedBlock]
) -> list[SubmittedBlock]:
    """Find the blocks that wait for some others, directly or not."""
    behind: list[SubmittedBlock] = []
    found = set(some)
    # In order of their numbers, each block comes after those that it waits for.
    for block in sorted(all_, key=lambda block: block.number):
        if block not in found and not block.waits.isdisjoint(found):
            found.add(block)
            behind.append(block)
    return behind

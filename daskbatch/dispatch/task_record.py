"""What is kept of a task on its way: what it is to do, where it is, what became of it.

Does not know how it came about or how it moves on. A `daskbatch.batch.task.Task` is a user's
handle on a record; the dispatcher moves records, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, Protocol

from daskbatch.describe.access import Channel
from daskbatch.describe.spec import DEFAULT, Call, Options
from daskbatch.errors import LifecycleError, SerializationError, WorkerLost
from daskbatch.plan.hazards import NEEDS
from daskbatch.worker.execution.outcome import BlockResult
from daskbatch.worker.execution.task_context import called_aside


class Phase(IntEnum):
    """Where a task is on its way. From `DONE` on nothing changes any more."""

    #: Made, and not started.
    CREATED = 0
    #: To be started in the background.
    QUEUED = 1
    #: Started; waits for others, or for a slot.
    WAITING = 2
    #: A worker has begun it.
    RUNNING = 3
    #: It has returned.
    DONE = 4
    #: It has raised, or what it needs has failed.
    FAILED = 5
    #: It will not run.
    CANCELLED = 6


#: The output of a task that wrote nothing.
SILENT = ("", "")


class TaskRecord:
    """A task; or, with nothing to call, a barrier between tasks."""

    __slots__ = (
        "__weakref__",
        "blame",
        "block",
        "call",
        "function",
        "group",
        "home",
        "member",
        "name",
        "number",
        "options",
        "output",
        "overwrites",
        "phase",
        "rank",
        "reads",
        "seconds",
        "value",
        "waits",
        "writes",
    )

    def __init__(
        self,
        home: str,
        number: int,
        name: str,
        call: Call | None,
        options: Options = DEFAULT,
        reads: tuple[Channel, ...] = (),
        writes: tuple[Channel, ...] = (),
    ) -> None:
        # What it is:
        #: The Batch that it belongs to, and its number there.
        self.home = home
        self.number = number
        self.name = name
        self.call = call
        self.options = options
        self.reads = reads
        self.writes = writes
        #: The compiled task that it is a member of.
        self.group: Group | None = None

        # Where it is:
        self.phase = Phase.CREATED
        #: The pickled function, as it was at the start; or why it cannot be pickled.
        self.function: bytes | SerializationError = b""
        #: Its place among all started records; behind those that it waits for.
        self.rank = -1
        #: The records that it waits for, with the reasons as bits. Some are left when it is over
        #: before they are: see `waits_left`.
        self.waits: tuple[tuple[TaskRecord, int], ...] = ()
        #: The records that must not share a block with it.
        self.overwrites: tuple[TaskRecord, ...] = ()
        #: The block that it is in, and its position there; kept when a value stays there.
        self.block: SubmittedBlock | None = None
        self.member = -1

        # What became of it:
        #: Its pickled value or packed exception; None while it is elsewhere.
        self.value: bytes | None = None
        #: Its stdout and stderr; None while they are elsewhere.
        self.output: tuple[str, str] | None = SILENT
        #: How long it ran.
        self.seconds = 0.0
        #: The record whose failure kept it from running.
        self.blame: TaskRecord | None = None

    @property
    def over(self) -> bool:
        return self.phase >= Phase.DONE

    @property
    def unsuccessful(self) -> bool:
        return self.phase > Phase.DONE

    def waits_left(self) -> dict[TaskRecord, int]:
        """Give what it still waits for, with the reasons as bits.

        A task that was cancelled, say, is over before those that it waits for; but others
        wait for them only by way of it, since waits that are implied have been left out.
        """
        left: dict[TaskRecord, int] = {}
        over = []
        for before, why in self.waits:
            if before.over:
                if before.waits:
                    over.append(before)
            else:
                left[before] = why
        seen = set(over)
        while over:
            for before, _ in over.pop().waits:
                if not before.over:
                    left.setdefault(before, 0)
                elif before.waits and before not in seen:
                    seen.add(before)
                    over.append(before)
        return left

    @property
    def uid(self) -> str:
        """A text that no other task has."""
        return f"{self.home}-{self.number}"

    @property
    def label(self) -> str:
        """How messages call it."""
        return repr(self.name)

    @property
    def producers(self) -> Sequence[TaskRecord]:
        """The tasks whose results are among its arguments."""
        if self.call is None or not self.call.references:
            return ()
        return [producer for producer, _ in self.call.references]


class Group:
    """The members of a compiled task, and how many of them are not over yet."""

    __slots__ = ("left", "name", "started")

    def __init__(self, name: str, left: int) -> None:
        self.name = name
        self.left = left
        self.started = False


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


def find_blame(record: TaskRecord) -> TaskRecord | None:
    """Find the task whose failure keeps another from running."""
    for before, why in record.waits:
        if why & NEEDS and before.unsuccessful:
            # A barrier fails for those that it stands for, and is none to blame.
            return before.blame or before
    return None


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

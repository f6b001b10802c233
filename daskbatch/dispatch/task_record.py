"""The client's record of one task, and of the block of tasks that it was submitted in.

A `TaskRecord` holds a task's call, options, accesses, dependencies, current block and outcome.
A `daskbatch.batch.task.Task` is the user's handle of a record. Records are not locked: every
phase is set by `TaskTable.set_phase`, and once a task has been started, only the dispatcher
changes its record.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from time import time
from typing import Any, Protocol

from daskbatch.describe.access import Channel
from daskbatch.describe.spec import DEFAULT_OPTIONS, Call, Options
from daskbatch.errors import LifecycleError, SerializationError, WorkerLost
from daskbatch.plan.hazards import NEEDS
from daskbatch.worker.execution.measures import Measures, MemberBegin
from daskbatch.worker.execution.outcome import BlockResult
from daskbatch.worker.execution.task_context import call_releasing_slot

#: The key of a block in a Dask graph: the name of its submission, and a number.
BlockKey = tuple[str, int]


class Phase(IntEnum):
    """How far a task has come. Nothing changes after `DONE`, unless its lost value is needed."""

    #: Made, and not started.
    CREATED = 0
    #: To be started in the background.
    QUEUED = 1
    #: Started; waits for other tasks, or for a worker slot.
    WAITING = 2
    #: A worker has begun it.
    RUNNING = 3
    #: It has returned.
    DONE = 4
    #: It has raised an exception, or was lost.
    FAILED = 5
    #: It did not run, since a task that it needs has not succeeded.
    SKIPPED = 6
    #: It will not run.
    CANCELLED = 7


#: Looking up a member of an enum takes as long as some of the functions that compare phases.
_DONE = Phase.DONE


#: The stdout and stderr of a task that wrote nothing.
SILENT = ("", "")


class TaskRecord:
    """A task; or, without a call, a barrier between tasks.

    Parameters
    ----------
    client_id : str
        The client that the task belongs to; see `client_names.make_client_id`.
    number : int
        The task's number in that client; -1 for barriers.
    name : str
        The name of its function or executable, or the name that the user gave.
    call : Call, optional
        The function and its arguments; None for a barrier.
    options : Options
        How and where it runs.
    reads, writes : tuple of Channel
        Its declared accesses.
    """

    __slots__ = (
        "__weakref__",
        "base_name",
        "begin",
        "block",
        "call",
        "client_id",
        "created",
        "ended",
        "function",
        "group",
        "measured",
        "member",
        "number",
        "options",
        "output",
        "overwrites",
        "phase",
        "position",
        "rank",
        "reads",
        "reference",
        "removes",
        "root_failure",
        "seconds",
        "strict",
        "value",
        "waits",
        "writes",
    )

    def __init__(
        self,
        client_id: str,
        number: int,
        name: str,
        call: Call | None,
        options: Options = DEFAULT_OPTIONS,
        reads: tuple[Channel, ...] = (),
        writes: tuple[Channel, ...] = (),
    ) -> None:
        # What the task is:
        self.client_id = client_id
        self.number = number
        #: The name without the position. Tasks of one function share it.
        self.base_name = name
        #: In a compiled task: the position among the members of the same name, from 0; -1 if no
        #: other member has this name.
        self.position = -1
        self.call = call
        self.options = options
        self.reads = reads
        self.writes = writes
        #: Those of `writes` by which a file is removed.
        self.removes: tuple[Channel, ...] = ()
        #: In a strict Batch the pickled `strict_access.Rules` of the task.
        self.strict: bytes | None = None
        #: When it was made, in seconds since the epoch.
        self.created = time()
        #: The compiled task or the executor that it is a member of.
        self.group: Group | None = None

        # Where the task is:
        self.phase = Phase.CREATED
        #: The pickled function, as it was at the start; or why it cannot be pickled.
        self.function: bytes | SerializationError = b""
        #: Its position among all started records; larger than those of records it waits for.
        self.rank = -1
        #: The records that it waits for, with the reasons as bits. If this task is over before
        #: they are, those that are not over stay here: see `unfinished_waits`.
        self.waits: tuple[tuple[TaskRecord, int], ...] = ()
        #: The records that read what it overwrites, and must not share a block with it.
        self.overwrites: tuple[TaskRecord, ...] = ()
        #: The block that it was submitted in, and its position there. It is kept after the end
        #: if the value stays on the worker.
        self.block: SubmittedBlock | None = None
        self.member = -1

        # The outcome:
        #: The pickled value or the packed exception; None while it is elsewhere.
        self.value: bytes | None = None
        #: Where the value is stored, while it is elsewhere: the bytes of a `StoredValue`.
        self.reference: bytes | None = None
        #: stdout and stderr; None while they are elsewhere.
        self.output: tuple[str, str] | None = SILENT
        #: How long the task ran.
        self.seconds = 0.0
        #: Where and when it has begun, as far as its worker has reported that.
        self.begin: MemberBegin | None = None
        #: What was measured of the members of a report, this one among them, once it is over.
        self.measured: Measures | None = None
        #: When this client learnt that it is over, if nothing was measured.
        self.ended: float | None = None
        #: The record whose failure kept this task from running.
        self.root_failure: TaskRecord | None = None

    @property
    def over(self) -> bool:
        """Whether the task has an outcome: it is done, failed or cancelled."""
        return self.phase >= Phase.DONE

    @property
    def unsuccessful(self) -> bool:
        """Whether the task has failed or was cancelled."""
        return self.phase > Phase.DONE

    def unfinished_waits(self) -> dict[TaskRecord, int]:
        """Return the unfinished tasks that this one waits for, with the reasons as bits.

        A cancelled task, for example, is over before the tasks that it waits for. Tasks
        after it wait for those through the cancelled task only, because implied waits are
        left out of `waits`. So the waits of finished tasks are followed here.
        """
        unfinished: dict[TaskRecord, int] = {}
        over = []
        for before, why in self.waits:
            if before.phase < _DONE:
                unfinished[before] = why
            elif before.waits:
                over.append(before)
        if not over:
            return unfinished
        seen = set(over)
        while over:
            for before, _ in over.pop().waits:
                if not before.over:
                    unfinished.setdefault(before, 0)
                elif before.waits and before not in seen:
                    seen.add(before)
                    over.append(before)
        return unfinished

    @property
    def restartable(self) -> bool:
        """Whether the task may run again though it reads what it writes."""
        return self.options.restartable

    @property
    def uid(self) -> str:
        """A text that identifies the task among all tasks."""
        return f"{self.client_id}-{self.number}"

    @property
    def name(self) -> str:
        """The name in messages; in a compiled task with the position, if several share it."""
        return self.base_name if self.position < 0 else f"{self.base_name}[{self.position}]"

    @property
    def label(self) -> str:
        """The task's name as it stands in messages."""
        return repr(self.name)

    @property
    def producers(self) -> Sequence[TaskRecord]:
        """The tasks whose results are among the arguments."""
        if self.call is None or not self.call.references:
            return ()
        return [producer for producer, _ in self.call.references]


class Group:
    """The members of a compiled task or of an executor; counts those that are not over.

    The dispatcher changes the count, with its lock held.

    Parameters
    ----------
    name : str
        The name in messages.
    unfinished : int
        The number of members that are not over.
    is_program : bool
        Whether it is a compiled task. Else another object receives the failures of its members.
    """

    __slots__ = (
        "directory",
        "is_program",
        "members",
        "name",
        "prefix",
        "size",
        "started",
        "started_at",
        "uid",
        "unfinished",
        "unsuccessful",
        "writers",
    )

    def __init__(self, name: str, unfinished: int, is_program: bool = False) -> None:
        self.name = name
        self.unfinished = unfinished
        self.is_program = is_program
        #: What is put before the names of its members on Dask's dashboard.
        self.prefix = ""
        self.started = False
        #: The number of members, and when they were started, in seconds since the epoch.
        self.size = unfinished
        self.started_at = 0.0
        #: The uid of the compiled task.
        self.uid = ""
        #: The number of members that are over without success, by their phases.
        self.unsuccessful: Counter[Phase] = Counter()
        #: The members of a compiled task in which any task writes, weakly: a member must not
        #: keep the others.
        self.members: Sequence[weakref.ref[TaskRecord]] = ()
        #: The directory that relative paths of its members are relative to.
        self.directory = ""
        #: Which member writes which path first: its position, and the member; made when needed.
        self.writers: dict[str, tuple[int, weakref.ref[TaskRecord]]] | None = None

    @property
    def phase(self) -> Phase:
        """The phase of the whole, once all members are over."""
        for phase in (Phase.FAILED, Phase.CANCELLED, Phase.SKIPPED):
            if self.unsuccessful[phase]:
                return phase
        return Phase.DONE


class BlockFuture(Protocol):
    """The part of a Dask future that is used here. The key exists as long as its future."""

    @property
    def status(self) -> str: ...
    def result(self, timeout: float | None = None) -> Any: ...
    def release(self) -> None: ...


class _MemberReference(weakref.ref[TaskRecord]):
    """A weak reference to a member of a block that is over."""

    __slots__ = ("member",)

    member: int


class SubmittedBlock:
    """A block that has been, or is about to be, submitted; changed with the dispatcher's lock.

    Parameters
    ----------
    number : int
        Its number in reports and revocations.
    records : sequence of TaskRecord
        Its members. A member that was deferred or revoked refers to another block, or to none.
    """

    __slots__ = (
        "__weakref__",
        "_over",
        "buffer_futures",
        "buffer_keys",
        "expected_seconds",
        "failed",
        "future",
        "held",
        "key",
        "long",
        "lost",
        "number",
        "open",
        "records",
        "small",
        "unfinished",
        "waits",
    )

    def __init__(self, number: int, records: Sequence[TaskRecord]) -> None:
        self.number = number
        self.records = records
        #: The members that are over and held weakly; see `hold_weakly`.
        self._over: dict[int, _MemberReference] = {}
        self.key: BlockKey = ("", number)
        #: The number of members whose outcome has not been reported.
        self.unfinished = len(records)
        #: Whether the result is known to be small, so that order-only edges may carry it.
        self.small = False
        #: Whether the block may run for a long time.
        self.long = False
        #: How long it is expected to run.
        self.expected_seconds = 0.0
        #: Whether it is not submitted: the client sends its members to open blocks, one by one.
        self.held = False
        #: Whether it is an open block: members are added while it runs.
        self.open = False
        #: The blocks that its key waits for.
        self.waits: frozenset[SubmittedBlock] = frozenset()
        self.future: BlockFuture | None = None
        #: Whether what its members returned can no longer be fetched.
        self.lost = False
        #: Whether its key has failed as a whole.
        self.failed = False
        #: The keys of the shared buffers that it takes, and their futures, which must exist
        #: as long as the block runs.
        self.buffer_keys: Sequence[str] = ()
        self.buffer_futures: Sequence[Any] = ()

    @property
    def name(self) -> str:
        """The name of the submission on Dask's dashboard: its key without the nonce."""
        return self.key[0].rpartition("-")[0]

    def fetch(self, label: str, timeout: float | None) -> BlockResult:
        """Return the result from the worker that holds it.

        Parameters
        ----------
        label : str
            The task whose result is wanted, for messages.
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            The result did not arrive in time.
        WorkerLost
            The result was lost with its worker.
        LifecycleError
            The Batch has ended, and with it what its workers held.
        """
        if self.future is None or self.future.status == "cancelled":
            raise LifecycleError(
                f"the result of task {label} stayed on its worker, and the Batch has ended: "
                "get large results before the Batch ends"
            )
        future = self.future
        try:
            result = call_releasing_slot(lambda: future.result(timeout))
        except TimeoutError:
            raise
        except Exception as error:
            # Dask keeps the exception in the future's state, and raises it. With its traceback it
            # would refer to the frames here, and these to the future and to the task: for ever.
            error.__traceback__ = None
            raise WorkerLost(
                f"the result of task {label} was lost with the worker that held it: {error}"
            ) from error
        assert isinstance(result, BlockResult)
        return result

    def hold_weakly(
        self, members: range | None = None, dropped: Callable[[int], object] | None = None
    ) -> None:
        """Hold members that are over only as long as other objects do.

        A member whose value is on a worker refers to its block. If the block referred to it, too,
        both would exist until Python collects cycles, and the value as long.

        Parameters
        ----------
        members : range, optional
            The members; others stay as they are. None for all, once the block itself is over.
        dropped : callable, optional
            Called with each member that no longer exists, and whose value is in the block. It is
            called at any moment, in any thread.
        """
        if members is None:
            for member, record in enumerate(self.records):
                if record.block is self:
                    self._refer(member, record, None)
            self.records = (_NO_RECORD,) * len(self.records)
            return
        assert isinstance(self.records, list)

        def call(reference: Any) -> None:
            assert dropped is not None
            dropped(reference.member)

        for member in members:
            record = self.records[member]
            if record.over:
                if record.block is self:  # its value is on the worker
                    self._refer(member, record, None if dropped is None else call)
                self.records[member] = _NO_RECORD

    def _refer(self, member: int, record: TaskRecord, call: Callable[[Any], None] | None) -> None:
        reference = self._over[member] = _MemberReference(record, call)
        reference.member = member

    def find_record(self, member: int) -> TaskRecord | None:
        """Return a member; None if it is in another block, or no longer exists."""
        reference = self._over.get(member)
        if reference is not None:
            return reference()
        record = self.records[member] if member < len(self.records) else _NO_RECORD
        return None if record is _NO_RECORD else record

    def _members_over(self) -> list[tuple[int, TaskRecord]]:
        """Return the members that are over, and whose values are in the block."""
        found = [(member, reference()) for member, reference in list(self._over.items())]
        return [
            (member, record)
            for member, record in (*enumerate(self.records), *found)
            if record is not None
            and record.block is self
            and record.member == member
            and record.over
        ]

    @property
    def is_needed(self) -> bool:
        """Whether any task is in this block, or has its value there."""
        return any(record.block is self for record in self.records) or bool(self._members_over())

    def drop_member(self, member: int) -> None:
        """Put a record that no block has in the place of a member of an open block."""
        assert isinstance(self.records, list)
        self.records[member] = _NO_RECORD

    def distribute(self, result: BlockResult) -> None:
        """Store each member's part of the result in the member's record."""
        for member, record in self._members_over():
            record.value = result.values[member]
            record.output = result.outputs.get(member, SILENT)

    def unfinished_members(self, members: Iterable[int] | None = None) -> list[TaskRecord]:
        """Return the members that are not over and have not been placed in another block.

        Parameters
        ----------
        members : iterable of int, optional
            Only these positions; numbers that are not a position in the block are ignored.
        """
        count = len(self.records)
        records = (
            self.records
            if members is None
            else [self.records[member] for member in members if 0 <= member < count]
        )
        return [record for record in records if record.block is self and not record.over]


#: In the place of a member that an open block has returned.
_NO_RECORD = TaskRecord("", -1, "", None)


def find_root_failure(record: TaskRecord) -> TaskRecord | None:
    """Return the task whose failure keeps a task from running; None if there is none."""
    for before, why in record.waits:
        if before.phase > _DONE and why & NEEDS:
            # A barrier fails on behalf of the tasks before it, and is not itself the cause.
            return before.root_failure or before
    return None


def members_by_block(records: Iterable[TaskRecord]) -> dict[int, list[int]]:
    """Return the positions of records in their blocks, by the blocks' numbers."""
    members: dict[int, list[int]] = {}
    for record in records:
        if record.block is not None:
            members.setdefault(record.block.number, []).append(record.member)
    return members


def dependent_blocks(
    blocks: Iterable[SubmittedBlock], candidates: Iterable[SubmittedBlock]
) -> list[SubmittedBlock]:
    """Return those of the candidates that wait for one of the blocks, directly or not."""
    dependent: list[SubmittedBlock] = []
    found = set(blocks)
    # In order of their numbers, each block comes after those that it waits for.
    for block in sorted(candidates, key=lambda block: block.number):
        if block not in found and not block.waits.isdisjoint(found):
            found.add(block)
            dependent.append(block)
    return dependent

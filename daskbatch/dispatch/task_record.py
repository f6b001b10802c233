"""What is kept of a task on its way: what it is to do, where it is, what became of it.

Does not know how it came about or how it moves on. A `daskbatch.batch.task.Task` is a user's
handle on a record; the dispatcher moves records, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from daskbatch.describe.access import Channel
from daskbatch.describe.spec import DEFAULT, Call, Options
from daskbatch.errors import SerializationError
from daskbatch.plan.hazards import NEEDS

if TYPE_CHECKING:
    from daskbatch.dispatch.placement import SubmittedBlock


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


def find_blame(record: TaskRecord) -> TaskRecord | None:
    """Find the task whose failure keeps another from running."""
    for before, why in record.waits:
        if why & NEEDS and before.unsuccessful:
            # A barrier fails for those that it stands for, and is none to blame.
            return before.blame or before
    return None

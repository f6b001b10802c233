"""Records a gang on the scheduler, from the moment when it could run to its end.

Not thread-safe: the scheduler's event loop alone uses these records.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from daskbatch.cluster.gang_plan import GangRequest
from daskbatch.cluster.slot_holders import Holder
from daskbatch.dispatch.slot_choice import SlotChoice

#: The slots of a gang that was granted none.
NO_SLOTS = SlotChoice((), ())


class GangState(Enum):
    """How far a gang has come; the value is for people."""

    #: It waits for its slots.
    WAITING = "waits for its slots"
    #: Its task has its slots.
    RUNNING = "has its slots"
    #: Its task waits inside; its slots are lent.
    LENDING = "has lent its slots, because its task waits"
    #: Its task has finished waiting, and wants its slots back.
    REGAINING = "waits for the slots that it has lent"
    #: Dask has dropped it, and its worker has not confirmed yet that it has ended.
    ENDING = "is being stopped"


@dataclass(slots=True, eq=False)
class GangRun:
    """A gang whose inputs are there. Changed by the `GangAllocator` alone.

    Parameters
    ----------
    number : int
        Its number; later ones have come later.
    key : object
        Its Dask key.
    level : float
        The first part of its priority in Dask: the negative of what the user has set.
    request : GangRequest
        What it asks for.

    Attributes
    ----------
    choice : SlotChoice
        The slots that it was granted.
    holders : list of Holder
        Those that hold, or are to hold, slots for it. When it runs, its task itself has the first
        slot.
    collecting_since : float, optional
        When it began to collect slots, by `monotonic`.
    wait : int
        The number of its task's last wait.
    why : str
        What it waits for, for people.
    """

    number: int
    key: Any
    level: float
    request: GangRequest
    state: GangState = GangState.WAITING
    choice: SlotChoice = NO_SLOTS
    holders: list[Holder] = field(default_factory=list)
    collecting_since: float | None = None
    wait: int = 0
    why: str = ""

    @property
    def head(self) -> str:
        """The worker that runs its task; empty before the slots are granted."""
        return self.choice.slots[0].address if self.choice.slots else ""

    @property
    def wants_slots(self) -> bool:
        """Whether it collects slots, or waits until it may."""
        return self.state in (GangState.WAITING, GangState.REGAINING)

    @property
    def order(self) -> tuple[bool, float, int]:
        """The smallest one is served first: a gang whose task has begun comes before others."""
        return self.state is not GangState.REGAINING, self.level, self.number

"""What the feeder needs of its surroundings: of the table of tasks, the backend, the connections.

All is called with the dispatcher's lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from daskbatch.dispatch.lower import Lowered
from daskbatch.dispatch.task_record import SubmittedBlock, TaskRecord
from daskbatch.dispatch.unsuccessful import UnsuccessfulTasks
from daskbatch.worker.handshake import ServerAddress


class LinkMaker(Protocol):
    """Connects to open blocks in the background."""

    def connect(self, block: int, address: ServerAddress) -> None:
        """Connect to an open block; the answer is `link_opened` or `link_lost` of the listener."""


class OpenSubmitter(Protocol):
    """The part of a backend that is used here; see `backend.Backend`."""

    @property
    def slots(self) -> int: ...

    @property
    def shares_memory(self) -> bool: ...

    def submit(self, lowered: Lowered, again: bool) -> object: ...

    def call_later(self, seconds: float, function: Callable[[], None]) -> None: ...


class Table(Protocol):
    """The part of the `TaskTable` that is used here."""

    @property
    def live(self) -> dict[int, SubmittedBlock]: ...

    def add_block(self, block: SubmittedBlock) -> None: ...

    def next_number(self) -> int: ...

    def expected_seconds(self, record: TaskRecord) -> float | None: ...

    def largest_value(self, record: TaskRecord) -> int: ...

    def may_run(self, record: TaskRecord) -> bool: ...

    def revive_lost(self, record: TaskRecord) -> list[TaskRecord] | None: ...

    unsuccessful: UnsuccessfulTasks

    def requeue(self, block: SubmittedBlock, record: TaskRecord) -> None: ...

    def settle_member(
        self, block: SubmittedBlock, record: TaskRecord, status: int, value: bytes | None = None
    ) -> None: ...

    def place_in_blocks(self, records: Sequence[TaskRecord], name: str) -> None: ...

    def flush_later(self) -> None: ...

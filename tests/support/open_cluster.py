"""A cluster of open blocks that runs nothing and obeys a seed.

The seed decides which open block opens, runs its next member, closes with members unread, loses its
connection or its worker, and in which order the client learns that.
"""

from __future__ import annotations

import pickle
import random
from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from daskbatch.describe.spec import DEFAULT_OPTIONS, Options, function_call
from daskbatch.dispatch.backend import Members, RevokeCallback
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.lower import Lowered, Setting
from daskbatch.dispatch.task_record import Phase, SubmittedBlock, TaskRecord
from daskbatch.plan.hazards import ARG, NEEDS, WAR
from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import (
    LOCAL,
    ClosedReport,
    OpenedReport,
    OutcomeReport,
    Report,
    SilentPeerReport,
)
from daskbatch.worker.execution.journal import NOT_MEASURED, JournaledBlock
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.handshake import ServerAddress
from daskbatch.worker.open_blocks.messages import END, decode_members

VALUE = pickling.dumps(7)


def task(*_: Any) -> int:
    return 7


class Worker:
    """An open block as its worker sees it."""

    def __init__(self, cluster: Cluster, block: SubmittedBlock) -> None:
        self.cluster = cluster
        self.block = block
        self.announced = self.connected = self.closed = self.dead = False
        self.unread: deque[bytes] = deque()
        self.members: list[Any] = []
        self.statuses: list[int] = []
        self.reported = 0
        #: The blocks that it receives outcomes of, and sends some to.
        self.sources: list[int] = []
        self.peers: list[int] = []
        self.forwards: dict[int, list[int]] = {}
        self.arrived: dict[tuple[int, int], Status] = {}

    # As the link of the client:

    def send(self, *frames: bytes) -> None:
        if not self.dead:
            self.unread.extend(frames)

    def shut_down(self) -> None:
        self.connected = False

    # As the worker:

    def read(self) -> None:
        while self.unread and not self.closed:
            frame = self.unread.popleft()
            if frame == END:
                self.closed = True
                return
            _, members, _, dropped, sources, peers, forwards = decode_members(frame)
            assert all(number < len(self.statuses) for number in dropped)
            self.members += members
            self.sources += sources
            self.peers += [each.block for each in peers]
            for member, peer in forwards:
                self.forwards.setdefault(member, []).append(self.peers[peer])
                if member < len(self.statuses):
                    self.forward(member)

    def forward(self, member: int) -> None:
        """Send the outcome of a member that is over to the blocks that wait for it."""
        for peer in self.forwards.pop(member, ()):
            other = self.cluster.workers.get(peer)
            if other is not None and not self.cluster.links_are_cut:
                done = self.statuses[member] == Status.DONE
                status = Status.DONE if done else Status.DEFERRED
                other.arrived[self.block.number, member] = status

    def arrived_status(self, position: int, other: int) -> int | None:
        """Return the status of a member of another block; None while it may still arrive."""
        number = self.sources[position]
        status = self.arrived.get((number, other))
        if status is not None:
            return status
        producer = self.cluster.workers.get(number)
        if producer is not None:
            # It waits for longer than the client needs to learn the outcome.
            may_arrive = not self.cluster.links_are_cut or producer.reported <= other
            if may_arrive and self.cluster.rng.random() >= self.cluster.impatience:
                return None
            self.cluster.notify(SilentPeerReport(self.block.number, number, other))
        self.arrived[number, other] = Status.DEFERRED
        return Status.DEFERRED

    def run_next(self) -> None:
        """Run a member, if there is one; check that all that it waits for is over."""
        number = len(self.statuses)
        if number == len(self.members):
            return
        link = self.members[number][3]
        status = Status.DONE
        for source in () if link is None else (*link.needs, *link.after):
            position, other = source
            if position == LOCAL:
                assert other < number
                found: int | None = self.statuses[other]
            else:
                found = self.arrived_status(position, other)
                self.cluster.streamed += found == Status.DONE
            if found is None:
                return
            if found == Status.DEFERRED:
                status = Status.DEFERRED
            elif found and source in link.needs and not status:
                status = Status.SKIPPED
        revoked = self.cluster.revoked.get((self.block.number, number))
        if revoked is not None:
            status = revoked
        elif status == Status.DONE:
            status = self.cluster.run(self.block.records[number])
        self.statuses.append(status)
        self.forward(number)

    def defer_rest(self) -> None:
        self.closed = True
        while len(self.statuses) < len(self.members):
            self.statuses.append(Status.DEFERRED)
            self.forward(len(self.statuses) - 1)

    def report(self) -> None:
        stop = len(self.statuses)
        if self.reported < stop:
            report = self.outcomes(self.reported, stop)
            self.reported = stop
            self.cluster.notify(report)

    def closed_report(self, gave_way: bool = False) -> ClosedReport:
        return ClosedReport(self.block.number, len(self.members), gave_way)

    def outcomes(self, start: int, stop: int) -> OutcomeReport:
        some = self.statuses[start:stop]
        values = [
            VALUE if each <= Status.FAILED and record not in self.cluster.large else None
            for each, record in zip(some, self.block.records[start:stop], strict=True)
        ]
        references: dict[int, bytes] = {}
        if self.cluster.stores_values:
            values, references = [None] * len(some), dict.fromkeys(range(start, stop), VALUE)
        seconds = array("f", [self.cluster.seconds] * len(some)).tobytes()
        return OutcomeReport(
            *(self.block.number, start, bytes(some), values, seconds, {}), references=references
        )


class BufferFuture:
    """The future of large data that is a Dask key."""

    status = "finished"


class Cluster:
    """A `Backend` on which a seed decides what happens next."""

    def __init__(self, seed: int, slots: int = 3) -> None:
        self.slots = slots
        self.rng = random.Random(seed)
        self.open_links = self
        self.shares_memory = False
        self.stores_values = False
        self.dispatcher: Dispatcher
        self.workers: dict[int, Worker] = {}
        self.ordinary: dict[int, SubmittedBlock] = {}
        self.revoked: dict[tuple[int, int], Status] = {}
        self.ran: Counter[TaskRecord] = Counter()
        self.fails: set[TaskRecord] = set()
        #: The tasks whose values stay on their workers.
        self.large: set[TaskRecord] = set()
        self.later: list[Callable[[], None]] = []
        #: How long each task takes.
        self.seconds = 0.001
        #: How often a block gives up an outcome of another one; and whether none arrives.
        self.impatience = 0.0
        self.links_are_cut = False
        #: How many outcomes of other blocks were used.
        self.streamed = 0
        #: Whether workers leave a journal when they die.
        self.has_journals = True

    # What the client calls:

    def submit(self, lowered: Lowered, again: bool) -> Mapping[str, Any]:
        for block in lowered.blocks.values():
            if block.open:
                self.workers[block.number] = Worker(self, block)
            else:
                assert not any(other.held for other in block.waits), "Dask would refuse its key"
                self.ordinary[block.number] = block
        return {key: BufferFuture() for key in lowered.buffers}

    def connect(self, block: int, address: ServerAddress) -> None:
        worker = self.workers[block]

        def answer() -> None:
            if worker.dead:
                self.dispatcher.link_lost(block, False)
            else:
                worker.connected = True
                self.dispatcher.link_opened(block, worker)

        self.later.append(answer)

    def require_alive(self) -> None:
        pass

    def has_cancelled(self, block: SubmittedBlock) -> bool:
        return False

    def release(self, block: SubmittedBlock) -> None:
        pass

    def forget(self, blocks: Sequence[int]) -> None:
        pass

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        assert seconds < 10, "it waits for the report of a death, and no result was lost"
        self.later.append(function)

    def revoke(
        self, members: Members, status: Status, then: RevokeCallback, begun: bool = True
    ) -> None:
        not_begun = {}
        for block, some in members.items():
            worker = self.workers.get(block)
            begun_here = 0 if worker is None else len(worker.statuses)
            not_begun[block] = [member for member in some if member >= begun_here]
            for member in not_begun[block]:
                self.revoked[block, member] = status
        then(not_begun, {})

    # What happens:

    def notify(self, report: Report) -> None:
        self.dispatcher.report_all([pickle.dumps(report)])

    def run(self, record: TaskRecord) -> Status:
        self.ran[record] += 1
        return Status.FAILED if record in self.fails else Status.DONE

    def step(self, faults: bool) -> None:
        choices: list[Callable[[], None]] = []
        if self.later:
            number = self.rng.randrange(len(self.later))
            choices.append(lambda: self.later.pop(number)())
        for worker in list(self.workers.values()):
            if not worker.announced:
                choices.append(lambda w=worker: self._announce(w))
                continue
            choices += [worker.read, worker.run_next, worker.run_next, worker.report]
            if worker.closed and len(worker.statuses) == len(worker.members):
                choices.append(lambda w=worker: self._finish(w))
            if faults and self.rng.random() < 0.03:
                choices.append(lambda w=worker: self._fault(w))
        for block in list(self.ordinary.values()):
            unfinished = self.ordinary.keys() | self.workers.keys()
            if all(each.number not in unfinished for each in block.waits):
                choices.append(lambda b=block: self._run_ordinary(b))
        if choices:
            self.rng.choice(choices)()

    def run_all(self) -> None:
        """Have the client learn all that has happened, then each worker run one task."""
        while self.later or any(not worker.announced for worker in self.workers.values()):
            for worker in list(self.workers.values()):
                if not worker.announced:
                    self._announce(worker)
            while self.later:
                self.later.pop(0)()
        for worker in list(self.workers.values()):
            worker.read()
            worker.run_next()
        for worker in list(self.workers.values()):
            worker.report()

    def _announce(self, worker: Worker) -> None:
        worker.announced = True
        report = OpenedReport(worker.block.number, ServerAddress("host", 1, b"a secret", False))
        self.dispatcher.report(pickle.dumps(report))

    def _run_ordinary(self, block: SubmittedBlock) -> None:
        del self.ordinary[block.number]
        statuses: list[Status] = []
        for member, record in enumerate(block.records):
            waits = record.unfinished_waits()
            local = [before.member for before in waits if before.block is block]
            revoked = self.revoked.get((block.number, member))
            if len(local) < len(waits) or any(statuses[n] == Status.DEFERRED for n in local):
                statuses.append(Status.DEFERRED)  # an open block has returned what it waits for
            elif revoked is not None:
                statuses.append(revoked)
            elif any(
                statuses[before.member]
                for before, why in record.waits
                if before.block is block and why & NEEDS
            ):
                statuses.append(Status.SKIPPED)
            else:
                assert record.block is block
                assert not record.over
                statuses.append(self.run(record) if record.call else Status.DONE)
        values = [None if record in self.large else VALUE for record in block.records]
        seconds = array("f", [self.seconds] * len(statuses)).tobytes()
        self.notify(OutcomeReport(block.number, 0, bytes(statuses), values, seconds, {}))
        self.dispatcher.key_finished(block)

    def _finish(self, worker: Worker) -> None:
        """End the key; the client may learn of the closing only by that."""
        del self.workers[worker.block.number]
        if self.rng.random() < 0.5:
            worker.report()
            self.notify(worker.closed_report())
        values = [VALUE if each <= Status.FAILED else None for each in worker.statuses]
        result = BlockResult(bytes(worker.statuses), values, empty=not worker.statuses)
        lacks = worker.block.unfinished
        self.dispatcher.key_finished(worker.block, result if lacks else None)

    def _fault(self, worker: Worker) -> None:
        kind = self.rng.choice(["close", "defer", "cut", "die"])
        if kind == "close":
            worker.closed = True
            if self.rng.random() < 0.7:  # the end of the key may be faster
                self.notify(worker.closed_report(gave_way=self.rng.random() < 0.5))
        elif kind == "defer":
            worker.defer_rest()
        elif kind == "cut":
            worker.defer_rest()
            self.dispatcher.link_lost(worker.block.number, self.rng.random() < 0.1)
        else:
            worker.dead = True
            self.workers.pop(worker.block.number, None)
            self.later.append(lambda: self.dispatcher.link_lost(worker.block.number, False))
            # The journal has what is over.
            trace = JournaledBlock("topic", worker.block.number)
            for member, status in enumerate(worker.statuses):
                trace.entries[member] = (member, status, VALUE, 0.001, None, *NOT_MEASURED)
            died = self.dispatcher.worker_died
            traces = [trace] if self.has_journals else None
            self.later.append(lambda: died([worker.block.key], {}, traces))


def make(seed: int, slots: int = 3) -> tuple[Dispatcher, Cluster]:
    cluster = Cluster(seed, slots)
    setting = Setting("topic", lambda payload: payload, 0.2, 1 << 20, 1 << 16, 1 << 20)
    dispatcher = cluster.dispatcher = Dispatcher(cluster, setting)
    return dispatcher, cluster


def make_records(
    rng: random.Random, count: int, mixed: bool, kinds: Sequence[Options] = (DEFAULT_OPTIONS,)
) -> list[TaskRecord]:
    """Return tasks that wait for earlier ones; `mixed` ones cannot all be members."""
    records: list[TaskRecord] = []
    for number in range(count):
        options = rng.choice(kinds)
        if mixed and rng.random() < 0.1:
            options = rng.choice(
                [Options(priority=1.0), Options(isolated=True), Options(isolated=True, fresh=True)]
            )
        call = None if mixed and rng.random() < 0.05 else function_call(task, (number,), {})
        record = TaskRecord("client", number, "task", call, options)
        near = range(max(0, number - 10), number)
        some = rng.sample(near, rng.randrange(min(len(near), 3) + 1))
        record.waits = tuple((records[each], rng.choice([ARG, WAR])) for each in some)
        records.append(record)
    return records


def finish(cluster: Cluster, records: Sequence[TaskRecord], faults: bool) -> None:
    steps = 0
    while not all(record.over for record in records):
        cluster.step(faults)
        steps += 1
        assert steps < 100_000, [record for record in records if not record.over][:3]


def finish_in_order(
    dispatcher: Dispatcher, cluster: Cluster, records: Sequence[TaskRecord], faults: bool
) -> None:
    """Run tasks; check that all are done, each after those that it waits for."""
    order: list[TaskRecord] = []
    run = cluster.run

    def remember(record: TaskRecord) -> Status:
        order.append(record)
        return run(record)

    cluster.run = remember  # type: ignore[method-assign]
    waits = {record: record.waits for record in records}
    dispatcher.submit(records, "test")
    finish(cluster, records, faults)
    assert {record.phase for record in records} == {Phase.DONE}
    position = {record: number for number, record in enumerate(order)}
    for record in order:
        for before, _ in waits[record]:
            assert before.call is None or position[before] < position[record]


def finish_with_failures(
    dispatcher: Dispatcher, cluster: Cluster, records: Sequence[TaskRecord], rng: random.Random
) -> None:
    """Run tasks of which some fail, and cancel three; check what becomes of each."""
    waits = {record: record.waits for record in records}
    to_cancel = rng.sample(records, 3)
    dispatcher.submit(records, "test")
    for _ in range(rng.randrange(250)):
        cluster.step(False)
    cancelled = set(dispatcher.cancel(to_cancel))
    finish(cluster, records, False)
    for record in records:
        needed = [before for before, why in waits[record] if why & ARG]
        if record in cancelled:
            assert record.phase == Phase.CANCELLED
        elif any(before.unsuccessful for before in needed):
            assert record.phase == Phase.SKIPPED
            assert record.root_failure in cluster.fails | cancelled
        elif record in cluster.fails:
            assert record.phase == Phase.FAILED
        else:
            assert record.phase == Phase.DONE

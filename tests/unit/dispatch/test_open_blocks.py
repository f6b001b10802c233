"""The client feeds open blocks rightly, whatever happens to them: a cluster that obeys a seed.

The cluster here runs nothing. A seed decides which open block opens, runs its next member, closes
with members unread, loses its connection or its worker, and in which order the client learns that.
"""

from __future__ import annotations

import itertools
import math
import pickle
import random
from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from daskbatch.describe.spec import DEFAULT_OPTIONS, Options, function_call
from daskbatch.dispatch.backend import Members, RevokeCallback
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.lower import Lowered, Setting
from daskbatch.dispatch.open_blocks import open_block
from daskbatch.dispatch.task_record import Phase, SubmittedBlock, TaskRecord
from daskbatch.plan.hazards import ARG, WAR
from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import (
    LOCAL,
    BlockSpec,
    ClosedReport,
    OpenedReport,
    OutcomeReport,
    Report,
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
            _, members, _, dropped = decode_members(frame)
            assert all(number < len(self.statuses) for number in dropped)
            self.members += members

    def run_next(self) -> None:
        """Run a member, if there is one; check that all that it waits for is over."""
        number = len(self.statuses)
        if number == len(self.members):
            return
        link = self.members[number][3]
        status = Status.DONE
        for source in () if link is None else (*link.needs, *link.after):
            position, other = source
            assert position == LOCAL
            assert other < number
            if self.statuses[other] == Status.DEFERRED:
                status = Status.DEFERRED
            elif self.statuses[other] and source in link.needs and not status:
                status = Status.SKIPPED
        revoked = self.cluster.revoked.get((self.block.number, number))
        if revoked is not None:
            status = revoked
        elif status == Status.DONE:
            status = self.cluster.run(self.block.records[number])
        self.statuses.append(status)

    def defer_rest(self) -> None:
        self.closed = True
        while len(self.statuses) < len(self.members):
            self.statuses.append(Status.DEFERRED)

    def report(self) -> None:
        stop = len(self.statuses)
        if self.reported < stop:
            report = self.outcomes(self.reported, stop)
            self.reported = stop
            self.cluster.notify(report)

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

    # What the client calls:

    def submit(self, lowered: Lowered, again: bool) -> Mapping[str, Any]:
        for block in lowered.blocks.values():
            if block.open:
                self.workers[block.number] = Worker(self, block)
            else:
                assert not any(other.held for other in block.waits), "Dask would refuse its key"
                self.ordinary[block.number] = block
        return {}

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
        report = OpenedReport(worker.block.number, "host", 1, b"", False)
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
            self.notify(ClosedReport(worker.block.number, len(worker.members)))
        values = [VALUE if each <= Status.FAILED else None for each in worker.statuses]
        result = BlockResult(bytes(worker.statuses), values, empty=not worker.statuses)
        lacks = worker.block.unfinished
        self.dispatcher.key_finished(worker.block, result if lacks else None)

    def _fault(self, worker: Worker) -> None:
        kind = self.rng.choice(["close", "defer", "cut", "die"])
        if kind == "close":
            worker.closed = True
            if self.rng.random() < 0.7:  # the end of the key may be faster
                self.notify(ClosedReport(worker.block.number, len(worker.members)))
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
            self.later.append(lambda: died([worker.block.key], {}, [trace]))


def make(seed: int, slots: int = 3) -> tuple[Dispatcher, Cluster]:
    cluster = Cluster(seed, slots)
    setting = Setting("topic", lambda payload: payload, 0.2, 1 << 20, 1 << 16, 1 << 20)
    dispatcher = cluster.dispatcher = Dispatcher(cluster, setting)
    return dispatcher, cluster


def make_records(rng: random.Random, count: int, mixed: bool) -> list[TaskRecord]:
    records: list[TaskRecord] = []
    for number in range(count):
        options = DEFAULT_OPTIONS
        if mixed and rng.random() < 0.1:
            options = rng.choice([Options(priority=1.0), Options(isolated=True)])
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


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("faults", [False, True])
def test_all_tasks_end_once_and_in_order(seed: int, faults: bool) -> None:
    rng = random.Random(seed)
    dispatcher, cluster = make(seed, slots=rng.choice([1, 2, 5]))
    records = make_records(rng, 80, mixed=seed % 2 == 0)
    order: list[TaskRecord] = []
    run = cluster.run

    def check(record: TaskRecord) -> Status:
        order.append(record)
        return run(record)

    cluster.run = check  # type: ignore[method-assign]
    waits = {record: record.waits for record in records}
    dispatcher.submit(records, "test")
    finish(cluster, records, faults)
    assert {record.phase for record in records} == {Phase.DONE}
    position = {record: number for number, record in enumerate(order)}
    for record in order:
        for before, _ in waits[record]:
            assert before.call is None or position[before] < position[record]
    calls = [record for record in records if record.call is not None]
    assert set(cluster.ran) == set(calls)
    # Each outcome is known, by a report, a key or a journal: nothing runs a second time.
    assert set(cluster.ran.values()) == {1}
    assert dispatcher.outcomes.unfinished == 0


@pytest.mark.parametrize("seed", range(20))
def test_failures_and_cancellations_reach_what_needs_them(seed: int) -> None:
    rng = random.Random(seed)
    dispatcher, cluster = make(seed)
    records = make_records(rng, 60, mixed=seed % 2 == 0)
    waits = {record: record.waits for record in records}
    cluster.fails = {record for record in rng.sample(records, 2) if record.call is not None}
    to_cancel = rng.sample(records, 3)
    dispatcher.submit(records, "test")
    for _ in range(rng.randrange(200)):
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


def test_an_ordinary_task_waits_for_a_held_one_by_way_of_a_cancelled_one() -> None:
    """It is held, too: the Dask key of its block could not depend on a task that has no key."""
    dispatcher, cluster = make(0, slots=2)
    records = make_records(random.Random(0), 40, mixed=False)
    awaited, cancelled = records[-2:]
    cancelled.waits = ((awaited, WAR),)
    dispatcher.submit(records, "test")
    dispatcher.cancel([cancelled])
    assert awaited.block is not None
    assert awaited.block.held
    options = Options(isolated=True)
    last = TaskRecord("client", 99, "last", function_call(task, (), {}), options)
    last.waits = ((cancelled, WAR),)
    dispatcher.submit([last], "test")
    finish(cluster, [*records, last], False)
    assert last.phase == awaited.phase == Phase.DONE
    assert cancelled.phase == Phase.CANCELLED


@pytest.mark.parametrize("seed", range(10))
def test_a_lost_value_is_made_again_for_a_task_that_is_held(seed: int) -> None:
    rng = random.Random(seed)
    dispatcher, cluster = make(seed, slots=2)
    records = make_records(rng, 40, mixed=False)
    producer, *others = records
    producer.waits = ()
    cluster.large = {producer}
    # The last ones take its value, and wait for all that is between.
    takers = records[30:]
    for taker in takers:
        assert taker.call is not None
        taker.call = taker.call._replace(references=((producer, "result"),))
        taker.waits = tuple((before, ARG) for before in (producer, *records[20:30]))
    dispatcher.submit(records, "test")
    while not producer.over:
        cluster.step(False)
    assert producer.block is not None
    assert not any(taker.over for taker in takers)
    dispatcher.values_lost([producer.block.key])
    finish(cluster, records, False)
    assert {record.phase for record in records} == {Phase.DONE}
    assert cluster.ran[producer] == 2
    assert {cluster.ran[record] for record in others} == {1}


def test_members_are_sent_together_while_a_block_has_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[int] = []
    send = Worker.send

    def count(worker: Worker, *frames: bytes) -> None:
        sent.extend(len(decode_members(frame).members) for frame in frames if frame != END)
        send(worker, *frames)

    monkeypatch.setattr(Worker, "send", count)

    def run() -> tuple[int, int]:
        """Return the number of messages, and how often each worker ran a task."""
        dispatcher, cluster = make(0, slots=2)
        cluster.seconds = 0.0001
        first = make_records(random.Random(0), 1, mixed=False)
        dispatcher.submit(first, "test")
        finish(cluster, first, False)  # it is known now how long they take
        sent.clear()
        records = make_records(random.Random(0), 300, mixed=False)
        for number, record in enumerate(records):
            before = records[max(0, number - 30) : max(0, number - 28)]
            record.waits = tuple((each, ARG) for each in before)
        dispatcher.submit(records, "test")
        rounds = 0
        while not all(record.over for record in records):
            cluster.run_all()
            rounds += 1
            assert rounds <= len(records)
        assert sum(sent) == len(records)
        return len(sent), rounds

    messages, rounds = run()
    monkeypatch.setattr(open_block, "_MIN_SENT_SECONDS", math.inf)
    messages_at_once, rounds_at_once = run()
    assert messages < messages_at_once / 3
    assert rounds == rounds_at_once  # no block has waited for a message


@pytest.mark.parametrize("seconds", [0.0001, 0.00025, 0.001, 0.02])
def test_slots_share_a_graph_whose_tasks_wait_for_neighbours(seconds: float) -> None:
    dispatcher, cluster = make(0, slots=2)
    cluster.seconds = seconds
    first = make_records(random.Random(0), 1, mixed=False)
    dispatcher.submit(first, "test")
    finish(cluster, first, False)  # it is known now how long they take
    width, steps = 8, 20
    records = make_records(random.Random(0), width * steps, mixed=False)
    for number, record in enumerate(records):
        step, x = divmod(number, width)
        before = range(max(0, x - 1), min(width, x + 2)) if step else ()
        record.waits = tuple((records[(step - 1) * width + each], ARG) for each in before)
    dispatcher.submit(records, "test")
    rounds = 0
    while not all(record.over for record in records):
        cluster.run_all()
        rounds += 1
        assert rounds <= len(records)
    assert rounds <= len(records) / 2 + 5


def test_single_calls_reuse_an_open_block() -> None:
    dispatcher, cluster = make(0)
    for number in range(10):
        records = make_records(random.Random(0), 1, mixed=False)
        dispatcher.submit(records, "test")
        finish(cluster, records, False)
        # The first call of a function is in an ordinary block: how long it takes is not known.
        assert len(cluster.workers) == min(number, 1)


def test_an_open_block_ends_when_an_ordinary_one_takes_a_value_of_it() -> None:
    """The key of the ordinary one waits for the open one, which would stay open for others."""
    dispatcher, cluster = make(0, slots=2)
    cluster.stores_values = True
    producers = make_records(random.Random(0), 8, mixed=False)
    for each in producers:
        each.waits = ()
    (consumer,) = make_records(random.Random(0), 1, mixed=False)
    assert consumer.call is not None
    consumer.call = consumer.call._replace(references=tuple((each, "result") for each in producers))
    consumer.waits = tuple((each, ARG) for each in producers)
    opened = 0
    submit = cluster.submit

    def count(lowered: Lowered, again: bool) -> Mapping[str, Any]:
        nonlocal opened
        opened += sum(block.open for block in lowered.blocks.values())
        return submit(lowered, again)

    cluster.submit = count  # type: ignore[method-assign]
    dispatcher.submit([*producers, consumer], "test")
    finish(cluster, [*producers, consumer], False)
    assert opened
    assert consumer.phase == Phase.DONE
    assert set(cluster.ran.values()) == {1}


@pytest.mark.parametrize("known", [True, False])
def test_no_slot_waits_for_a_long_way_to_the_end(known: bool) -> None:
    dispatcher, cluster = make(0, slots=2)
    cluster.seconds = 0.02
    if known:
        first = make_records(random.Random(0), 1, mixed=False)
        dispatcher.submit(first, "test")
        finish(cluster, first, False)
    records = [TaskRecord("client", n, "task", function_call(task, (n,), {})) for n in range(39)]
    # Last in the program, and first in time: nothing may delay a chain of half of the tasks.
    chain = [records[0], *records[20:]]
    for record in records[1:20]:
        record.waits = ((chain[0], ARG),)
    for before, record in itertools.pairwise(chain):
        record.waits = ((before, ARG),)
    dispatcher.submit(records, "test")
    rounds = 0
    while not all(record.over for record in records):
        cluster.run_all()
        rounds += 1
        assert rounds <= len(records), "the tasks are not sent"
    assert rounds == len(chain)


def test_the_spec_of_an_open_block_has_no_members() -> None:
    specs: list[BlockSpec] = []
    dispatcher, cluster = make(0)
    submit = cluster.submit

    def remember(lowered: Lowered, again: bool) -> Mapping[str, Any]:
        for node in dict(lowered.graph).values():
            specs.extend(pickle.loads(each) for each in node.args if isinstance(each, bytes))
        return submit(lowered, again)

    cluster.submit = remember  # type: ignore[method-assign]
    records = make_records(random.Random(1), 30, mixed=False)
    dispatcher.submit(records, "test")
    finish(cluster, records, False)
    assert specs
    assert all(spec.open and not spec.calls for spec in specs)

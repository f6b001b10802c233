"""The client feeds open blocks rightly, whatever happens to them; see `support.open_cluster`."""

from __future__ import annotations

import itertools
import math
import pickle
import random
from collections.abc import Mapping
from typing import Any

import pytest
from support.open_cluster import (
    Worker,
    finish,
    finish_in_order,
    finish_with_failures,
    make,
    make_records,
    task,
)

from daskbatch.describe.spec import DEFAULT_OPTIONS, Call, Options, function_call
from daskbatch.dispatch.lower import Lowered
from daskbatch.dispatch.open_blocks import open_block
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import ServiceLost
from daskbatch.plan.hazards import ARG, WAR
from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import BlockSpec
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.open_blocks.messages import END, decode_members


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("faults", [False, True])
def test_all_tasks_end_once_and_in_order(seed: int, faults: bool) -> None:
    rng = random.Random(seed)
    dispatcher, cluster = make(seed, slots=rng.choice([1, 2, 5]))
    records = make_records(rng, 80, mixed=seed % 2 == 0)
    finish_in_order(dispatcher, cluster, records, faults)
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
    cluster.fails = {record for record in rng.sample(records, 2) if record.call is not None}
    finish_with_failures(dispatcher, cluster, records, rng)


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


def large_call(number: int) -> Call:
    content = pickle.PickleBuffer(bytearray(pickling.MIN_SHARED_BUFFER_BYTES))
    return function_call(task, (number, content), {})


@pytest.mark.parametrize("shares_memory", [False, True])
def test_calls_with_large_arguments_are_members_where_memory_is_shared(shares_memory: bool) -> None:
    dispatcher, cluster = make(0)
    cluster.shares_memory = shares_memory
    for number in range(5):
        records = [TaskRecord("client", number, "task", large_call(number), DEFAULT_OPTIONS)]
        dispatcher.submit(records, "test")
        finish(cluster, records, False)
    assert len(cluster.workers) == shares_memory
    for worker in cluster.workers.values():
        links = [member.link for member in worker.members]
        assert len(links) == 4
        assert all(link is not None and len(link.buffers) == 1 for link in links)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("faults", [False, True])
def test_large_arguments_are_sent_only_while_memory_is_shared(
    seed: int, faults: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    dispatcher, cluster = make(seed, slots=rng.choice([1, 2, 5]))
    calls = [large_call(number) for number in range(3)]
    records = make_records(rng, 60, mixed=seed % 2 == 0)
    for record in records:
        if record.call is not None and rng.random() < 0.5:
            record.call = rng.choice(calls)
    sent = 0
    add = open_block.OpenBlock.add

    def count(self: open_block.OpenBlock, record: TaskRecord, *args: Any) -> None:
        nonlocal sent
        assert record.call is not None
        if record.call.buffers:
            assert cluster.shares_memory
            sent += 1
        add(self, record, *args)

    def run(record: TaskRecord) -> Status:
        # Workers of another host join and leave.
        cluster.shares_memory = rng.random() < 0.7
        return cluster_run(record)

    monkeypatch.setattr(open_block.OpenBlock, "add", count)
    cluster_run, cluster.run = cluster.run, run  # type: ignore[method-assign]
    cluster.shares_memory = True
    finish_in_order(dispatcher, cluster, records, faults)
    assert sent or seed % 2 == 0  # a mixed graph may have too few members


def make_independent(count: int) -> list[TaskRecord]:
    records = make_records(random.Random(0), count, mixed=False)
    for each in records:
        each.waits = ()
    return records


@pytest.mark.parametrize("gives_way", [False, True])
def test_independent_tasks_share_keys_while_others_want_the_slots(gives_way: bool) -> None:
    dispatcher, cluster = make(0, slots=2)
    cluster.seconds = 0.05
    first = make_independent(1)
    dispatcher.submit(first, "test")
    finish(cluster, first, False)
    records = make_independent(40)
    dispatcher.submit(records, "test")
    cluster.run_all()
    cluster.run_all()
    # Each is sent when a slot has nothing else: no task waits behind a longer one.
    assert not cluster.ordinary
    assert 2 <= sum(cluster.ran[record] for record in records) <= 4
    closing = next(iter(cluster.workers.values()))
    closing.closed = True
    cluster.notify(closing.closed_report(gives_way))
    cluster.run_all()
    assert bool(cluster.ordinary) is gives_way
    finish(cluster, records, False)
    assert set(cluster.ran.values()) == {1}


@pytest.mark.parametrize("seed", range(20))
def test_independent_tasks_end_once_whatever_happens_to_the_blocks(seed: int) -> None:
    dispatcher, cluster = make(seed, slots=2)
    cluster.seconds = 0.05
    for _ in range(3):
        records = make_independent(40)
        dispatcher.submit(records, "test")
        finish(cluster, records, True)
    assert set(cluster.ran.values()) == {1}
    assert dispatcher.outcomes.unfinished == 0


@pytest.mark.parametrize("error", [None, ServiceLost("the cluster has ended")])
@pytest.mark.parametrize("is_graph", [False, True])
def test_tasks_that_are_started_while_all_are_given_up_are_not_lost(
    error: ServiceLost | None, is_graph: bool
) -> None:
    dispatcher, cluster = make(0)
    records = make_records(random.Random(0), 20, mixed=False) if is_graph else make_independent(20)

    def end() -> None:
        dispatcher.give_up(error)  # another thread does, just after it was looked at

    cluster.require_alive = end  # type: ignore[method-assign]
    dispatcher.submit(records, "test")
    assert {record.phase for record in records} == {Phase.FAILED if error else Phase.CANCELLED}
    assert not cluster.ordinary
    assert not cluster.workers
    assert dispatcher.outcomes.unfinished == 0


@pytest.mark.parametrize("is_graph", [False, True])
def test_a_cluster_that_refuses_keys_fails_the_tasks(is_graph: bool) -> None:
    dispatcher, cluster = make(0)
    cluster.seconds = 0.05
    first = make_independent(1)
    dispatcher.submit(first, "test")
    finish(cluster, first, False)
    records = make_records(random.Random(0), 20, mixed=False) if is_graph else make_independent(20)

    def refuse(lowered: Lowered, again: bool) -> Mapping[str, Any]:
        raise ValueError("no more keys")

    cluster.submit = refuse  # type: ignore[method-assign]
    dispatcher.submit(records, "test")
    while cluster.later:
        cluster.later.pop(0)()
    assert {record.phase for record in records} == {Phase.FAILED}
    assert dispatcher.outcomes.unfinished == 0


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

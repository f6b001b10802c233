"""Tasks are sent while what they wait for runs in other open blocks; see `support.open_cluster`."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Sequence

import pytest
from support.open_cluster import (
    Cluster,
    finish,
    finish_in_order,
    finish_with_failures,
    make,
    make_records,
)

from daskbatch.describe.access import FILES, Channel
from daskbatch.describe.spec import Options
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.plan.hazards import ARG, WAR
from daskbatch.worker.execution.outcome import Status

#: Tasks for one worker, and for another one.
KINDS = (Options(workers=("one",)), Options(workers=("other",)))


def start(seed: int, slots: int = 2) -> tuple[Dispatcher, Cluster]:
    """Return a client that knows that tasks are short."""
    dispatcher, cluster = make(seed, slots)
    cluster.seconds = 0.0001
    first = make_records(random.Random(0), 1, mixed=False)
    dispatcher.submit(first, "test")
    finish(cluster, first, False)
    cluster.ran.clear()
    return dispatcher, cluster


def chain(count: int) -> list[TaskRecord]:
    """Return tasks for both workers by turns, each of which waits for the one before it."""
    records: list[TaskRecord] = []
    for number in range(count):
        (record,) = make_records(random.Random(0), 1, mixed=False, kinds=KINDS[number % 2 :][:1])
        record.waits = ((records[-1], ARG),) if records else ()
        records.append(record)
    return records


def run_apart(cluster: Cluster, records: Sequence[TaskRecord]) -> int:
    """Have all blocks run what they have; return how many rounds of the client that takes."""
    rounds = 0
    while not all(record.over for record in records):
        rounds += 1
        assert rounds <= 3 * len(records)
        cluster.run_all()
        before = -1
        while before != sum(cluster.ran.values()):
            before = sum(cluster.ran.values())
            for worker in list(cluster.workers.values()):
                worker.read()
                worker.run_next()
        for worker in list(cluster.workers.values()):
            worker.report()
    return rounds


def test_a_chain_on_two_workers_does_not_wait_for_the_client() -> None:
    dispatcher, cluster = start(0)
    records = chain(100)
    dispatcher.submit(records, "test")
    rounds = run_apart(cluster, records)
    assert {record.phase for record in records} == {Phase.DONE}
    assert set(cluster.ran.values()) == {1}
    assert cluster.streamed > 80
    assert rounds < 20


def test_tasks_that_are_over_are_forgotten() -> None:
    dispatcher, cluster = start(1)
    records = make_records(random.Random(1), 80, mixed=False, kinds=KINDS)
    for record in records[1:]:
        record.waits = record.waits or ((records[0], ARG),)
    dispatcher.submit(records, "test")
    finish(cluster, records, False)
    assert cluster.streamed
    cluster.ran.clear()
    references = [weakref.ref(record) for record in records]
    del records, record
    gc.collect()
    assert not [each for each in references if each() is not None]


def test_a_task_that_writes_waits_until_the_client_knows_what_it_waits_for() -> None:
    """If that is lost with its worker and runs again, it must find what it has read before."""
    dispatcher, cluster = start(0)
    records = chain(20)
    for number, record in enumerate(records):
        record.writes = (Channel(FILES, f"/{number}"),)
    dispatcher.submit(records, "test")
    finish(cluster, records, False)
    assert not cluster.streamed


def test_a_task_that_writes_does_not_follow_one_that_was_sent_ahead() -> None:
    dispatcher, cluster = start(0)
    before = chain(4)
    dispatcher.submit(before, "test")
    finish(cluster, before, False)  # a block is open on each worker now
    records = chain(2)
    (last,) = make_records(random.Random(0), 1, mixed=False, kinds=KINDS[1:])
    last.waits = ((records[1], WAR),)
    last.writes = (Channel(FILES, "/file"),)
    (later,) = make_records(random.Random(0), 1, mixed=False, kinds=KINDS[1:])
    later.waits = ((records[1], ARG),)
    dispatcher.submit([*records, last, later], "test")
    while later.block is None or later.block.held:  # it is sent behind the second one
        cluster.step(False)
    assert not records[0].over
    assert last.block is not None
    assert last.block.held
    finish(cluster, [*records, last, later], False)
    assert last.phase == Phase.DONE


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize("impatience", [0.0, 0.2])
def test_all_tasks_end_once_and_in_order(seed: int, faults: bool, impatience: float) -> None:
    rng = random.Random(seed)
    dispatcher, cluster = start(seed, slots=rng.choice([1, 2, 5]))
    cluster.impatience = impatience
    records = make_records(rng, 80, mixed=seed % 2 == 0, kinds=KINDS)
    finish_in_order(dispatcher, cluster, records, faults)
    assert set(cluster.ran.values()) == {1}
    assert dispatcher.outcomes.unfinished == 0
    assert not dispatcher.table.open_blocks.awaits_outcomes


def test_random_programs_use_outcomes_of_other_blocks() -> None:
    dispatcher, cluster = start(1)
    records = make_records(random.Random(1), 80, mixed=False, kinds=KINDS)
    dispatcher.submit(records, "test")
    finish(cluster, records, False)
    assert cluster.streamed > 10


@pytest.mark.parametrize("seed", range(30))
def test_failures_and_cancellations_reach_what_needs_them(seed: int) -> None:
    rng = random.Random(seed)
    dispatcher, cluster = start(seed, slots=3)
    records = make_records(rng, 60, mixed=False, kinds=KINDS)
    cluster.fails = set(rng.sample(records, 2))
    finish_with_failures(dispatcher, cluster, records, rng)


@pytest.mark.parametrize("seed", range(30))
def test_what_runs_again_after_a_death_finds_what_it_has_read(seed: int) -> None:
    """Without journals, a task that waits for another one and writes runs last, always."""
    rng = random.Random(seed)
    dispatcher, cluster = start(seed, slots=3)
    cluster.has_journals = False
    records = make_records(rng, 60, mixed=False, kinds=KINDS)
    writers = set(rng.sample(records, 20))
    for number, record in enumerate(records):
        if record in writers:
            record.writes = (Channel(FILES, f"/{number}"),)
    waits = {record: record.waits for record in records}
    last: dict[TaskRecord, int] = {}
    run = cluster.run

    def remember(record: TaskRecord) -> Status:
        last[record] = len(last) and max(last.values()) + 1
        return run(record)

    cluster.run = remember  # type: ignore[method-assign]
    dispatcher.submit(records, "test")
    finish(cluster, records, True)
    for record in records:
        for before, _ in waits[record] if record in writers else ():
            if record.phase == before.phase == Phase.DONE:
                assert last[before] < last[record]


def test_no_task_is_sent_ahead_if_workers_do_not_reach_each_other() -> None:
    dispatcher, cluster = start(0)
    cluster.links_are_cut = True
    records = chain(400)
    dispatcher.submit(records, "test")
    run_apart(cluster, records)
    assert {record.phase for record in records} == {Phase.DONE}
    silent = sum(
        status == Status.DEFERRED
        for worker in cluster.workers.values()
        for status in worker.statuses
    )
    # Some were on their way when the client learnt of it.
    assert 0 < silent < 150

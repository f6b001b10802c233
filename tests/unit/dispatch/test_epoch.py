"""Programs that arrive in pieces keep the order, and the failures, of the whole program."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inprocess import make_dispatcher
from support.programs import (
    Outcome,
    Step,
    act,
    make_root,
    make_tasks,
    random_program,
    run_sequentially,
)
from support.programs import snapshot as files_below

from daskbatch import Batch
from daskbatch.batch.context import BatchContext
from daskbatch.describe.access import FILES, Channel
from daskbatch.dispatch.edges import wait_for_producers
from daskbatch.dispatch.epoch import Epoch
from daskbatch.dispatch.task_record import Phase, TaskRecord, find_root_failure
from daskbatch.dispatch.unfinished_records import UnfinishedRecords
from daskbatch.plan.program import build_graph

#: Sets the phases of all records here; it runs none of them.
TABLE = make_dispatcher()[0].table


def record(number: int, reads: Sequence[str] = (), writes: Sequence[str] = ()) -> TaskRecord:
    made = TaskRecord(
        "client",
        number,
        f"t{number}",
        None,
        reads=tuple(Channel(FILES, path) for path in reads),
        writes=tuple(Channel(FILES, path) for path in writes),
    )
    TABLE.set_phase(made, Phase.QUEUED)
    return made


def add(epoch: Epoch, *records: TaskRecord) -> list[TaskRecord]:
    """Add a piece and start it; return it with its barriers."""
    ordered: list[TaskRecord] = []
    epoch.add(records, ordered)
    for each in ordered:
        if not each.over:
            TABLE.set_phase(each, Phase.WAITING)
    return ordered


def end(*records: TaskRecord, phase: Phase = Phase.DONE) -> None:
    for each in records:
        TABLE.settle(each, phase)


def before(record: TaskRecord) -> set[TaskRecord]:
    """Return all tasks that must be over before a task begins."""
    found: set[TaskRecord] = set()
    stack = [record]
    while stack:
        for each, _ in stack.pop().waits:
            if each not in found:
                found.add(each)
                stack.append(each)
    return {each for each in found if each.number >= 0}


def pieces(records: Sequence[TaskRecord], cuts: Sequence[int]) -> Iterator[Sequence[TaskRecord]]:
    marks = [0, *sorted(cut % (len(records) + 1) for cut in cuts), len(records)]
    for start, stop in itertools.pairwise(marks):
        yield records[start:stop]


# -- order --------------------------------------------------------------------------------

PATHS = st.sampled_from(["/a", "/b", "/d", "/d/a", "/d/b", "/d/e", "/d/e/a", "/"])
ACCESSES = st.tuples(st.lists(PATHS, max_size=2), st.lists(PATHS, max_size=2))


@given(st.lists(ACCESSES, max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_in_pieces_the_same_waits_for_the_same_as_in_one(
    program: list[tuple[list[str], list[str]]], cuts: list[int]
) -> None:
    records = [record(number, *accesses) for number, accesses in enumerate(program)]
    graph = build_graph(records)
    expected: dict[int, set[int]] = {}
    for node in graph.order:
        waits = graph.waits.get(node, {})
        expected[node] = set(waits).union(*(expected[each] for each in waits))
    epoch, ordered = Epoch(), []
    for piece in pieces(records, cuts):
        ordered += add(epoch, *piece)
    assert [each for each in ordered if each.number >= 0] == records
    place = {each: position for position, each in enumerate(ordered)}
    assert all(place[b] < place[each] for each in ordered for b, _ in each.waits)
    for each in records:
        found = {other.number for other in before(each)}
        assert found == {node for node in expected[each.number] if node < len(records)}


def test_a_crowd_is_met_behind_a_barrier_also_in_pieces() -> None:
    epoch = Epoch()
    first = record(0, [], ["/d/0"])
    readers = [record(number, ["/d/0"]) for number in range(1, 41)]
    writers = [record(number, [], [f"/d/{number}"]) for number in range(41, 81)]
    last = [record(number, ["/d"]) for number in range(81, 121)]
    ordered = add(epoch, first)
    for number in range(0, 40, 10):
        ordered += add(epoch, *readers[number : number + 10])
        ordered += add(epoch, *writers[number : number + 5])
    # The barrier is between tasks of one piece.
    rest = [each for each in writers if each not in ordered]
    ordered += add(epoch, *rest, *last[:20])
    ordered += add(epoch, *last[20:])
    rewrite = record(121, [], ["/d"])
    ordered += add(epoch, rewrite)
    assert before(last[-1]) == {first, *writers}
    assert before(rewrite) == {first, *readers, *writers, *last}
    assert any(each.number < 0 for each in ordered)
    place = {each: position for position, each in enumerate(ordered)}
    assert all(place[other] < place[each] for each in ordered for other, _ in each.waits)
    assert sum(len(each.waits) for each in ordered) < 4 * len(ordered)


def test_what_reads_and_writes_nothing_has_no_place_in_the_order() -> None:
    epoch = Epoch()
    records = [record(0, [], ["/"]), record(1), record(2, ["/a"])]
    assert add(epoch, *records) == records
    assert not records[1].waits
    assert before(records[2]) == {records[0]}


def test_who_must_not_share_a_block_with_a_reader() -> None:
    epoch = Epoch()
    # The second never runs again, so it does not matter what it would read.
    reader, updater = record(0, ["/a"]), record(1, ["/a", "/b"], ["/b"])
    overwrites = record(2, [], ["/a"])
    add(epoch, reader, updater)
    add(epoch, overwrites)
    assert before(overwrites) == {reader, updater}
    assert overwrites.overwrites == (reader,)


# -- how tasks end ------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.CANCELLED])
def test_failures_are_passed_on_to_later_pieces(phase: Phase) -> None:
    epoch = Epoch()
    writer = record(0, [], ["/a"])
    add(epoch, writer)
    end(writer, phase=phase)
    reads, writes, reads_again = record(1, ["/a"]), record(2, [], ["/a"]), record(3, ["/a"])
    add(epoch, reads)
    add(epoch, writes, reads_again)
    assert find_root_failure(reads) is writer
    assert find_root_failure(writes) is None
    assert find_root_failure(reads_again) is None


def test_a_failure_behind_a_barrier_is_passed_on() -> None:
    epoch = Epoch()
    writers = [record(number, [], [f"/d/{number}"]) for number in range(20)]
    add(epoch, *writers)
    end(*writers[1:])
    end(writers[0], phase=Phase.FAILED)
    reads = record(20, ["/d"])
    barrier, _ = add(epoch, reads)
    assert barrier.number < 0
    barrier.root_failure = find_root_failure(barrier)
    end(barrier, phase=Phase.FAILED)
    assert find_root_failure(reads) is writers[0]


def test_who_waits_for_a_cancelled_task_waits_for_what_that_had_waited_for() -> None:
    epoch = Epoch()
    first, second, third = (record(number, [], ["/a"]) for number in range(3))
    add(epoch, first)
    end(second, phase=Phase.CANCELLED)  # before it was ever started
    add(epoch, second)
    add(epoch, third)
    assert set(third.unfinished_waits()) == {first}
    end(first)
    assert not third.unfinished_waits()


def _offline_batch() -> Batch:
    """Return a Batch that makes tasks, and has no cluster to run them."""
    background = SimpleNamespace(writers=UnfinishedRecords())
    no_futures = SimpleNamespace(with_sources=lambda call, *_: call)
    session = SimpleNamespace(
        future_arguments=no_futures,
        client_id="uid",
        numbers=itertools.count(),
        closed=False,
        background=background,
    )
    identity: Any = SimpleNamespace(session=lambda: session, closed=False, abandon=lambda: None)
    return Batch._from_context(BatchContext(identity, None, os.getcwd(), True))


def run_in_pieces(
    root: Path, steps: Sequence[Step], rng: random.Random, cancelled: set[int]
) -> Outcome:
    """Run a program as a Batch does that receives it in pieces; its tasks in any allowed order."""
    epoch = Epoch()
    tasks = make_tasks(_offline_batch(), root, steps)
    records = [task._record for task in tasks]
    step_of = dict(zip(records, steps, strict=True))
    values: dict[int, str] = {}
    results = dict.fromkeys(range(len(steps)), "")
    waiting: list[TaskRecord] = []
    left = list(records)

    def settle(record: TaskRecord, phase: Phase, result: str) -> None:
        TABLE.settle(record, phase)
        if record in step_of:
            results[step_of[record].number] = result

    def may_run(record: TaskRecord) -> bool:
        record.root_failure = find_root_failure(record)
        if record.root_failure is not None:
            settle(record, Phase.FAILED, "skipped")
        return record.root_failure is None

    def submit() -> None:
        piece = [left.pop(0) for _ in range(min(len(left), rng.choice([1, 2, 5, 40])))]
        for each in piece:
            TABLE.set_phase(each, Phase.QUEUED)
            if step_of[each].number in cancelled:
                settle(each, Phase.CANCELLED, "cancelled")
        new = [each for each in add(epoch, *piece) if not each.over]
        wait_for_producers(new)
        waiting.extend(each for each in new if may_run(each))

    def run(record: TaskRecord) -> None:
        waiting.remove(record)
        if not may_run(record):
            return
        if record not in step_of:
            settle(record, Phase.DONE, "")
            return
        step = step_of[record]
        try:
            value = act(str(root), step, *(values[number] for number in step.arguments))
        except ValueError as error:
            settle(record, Phase.FAILED, f"failed: {error}")
        else:
            values[step.number] = value
            settle(record, Phase.DONE, value)

    while left or waiting:
        if left and (not waiting or rng.random() < 0.2):
            submit()
        for _ in range(rng.choice([1, 3, 10])):
            ready = [each for each in waiting if not each.unfinished_waits()]
            if ready:
                run(rng.choice(ready))
    return Outcome(list(results.values()), files_below(root))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 80))
def test_programs_in_pieces_end_as_their_sequential_run(rng: random.Random, length: int) -> None:
    steps = random_program(rng, length)
    cancelled = {step.number for step in steps if rng.random() < 0.05}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        expected = run_sequentially(make_root(Path(one)), steps, cancelled)
        found = run_in_pieces(make_root(Path(other)), steps, rng, cancelled)
    assert found == expected


# -- the end of an epoch ------------------------------------------------------------------


def test_after_a_fence_nothing_waits_for_what_was_before() -> None:
    epoch = Epoch()
    failed, done = record(0, [], ["/a"]), record(1, ["/b"])
    add(epoch, failed, done)
    end(failed, phase=Phase.FAILED)
    end(done)
    epoch.start_over()
    reads, writes = record(2, ["/a"]), record(3, [], ["/b"])
    add(epoch, reads, writes)
    assert not reads.waits
    assert not writes.waits


def test_after_a_fence_what_another_thread_has_started_is_still_waited_for() -> None:
    epoch = Epoch()
    failed, running = record(0, [], ["/a"]), record(1, [], ["/b"])
    passed_over = record(2, [], ["/b"])
    add(epoch, failed, running)
    end(failed, phase=Phase.FAILED)
    add(epoch, passed_over)
    end(passed_over, phase=Phase.CANCELLED)
    epoch.start_over()
    reads, writes = record(3, ["/a"]), record(4, [], ["/b"])
    add(epoch, reads, writes)
    assert not reads.waits
    assert set(writes.unfinished_waits()) == {running}
    end(running, reads, writes)
    epoch.start_over()
    last = record(5, ["/b"])
    add(epoch, last)
    assert not last.waits


def test_results_that_nobody_holds_are_let_go() -> None:
    epoch = Epoch()
    held = [record(number, ["/a"], [f"/{number}"]) for number in range(300)]
    gone = [weakref.ref(each) for each in held]
    failed = record(300, [], ["/failed"])
    end(failed, phase=Phase.FAILED)
    add(epoch, failed)
    while held:
        each = held.pop(0)
        add(epoch, each)
        end(each)
    del each
    assert sum(ref() is not None for ref in gone) < 100
    # The others, and those that wait for them, are as before.
    reads, writes = record(301, ["/failed", "/5", "/299"]), record(302, [], ["/a"])
    add(epoch, reads, writes)
    assert find_root_failure(reads) is failed
    assert not writes.unfinished_waits()


def test_a_task_that_runs_a_second_time_is_waited_for_again() -> None:
    epoch = Epoch()
    reader = record(0, ["/a"])
    add(epoch, reader)
    end(reader)
    for number in range(1, 100):
        another = record(number, ["/b"])
        add(epoch, another)
        end(another)
    TABLE.set_phase(reader, Phase.WAITING)  # its result was lost, and is needed again
    writer = record(100, [], ["/a"])
    add(epoch, writer)
    assert set(writer.unfinished_waits()) == {reader}

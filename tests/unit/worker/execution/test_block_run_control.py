"""A running block reports what has happened, and gives away members that have not begun."""

from __future__ import annotations

import contextlib
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import ANY

import pytest
from support.payloads import BARRIER, call, spec

from daskbatch.serialization import pickling
from daskbatch.worker.entry import run_block
from daskbatch.worker.execution.block import (
    LOCAL,
    BlockSpec,
    ExpiredReport,
    Link,
    OutcomeReport,
    Report,
    RunningReport,
)
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.outcome import BlockResult, Status

DONE, FAILED, SKIPPED, CANCELLED, DEFERRED = Status

#: A member that calls `hold` sets the first, and waits for the second.
BEGAN, GO = threading.Event(), threading.Event()
SEEN: list[Any] = []


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    BEGAN.clear()
    GO.clear()
    SEEN.clear()
    yield
    GO.set()


def hold(what: Any = None) -> Any:
    BEGAN.set()
    assert GO.wait(30)
    return what


def note(what: Any) -> Any:
    SEEN.append(what)
    return what


def large(size: int) -> bytes:
    return b"v" * size


class Running:
    """A block that runs in another thread."""

    def __init__(self, block: BlockSpec) -> None:
        self.run = BlockRun(block, [])
        self.result: BlockResult | None = None
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        self.result = self.run()

    def finish(self) -> list[Status]:
        GO.set()
        self._thread.join(60)
        assert self.result is not None
        return statuses(self.result)


def statuses(result: BlockResult) -> list[Status]:
    return [Status(each) for each in result.statuses]


def of_outcomes(reports: Sequence[Report]) -> list[OutcomeReport]:
    """Return the reports of outcomes; each has some."""
    found = [report for report in reports if isinstance(report, OutcomeReport)]
    assert all(report.statuses for report in found)
    return found


def reported_statuses(reports: Sequence[Report]) -> list[Status]:
    """Join the statuses of reports, which must follow one another without gaps."""
    found: list[Status] = []
    for report in of_outcomes(reports):
        assert report.start == len(found)
        assert len(report.values) == len(report.statuses)
        assert len(array("f", report.durations)) == len(report.statuses)
        found += map(Status, report.statuses)
    return found


# -- the budget, and the limit of sharing -------------------------------------------------


def test_once_the_budget_is_used_up_the_rest_is_deferred() -> None:
    calls = [call(note, number) for number in range(4)]
    assert statuses(run_block(pickling.dumps(spec(*calls, budget=0.0)))) == [DONE] + [DEFERRED] * 3
    assert SEEN == [0]
    assert statuses(run_block(pickling.dumps(spec(*calls, budget=60.0)))) == [DONE] * 4


def test_what_depends_on_a_deferred_member_is_deferred_with_it() -> None:
    links = {
        1: Link(needs=((LOCAL, 0),)),
        2: Link(needs=((LOCAL, 1),)),
        3: Link(after=((LOCAL, 1),)),
    }
    block = spec(call(note, 0), call(note, 1), BARRIER, call(note, 3), links=links, budget=0.0)
    assert statuses(run_block(pickling.dumps(block))) == [DONE, DEFERRED, DEFERRED, DEFERRED]


@pytest.mark.parametrize(("size", "rest"), [(10, DONE), (5000, DEFERRED)])
def test_a_value_over_the_limit_ends_the_sharing(size: int, rest: Status) -> None:
    block = spec(call(large, size), call(note, 1), call(note, 2), share_limit=1000)
    result = run_block(pickling.dumps(block))
    assert statuses(result) == [DONE, rest, rest]
    assert pickling.loads(result.values[0] or b"") == b"v" * size


def test_a_block_that_expires_while_a_member_runs_gives_away_the_rest() -> None:
    running = Running(spec(call(hold), call(note, 1), call(note, 2), budget=0.0))
    assert BEGAN.wait(30)
    running.run.tick()
    (report,) = running.run.reports()
    assert isinstance(report, ExpiredReport)
    assert report.running == 0
    assert [Status(each) for each in report.rest] == [DEFERRED, DEFERRED]
    assert running.finish() == [DONE, DEFERRED, DEFERRED]
    assert SEEN == []


def test_a_block_does_not_expire_before_its_time() -> None:
    running = Running(spec(call(hold), call(note, 1), budget=60.0))
    assert BEGAN.wait(30)
    running.run.tick()
    assert running.run.reports() == [RunningReport(block=7, running=0, begin=ANY)]
    assert running.finish() == [DONE, DONE]


def test_the_rest_is_told_once_and_keeps_what_was_revoked() -> None:
    running = Running(spec(call(hold), call(note, 1), call(note, 2), budget=0.0))
    assert BEGAN.wait(30)
    assert running.run.revoke([2], CANCELLED) == []
    running.run.tick()
    running.run.tick()
    rest = bytes([DEFERRED, CANCELLED])
    assert running.run.reports() == [ExpiredReport(block=7, running=0, rest=rest, begin=ANY)]
    assert running.run.reports() == []
    assert running.finish() == [DONE, DEFERRED, CANCELLED]
    assert not any(isinstance(report, ExpiredReport) for report in running.run.reports())


# -- revocations --------------------------------------------------------------------------


def test_what_has_not_begun_can_be_revoked_and_what_has_cannot() -> None:
    running = Running(spec(call(note, 0), call(hold), call(note, 2), call(note, 3)))
    assert BEGAN.wait(30)
    assert sorted(running.run.revoke([0, 1, 3], CANCELLED)) == [0, 1]
    assert running.finish() == [DONE, DONE, DONE, CANCELLED]
    assert SEEN == [0, 2]


def test_a_block_can_be_revoked_as_a_whole_before_it_begins() -> None:
    run = BlockRun(spec(call(note, 0), call(note, 1)), [])
    assert run.revoke(range(2), CANCELLED) == []
    assert statuses(run()) == [CANCELLED, CANCELLED]
    assert SEEN == []


def test_the_first_revocation_counts() -> None:
    run = BlockRun(spec(call(note, 0), call(note, 1)), [])
    assert run.revoke([0], CANCELLED) == []
    assert run.revoke([0, 1], DEFERRED) == []
    assert statuses(run()) == [CANCELLED, DEFERRED]


def test_one_that_is_revoked_behind_a_deferred_one_is_deferred_with_it() -> None:
    # Once it is over, the members behind it conclude that all that it waits for is over.
    given = BlockResult(bytes([DEFERRED]), [None])
    for link in (Link(after=((0, 0),)), Link(needs=((0, 0),))):
        run = BlockRun(spec(call(note, 0), links={0: link}), [given])
        assert run.revoke([0], CANCELLED) == []
        assert statuses(run()) == [DEFERRED]


def test_what_is_over_cannot_be_revoked() -> None:
    run = BlockRun(spec(call(note, 0)), [])
    assert statuses(run()) == [DONE]
    assert run.revoke([0], CANCELLED) == [0]


@contextlib.contextmanager
def busy_switching() -> Iterator[None]:
    """Make threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_each_member_runs_or_is_revoked_and_never_both() -> None:
    count = 20_000
    calls = [call(hold), *(call(note, number) for number in range(1, count))]
    began, revoked = {0}, set()
    with busy_switching():
        running = Running(spec(*calls))
        assert BEGAN.wait(30)
        GO.set()
        member = 0
        while member < count - 1:
            # The member that the other thread begins next, as far as this thread can see.
            member = min(max(member, len(SEEN) + len(revoked)) + 1, count - 1)
            (began if running.run.revoke([member], CANCELLED) else revoked).add(member)
    found = running.finish()
    ran = {0, *SEEN}
    assert len(SEEN) == len(ran) - 1
    assert began <= ran
    assert ran.isdisjoint(revoked)
    assert found == [CANCELLED if member in revoked else DONE for member in range(count)]
    assert ran | revoked == set(range(count))


# -- reports ------------------------------------------------------------------------------


def test_reports_tell_what_has_happened_since_the_last() -> None:
    running = Running(spec(call(note, "a"), call(hold, "b"), call(note, "c")))
    assert BEGAN.wait(30)
    first, now = running.run.reports()
    assert isinstance(first, OutcomeReport)
    assert (first.start, list(first.statuses), first.block) == (0, [DONE], 7)
    assert pickling.loads(first.values[0] or b"") == "a"
    assert now == RunningReport(block=7, running=1, begin=ANY)
    assert running.run.reports() == []
    running.finish()
    later = of_outcomes(reports := running.run.reports())
    assert [report.start for report in later] == [1]
    assert [pickling.loads(each or b"") for report in later for each in report.values] == ["b", "c"]
    assert later == reports, "nothing runs"
    assert running.run.reports() == []


def test_before_a_block_has_begun_there_is_nothing_to_tell() -> None:
    assert BlockRun(spec(call(note, 0)), []).reports() == []


def test_reports_come_in_pieces_that_are_not_too_large_and_leave_nothing_out() -> None:
    sizes = [50_000] * 60 + [10] * 100 + [60_000] * 30
    calls = [call(large, size) for size in sizes]
    run = BlockRun(spec(*calls, share_limit=1 << 30, output_limit=10), [])
    result = run()
    reports = of_outcomes(run.reports())
    assert reported_statuses(reports) == statuses(result) == [DONE] * len(sizes)
    assert [value for report in reports for value in report.values] == list(result.values)
    for report in reports:
        assert sum(len(value or b"") for value in report.values) < 1 << 20
    assert len(reports) >= 4


def test_outputs_are_told_with_the_members_that_wrote_them() -> None:
    calls = [call(print, "x" * 40_000, end=str(number)) for number in range(20)]
    calls += [call(large, 60_000) for _ in range(20)]
    run = BlockRun(spec(*calls, share_limit=1 << 30, output_limit=1 << 20), [])
    run()
    outputs: dict[int, Any] = {}
    for report in of_outcomes(run.reports()):
        assert set(report.outputs) <= set(range(report.start, report.start + len(report.statuses)))
        outputs |= report.outputs
    assert {member: out[-1] for member, (out, _) in outputs.items()} == {
        number: str(number)[-1] for number in range(20)
    }


def test_large_values_and_outputs_stay_where_they_are() -> None:
    run = BlockRun(
        spec(
            *[call(large, 100), call(large, 5000), call(print, "small")],
            *[call(print, "x" * 2000), call(note, 1)],
            inline_limit=1000,
            output_limit=10_000,
        ),
        [],
    )
    result = run()
    (report,) = of_outcomes(run.reports())
    assert [value is None for value in report.values] == [False, True, False, False, False]
    assert dict(report.outputs) == {2: ("small", ""), 3: None}
    assert pickling.loads(result.values[1] or b"") == b"v" * 5000
    assert result.outputs[3] == ("x" * 2000, "")


def test_the_limit_of_what_is_told_is_in_bytes() -> None:
    run = BlockRun(spec(call(print, "😀" * 300), inline_limit=1000, output_limit=10_000), [])
    run()
    assert dict(of_outcomes(run.reports())[0].outputs) == {0: None}


def test_members_that_did_not_run_are_told_without_a_value() -> None:
    run = BlockRun(spec(call(note, 0), call(note, 1), budget=0.0), [])
    run()
    (report,) = of_outcomes(run.reports())
    assert (reported_statuses([report]), report.values[1]) == ([DONE, DEFERRED], None)


def test_durations_are_told_in_seconds() -> None:
    run = BlockRun(spec(call(note, 0), call(wait_a_little)), [])
    run()
    short, long = array("f", of_outcomes(run.reports())[0].durations)
    assert 0 <= short < 10
    assert 0.02 <= long < 10


def wait_a_little() -> None:
    threading.Event().wait(0.02)


def test_whoever_asks_at_the_same_time_is_told_each_member_once() -> None:
    count = 5000
    run = BlockRun(spec(*[call(large, 2000)] * count, share_limit=1 << 30), [])
    run()
    reports: list[Report] = []
    meet = threading.Barrier(4, timeout=30)

    def ask() -> None:
        meet.wait()
        reports.extend(run.reports())

    with busy_switching():
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert (
        reported_statuses(sorted(of_outcomes(reports), key=lambda report: report.start))
        == [DONE] * count
    )


def test_reports_taken_while_a_block_runs_leave_nothing_out() -> None:
    count = 3000
    reports: list[Report] = []
    with busy_switching():
        running = Running(spec(call(hold), *[call(note, number) for number in range(1, count)]))
        GO.set()
        while running.result is None:
            reports += running.run.reports()
        found = running.finish()
    assert reported_statuses([*reports, *running.run.reports()]) == found == [DONE] * count


class Listener:
    """Asks for the reports at the end, as the plugin does."""

    def __init__(self) -> None:
        self.began: list[BlockRun] = []
        self.reports: list[Report] = []

    def begin(self, run: BlockRun) -> None:
        self.began.append(run)

    def end(self, run: BlockRun) -> None:
        assert run is self.began[-1]
        self.reports += run.reports()


def test_a_reporter_is_told_of_the_begin_and_the_end() -> None:
    listener = Listener()
    block = spec(call(note, 0), call(sys.exit), call(note, 2))
    result = run_block(pickling.dumps(block), reporter=listener)
    assert len(listener.began) == 1
    assert listener.began[0].spec.block == 7
    assert reported_statuses(listener.reports) == statuses(result) == [DONE, FAILED, DONE]

"""A log records outcomes in order, reports each once, and can be continued by another run."""

from __future__ import annotations

from array import array

from support.payloads import call, spec

from daskbatch.serialization import pickling
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.outcome_log import OutcomeLog

DONE, FAILED, SKIPPED, CANCELLED, DEFERRED = Status


def test_each_outcome_is_reported_once() -> None:
    log = OutcomeLog()
    log.record(0, DONE, b"a", 0.5, None)
    log.record(1, FAILED, b"large", 0.25, ("out", ""))
    (report,) = log.new_reports(7, 1, 100)
    assert (report.block, report.start, report.statuses, report.values) == (7, 0, b"\0", [b"a"])
    (report,) = log.new_reports(7, 2, 3)
    assert (report.start, list(report.statuses), report.values) == (1, [FAILED], [None])
    assert list(array("f", report.durations)) == [0.25]
    assert report.outputs == {1: ("out", "")}
    assert log.new_reports(7, 2, 100) == []


def test_a_log_of_what_is_over_already_is_as_long_in_all_its_parts() -> None:
    log = OutcomeLog(bytes([DONE, FAILED]), [b"a", None], {0: ("out", "")})
    log.record(2, DONE, b"c", 1.0, None)
    result = log.result()
    assert list(result.statuses) == [DONE, FAILED, DONE]
    assert list(result.values) == [b"a", None, b"c"]
    assert list(log.durations) == [0.0, 0.0, 1.0]
    assert result.outputs == {0: ("out", "")}


def test_a_run_continues_the_log_that_it_is_given() -> None:
    log = OutcomeLog()
    log.record(0, DONE, pickling.dumps("first"), 0.0, None)
    run = BlockRun(spec(call(exit), call(len, "ab")), [], log=log)
    result = run()
    assert run.log is log
    assert list(result.statuses) == [DONE, DONE]
    assert [pickling.loads(value or b"") for value in result.values] == ["first", 2]

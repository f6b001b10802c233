"""The times of a block's members follow each other, and their processor times add up."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from support.payloads import call, spec

from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.thread_run import ThreadRun


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


#: Functions that need no pickling.
KNOWN: dict[str, Callable[[], None]] = {}


def call_known(name: str) -> None:
    KNOWN[name]()


def fail() -> None:
    raise ValueError


def test_members_follow_each_other_without_a_gap() -> None:
    calls = [call(burn, each) for each in (0.0, 0.02, 0.0, 0.0, 0.01)] + [call(fail)]
    run = ThreadRun(spec(*calls), [])
    before, used_before = time.time(), time.thread_time()
    run()
    after, used = time.time(), time.thread_time() - used_before
    log = run.log
    ended, seconds, cpu = log.ended, log.durations, log.cpu_seconds
    assert before - 1e-3 <= ended[0] - seconds[0]
    assert ended[-1] <= after + 1e-3
    for one, other, length in zip(ended, ended[1:], seconds[1:], strict=False):
        assert other - length == pytest.approx(one, abs=1e-5)
    assert sum(seconds) == pytest.approx(ended[-1] - (ended[0] - seconds[0]), abs=1e-4)
    assert cpu[1] >= 0.019
    assert cpu[4] >= 0.009
    assert sum(cpu) <= used + 0.01
    assert all(each >= 0 for each in cpu)


def test_members_that_do_not_run_have_no_times() -> None:
    run = ThreadRun(spec(call(burn, 0.0), call(burn, 0.0)), [])
    run.revoke([1], Status.CANCELLED)
    run()
    assert list(run.log.statuses) == [Status.DONE, Status.CANCELLED]
    (report,) = [each for each in run.reports() if hasattr(each, "statuses")]
    assert report.measures is not None
    assert report.measures.of(0).ended is not None
    assert report.measures.of(1).ended is None


def test_what_was_written_so_far_can_be_read() -> None:
    seen = []

    def look() -> None:
        print("one")
        seen.append(run.read_output(0, "stdout", 0, 100))
        print("two")
        seen.append(run.read_output(0, "stdout", 4, 100))
        seen.append(run.read_output(0, "stdout", -4, 2))
        seen.append(run.read_output(0, "stderr", 0, 100))
        seen.append(run.read_output(1, "stdout", 0, 100))

    KNOWN["look"] = look
    run = ThreadRun(spec(call(call_known, "look")), [])
    run()
    parts = [None if each is None else tuple(each) for each in seen]
    assert parts == [
        *((1, 0, b"one\n"), (1, 4, b"two\n"), (1, 4, b"tw")),
        *((1, 0, b""), None),
    ]
    assert run.read_output(0, "stdout", 0, 100) is None

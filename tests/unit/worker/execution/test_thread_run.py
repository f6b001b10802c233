"""A block in the worker's thread: what stops one of its calls does not hit the next one."""

from __future__ import annotations

import threading

import pytest
from support.payloads import call, spec
from support.waiting import HANG_SECONDS

from daskbatch.serialization import pickling
from daskbatch.worker.execution import thread_run
from daskbatch.worker.execution.block import Limits
from daskbatch.worker.execution.interrupt import StoppableCaller
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.thread_run import ThreadRun

STOPPING, SECOND_BEGAN, STOPPED = threading.Event(), threading.Event(), threading.Event()


class Clock:
    now = 0.0


def fail_once() -> str:
    """Fail just when the time limit has passed; succeed at the second attempt."""
    if Clock.now == 0.0:
        Clock.now = 20.0
        assert STOPPING.wait(HANG_SECONDS)
        raise ValueError("the first attempt")
    SECOND_BEGAN.set()
    assert STOPPED.wait(HANG_SECONDS)
    return "the second attempt"


class LateCaller(StoppableCaller):
    """Stops a call only after the next call has begun."""

    def stop(self, number: int | None = None) -> bool:
        STOPPING.set()
        assert SECOND_BEGAN.wait(HANG_SECONDS)
        try:
            return super().stop(number)
        finally:
            STOPPED.set()


def test_a_stop_that_comes_too_late_does_not_hit_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thread_run, "perf_counter", lambda: Clock.now)
    run = ThreadRun(spec(call(fail_once), limits={0: Limits(timeout=10.0, retries=1)}), [])
    run._caller = LateCaller()
    results = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    while not STOPPED.wait(0.001):
        run.tick()
    thread.join(HANG_SECONDS)
    (result,) = results
    assert result.statuses == bytes([Status.DONE])
    assert pickling.loads(result.values[0]) == "the second attempt"

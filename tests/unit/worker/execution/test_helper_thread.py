"""The helper thread runs a function completely, even if the thread that waits is stopped."""

from __future__ import annotations

import logging
import threading

import pytest

from daskbatch.worker.execution.helper_thread import HelperThread, get_helper_thread
from daskbatch.worker.execution.interrupt import StoppableCaller, Stopped


def test_it_is_done_when_the_wait_is_over() -> None:
    done: list[threading.Thread] = []
    get_helper_thread().run(lambda: done.append(threading.current_thread()))
    assert done
    assert done[0] is not threading.current_thread()
    assert get_helper_thread() is get_helper_thread()


def test_what_goes_wrong_is_told_and_the_next_is_done(caplog: pytest.LogCaptureFixture) -> None:
    doing, done = HelperThread(), threading.Event()
    with caplog.at_level(logging.ERROR, "daskbatch"):
        doing.run(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    assert "ZeroDivisionError" in caplog.text
    doing.run(done.set)
    assert done.is_set()


def test_who_waits_may_be_stopped_at_any_moment() -> None:
    doing, interruption, rounds = HelperThread(), StoppableCaller(), 300
    begun, ended, over = [], [], threading.Event()

    def errand() -> None:
        begun.append(0)
        ended.append(0)

    def work() -> None:
        while True:
            doing.run(errand)

    def call() -> None:
        for number in range(rounds):
            with pytest.raises(Stopped):
                interruption.call(number, work, (), {})
        over.set()

    calling = threading.Thread(target=call, daemon=True)
    calling.start()
    while not over.wait(0.0001):
        interruption.stop()
        assert calling.is_alive() or over.is_set()
    done = threading.Event()
    doing.run(done.set)
    assert done.is_set()
    assert len(begun) == len(ended)

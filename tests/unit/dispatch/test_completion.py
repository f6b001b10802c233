"""Threads that wait for tasks wake when they have something to do, and not before."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.waiting import HANG_SECONDS, wait_until

from daskbatch.dispatch.completion import CompletionTracker


class Waiter:
    """A thread that waits for a predicate."""

    def __init__(self, tracker: CompletionTracker, predicate: Callable[[], Any]) -> None:
        self.calls: Counter[int] = Counter()
        self.outcome: Any = None
        self._tracker = tracker
        self._predicate = predicate
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        # Once in `wait`, and twice before the thread sleeps.
        wait_until(lambda: self.calls[self.thread.ident or 0] == 3)

    def _count(self) -> Any:
        self.calls[threading.get_ident()] += 1
        return self._predicate()

    def _run(self) -> None:
        try:
            self.outcome = self._tracker.wait(self._count)
        except RuntimeError as error:
            self.outcome = error

    def join(self) -> int:
        """Return how often the thread has looked."""
        self.thread.join(HANG_SECONDS)
        assert not self.thread.is_alive()
        assert self.thread.ident is not None
        return self.calls[self.thread.ident]


def test_a_thread_sleeps_until_its_predicate_is_true() -> None:
    tracker = CompletionTracker()
    over: set[str] = set()
    first = Waiter(tracker, lambda: "first" in over)
    second = Waiter(tracker, lambda: "second" in over)
    for name in ("nothing", "second", "first"):
        with tracker.changed:
            over.add(name)
            tracker.changed.notify_all()
        if name == "second":
            assert second.join() == 4
            assert first.thread.is_alive()
    assert first.join() == 4
    assert (first.outcome, second.outcome) == (True, True)


def test_a_predicate_that_raises_does_so_in_the_thread_that_waits() -> None:
    tracker = CompletionTracker()
    broken: list[str] = []

    def predicate() -> bool:
        if broken:
            raise RuntimeError("no such task")
        return False

    waiter = Waiter(tracker, predicate)
    with tracker.changed:
        broken.append("yes")
        tracker.changed.notify_all()
    waiter.join()
    with pytest.raises(RuntimeError, match="no such task"):
        raise waiter.outcome


def test_a_wait_ends_at_its_timeout() -> None:
    tracker = CompletionTracker()
    assert not tracker.wait(lambda: False, 0.01)
    with tracker.changed:
        tracker.changed.notify_all()
    assert tracker.wait(lambda: True, 0.0)

"""A lock is free after a signal handler has raised, wherever that was."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

import daskbatch
from daskbatch.dispatch.completion import CompletionTracker
from daskbatch.threads import Condition


class Interrupt(Exception):
    """Raised by the signal handler, as `KeyboardInterrupt` is by that of Ctrl-C."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[float], object]]:
    """Return what has a signal arrive after some seconds of this process."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGVTALRM, ring)
    yield partial(signal.setitimer, signal.ITIMER_VIRTUAL)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


def is_free(condition: threading.Condition) -> bool:
    """Return whether another thread can lock a condition."""
    found: list[bool] = []

    def look() -> None:
        found.append(condition.acquire(blocking=False))
        if found[0]:
            condition.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    "make",
    [
        Condition,
        lambda: Condition(threading.Lock()),
        lambda: CompletionTracker().changed,
        lambda: CompletionTracker().make_condition(),
    ],
)
def test_an_interrupt_does_not_leave_it_locked(
    make: Callable[[], threading.Condition], interrupt: Callable[[float], object]
) -> None:
    # Of a `threading.Condition`, every second or third interrupt does.
    condition = make()
    for number in range(100):
        interrupt(0.0002 + number % 7 * 1e-5)
        with pytest.raises(Interrupt):
            while True:
                with condition:
                    pass
        assert is_free(condition)


def test_threads_wait_for_it_and_wake() -> None:
    condition = Condition()
    woken: list[bool] = []

    def wait() -> None:
        with condition:
            woken.append(condition.wait_for(lambda: ready, timeout=60))

    ready = False
    thread = threading.Thread(target=wait)
    thread.start()
    with condition:
        ready = True
        condition.notify_all()
    thread.join()
    assert woken == [True]
    with condition:
        assert not condition.wait(0.001)
    with pytest.raises(RuntimeError):
        condition.notify()


def test_no_other_conditions_are_used() -> None:
    root = Path(daskbatch.__file__).parent
    for path in sorted(root.rglob("*.py")):
        found = re.findall(r"threading\.Condition\(", path.read_text())
        assert not found, f"{path.relative_to(root)}: use `daskbatch.threads.Condition`"

"""A call is stopped from another thread, and no other code is ever interrupted."""

from __future__ import annotations

import gc
import hashlib
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import count
from time import sleep
from types import FrameType
from typing import Any

import pytest

from daskbatch.uninterrupted import uninterrupted, uninterrupted_threads
from daskbatch.worker.execution import interrupt
from daskbatch.worker.execution.interrupt import StoppableCaller, Stopped

#: How long a test waits for something that must happen, before it fails.
TIMEOUT_SECONDS = 60


class Thread(threading.Thread):
    """Calls a function; `result` returns or raises its outcome, even a BaseException."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(daemon=True)
        self.work = function, args, kwargs
        self.future: Future[Any] = Future()
        self.start()

    def run(self) -> None:
        function, args, kwargs = self.work
        try:
            self.future.set_result(function(*args, **kwargs))
        except BaseException as error:
            self.future.set_exception(error)

    def result(self) -> Any:
        return self.future.result(TIMEOUT_SECONDS)

    def error(self) -> BaseException | None:
        return self.future.exception(TIMEOUT_SECONDS)


class Waiting(threading.Event):
    """An event that must be set in time."""

    def must(self) -> None:
        assert self.wait(TIMEOUT_SECONDS)


def spin(begun: threading.Event) -> None:
    begun.set()
    for _ in count():
        pass


def started(function: Callable[..., Any], *args: Any) -> tuple[StoppableCaller, Thread]:
    """Call the function in a thread, with number 1; it sets its first argument, an event."""
    interruption = StoppableCaller()
    begun = Waiting()
    thread = Thread(interruption.call, 1, function, (begun, *args), {})
    begun.must()
    return interruption, thread


def test_a_call_gives_what_the_function_returns() -> None:
    assert StoppableCaller().call(1, divmod, (7, 2), {}) == (3, 1)
    assert StoppableCaller().call(1, dict, (), {"one": 1}) == {"one": 1}


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_the_function_raises_passes_through(kind: type[BaseException]) -> None:
    raised = kind("mine")

    def fail() -> None:
        raise raised

    interruption = StoppableCaller()
    with pytest.raises(kind) as caught:
        interruption.call(1, fail, (), {})
    assert caught.value is raised
    assert caught.value.__context__ is None
    assert not interruption.stop()


def test_a_looping_function_is_stopped() -> None:
    interruption, thread = started(spin)
    assert interruption.stop()
    assert isinstance(thread.error(), Stopped)


def test_what_is_thrown_may_be_a_kind_of_stopped_that_a_function_catches() -> None:
    class Asked(Stopped, Exception):
        """What the function wants to catch."""

    caught: list[str] = []

    def spin_and_catch(begun: Waiting) -> None:
        try:
            spin(begun)
        except Exception as error:
            caught.append(type(error).__name__)

    interruption, thread = started(spin_and_catch)
    interruption.thrown = Asked
    assert interruption.stop()
    assert isinstance(thread.error(), Stopped)  # though the function has returned
    assert caught == ["Asked"]


def test_the_stopped_says_where_the_function_was() -> None:
    interruption, thread = started(spin)
    assert interruption.stop(1)
    traceback = getattr(thread.error(), "__traceback__", None)
    names = []
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names[-1] == "spin"


def test_c_code_is_stopped_when_it_returns() -> None:
    after: list[str] = []

    def blocked(begun: Waiting) -> None:
        begun.set()
        gate.acquire()
        after.append("went on")

    gate = threading.Lock()
    gate.acquire()
    interruption, thread = started(blocked)
    assert interruption.stop()
    gate.release()
    assert isinstance(thread.error(), Stopped)
    assert after == []


def test_a_call_of_c_code_is_stopped_though_it_returns_late() -> None:
    interruption, gate = StoppableCaller(), threading.Lock()
    gate.acquire()
    thread = Thread(interruption.call, 1, gate.acquire, (), {"timeout": TIMEOUT_SECONDS})
    while not interruption.stop(1):
        pass
    gate.release()
    assert isinstance(thread.error(), Stopped)


def test_long_c_code_without_the_lock_of_the_interpreter_is_stopped_when_it_returns() -> None:
    interruption = StoppableCaller()
    thread = Thread(interruption.call, 1, hashlib.pbkdf2_hmac, ("sha256", b"", b"", 300_000), {})
    while not interruption.stop(1):
        pass
    assert isinstance(thread.error(), Stopped)


def test_swallowed_the_call_still_ends_in_stopped() -> None:
    def swallow(begun: Waiting) -> str:
        try:
            spin(begun)
        except BaseException:
            return "nothing happened"
        return ""

    interruption, thread = started(swallow)
    assert interruption.stop()
    error = thread.error()
    assert isinstance(error, Stopped)
    assert error.__cause__ is None


def test_swallowed_stop_fires_again() -> None:
    caught, swallowed = [], Waiting()

    def swallow(begun: Waiting) -> None:
        try:
            spin(begun)
        except BaseException as error:
            caught.append(type(error))
        spin(swallowed)

    interruption, thread = started(swallow)
    assert interruption.stop(1)
    swallowed.must()
    assert thread.is_alive()
    assert interruption.stop(1)
    assert isinstance(thread.error(), Stopped)
    assert caught == [Stopped]


def test_except_exception_does_not_swallow_it() -> None:
    def careful(begun: Waiting) -> None:
        while True:
            try:
                spin(begun)
            except Exception:
                continue

    interruption, thread = started(careful)
    assert interruption.stop()
    assert isinstance(thread.error(), Stopped)


def test_what_the_function_raises_because_of_it_is_the_cause() -> None:
    def translate(begun: Waiting) -> None:
        try:
            spin(begun)
        except BaseException:
            raise KeyError("translated") from None

    interruption, thread = started(translate)
    assert interruption.stop()
    error = thread.error()
    assert isinstance(error, Stopped)
    assert isinstance(error.__cause__, KeyError)


def test_the_finally_blocks_of_the_function_run() -> None:
    seen = []

    def inner(begun: Waiting) -> Iterator[int]:
        try:
            yield 1
            spin(begun)
        finally:
            seen.append("generator")

    def outer(begun: Waiting) -> None:
        try:
            list(inner(begun))
        finally:
            seen.append("function")

    interruption, thread = started(outer)
    assert interruption.stop()
    assert isinstance(thread.error(), Stopped)
    assert seen == ["generator", "function"]


def test_stop_is_false_when_nothing_runs() -> None:
    interruption = StoppableCaller()
    assert not interruption.stop()
    assert not interruption.stop(1)
    assert interruption.call(1, len, ("abc",), {}) == 3
    assert not interruption.stop()
    assert not interruption.stop(1)


def test_stop_is_false_for_the_previous_call_and_does_not_hit_the_running_one() -> None:
    release = Waiting()

    def patient(begun: Waiting) -> str:
        begun.set()
        for _ in count():
            if release.is_set():
                return "undisturbed"
        return ""

    interruption, begun = StoppableCaller(), Waiting()
    assert interruption.call(1, len, ("abc",), {}) == 3
    thread = Thread(interruption.call, 2, patient, (begun,), {})
    begun.must()
    assert not interruption.stop(1)
    assert not interruption.stop(3)
    release.set()
    assert thread.result() == "undisturbed"


def test_the_next_call_is_not_stopped() -> None:
    def both(begun: Waiting) -> str:
        with pytest.raises(Stopped):
            interruption.call(1, spin, (begun,), {})
        done: str = interruption.call(2, "".join, (["un", "disturbed"],), {})
        return done

    interruption, begun = StoppableCaller(), Waiting()
    thread = Thread(both, begun)
    begun.must()
    assert interruption.stop(1)
    assert thread.result() == "undisturbed"


def test_a_function_may_stop_its_own_call() -> None:
    interruption = StoppableCaller()
    with pytest.raises(Stopped):
        interruption.call(1, interruption.stop, (), {})
    assert interruption.call(2, len, ("abc",), {}) == 3


def test_calls_in_several_threads_are_stopped_one_by_one() -> None:
    running = [started(spin) for _ in range(4)]
    for stopped, (interruption, thread) in enumerate(running):
        assert interruption.stop(1)
        assert isinstance(thread.error(), Stopped)
        assert all(other.is_alive() for _, other in running[stopped + 1 :])


@pytest.mark.parametrize("raises", [False, True])
def test_a_call_is_not_over_before_a_stop_under_way(
    raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    throw, thrown, about, release = interrupt._throw, [], Waiting(), Waiting()

    def late(thread: int, what: Any) -> int:
        thrown.append(what)
        if what is Stopped:
            about.set()
            release.must()
        result: int = throw(thread, what)
        return result

    def ends(begun: Waiting) -> None:
        begun.set()
        about.must()
        if raises:
            raise ValueError

    monkeypatch.setattr(interrupt, "_throw", late)
    interruption, thread = started(ends)
    stopper = Thread(interruption.stop, 1)
    about.must()
    # The function is over when the call cancels what may have been thrown.
    while interrupt._NO_EXCEPTION not in thrown:
        pass
    assert thread.is_alive()
    release.set()
    assert stopper.result() is True
    error = thread.error()
    assert isinstance(error, Stopped)
    assert isinstance(error.__cause__, ValueError) == raises
    assert not interruption.stop(1)


def test_a_stop_under_way_for_another_number_changes_nothing() -> None:
    """A stop() for another call only makes the call wait."""
    interruption, over = StoppableCaller(), threading.Event()

    def pester() -> None:
        while not over.is_set():
            assert not interruption.stop(-1)

    thread = Thread(pester)
    for number in range(2_000):
        assert interruption.call(number, len, ("abc",), {}) == 3
    over.set()
    thread.result()


def test_ctrl_c_while_a_stopped_call_ends_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    throw, interrupts = interrupt._throw, [KeyboardInterrupt()]

    def interrupted(thread: int, what: Any) -> int:
        result: int = throw(thread, what)
        if what is not Stopped and interrupts:
            raise interrupts.pop()
        return result

    monkeypatch.setattr(interrupt, "_throw", interrupted)
    interruption = StoppableCaller()
    with pytest.raises(Stopped) as caught:
        interruption.call(1, interruption.stop, (), {})
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    assert interruption.call(2, len, ("abc",), {}) == 3
    assert not interruption.stop()


def test_a_stopped_call_keeps_nothing_alive() -> None:
    class Argument:
        pass

    def hold(begun: Waiting, argument: Argument) -> None:
        spin(begun)

    def stopped() -> weakref.ref[Argument]:
        argument = Argument()
        interruption, begun = StoppableCaller(), Waiting()

        def stop() -> None:
            begun.must()
            interruption.stop()

        stopper = Thread(stop)
        with pytest.raises(Stopped):
            interruption.call(1, hold, (begun, argument), {})
        stopper.result()
        return weakref.ref(argument)

    gc.disable()
    try:
        kept = Thread(stopped).result()
        assert kept() is None
    finally:
        gc.enable()


# The race: short calls, which are stopped at any moment.


def _nothing() -> None:
    pass


def _loop() -> int:
    return sum(each for each in range(50))


def _careful() -> int:
    try:
        return int("x")
    except Exception:
        return 0


def _deaf() -> int:
    try:
        for _ in range(50):
            pass
    except BaseException:
        return -1
    return 0


def _cleaning() -> list[int]:
    cleaned = []
    try:
        for each in range(5):
            cleaned.append(each)
    finally:
        cleaned.append(-1)
    return cleaned


def _failing() -> None:
    raise KeyError("as it does")


def _yielding() -> None:
    sleep(0)


FUNCTIONS: list[Callable[..., Any]] = [
    *(_nothing, _loop, _careful, _deaf, _cleaning, _failing, _yielding, dict),
    partial(sleep, 0),
]


class Race:
    """Two threads: one makes calls, and the other one stops them.

    Parameters
    ----------
    calls : int
        The number of calls.
    hesitant : bool
        Whether the thread that stops lets the other one run at each line of `stop`.
    seed : int
        The seed of the random choices.
    """

    def __init__(self, calls: int, hesitant: bool, seed: int = 1) -> None:
        self.calls, self.hesitant, self.random = calls, hesitant, random.Random(seed)
        self.interruption = StoppableCaller()
        self.now = 0
        self.over = False
        self.ended: set[int] = set()  # the calls that ended in Stopped
        self.said: set[int] = set()  # the calls for which stop() has returned True
        self.unnamed = 0  # how often it has returned True without a number
        self.denied = 0  # how often it has returned False
        self.wrong: list[BaseException] = []

    def call(self) -> None:
        call = self.interruption.call
        # A Stopped that hits other code could be raised anywhere here, even in the next call:
        # then `said` does not agree with `ended`.
        try:
            for number in range(self.calls):
                self.now = number
                try:
                    call(number, FUNCTIONS[number % len(FUNCTIONS)], (), {})
                except KeyError:
                    pass
                except Stopped:
                    self.ended.add(number)
        except BaseException as error:
            self.wrong.append(error)
        finally:
            self.over = True

    def stop(self) -> None:
        if self.hesitant:
            sys.settrace(self.hesitate)
        while not self.over:
            for _ in range(self.random.randrange(4)):
                sleep(0)
            named = self.random.random() < 0.9
            number = self.now + self.random.choice([0, 0, 0, -1, 1])
            if not self.interruption.stop(number if named else None):
                self.denied += 1
            elif named:
                self.said.add(number)
            else:
                self.unnamed += 1

    def hesitate(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code is not StoppableCaller.stop.__code__:
            return None
        if self.random.random() < 0.5:
            sleep(0)
        return self.hesitate

    def run(self) -> None:
        threads = [Thread(self.call), Thread(self.stop)]
        for thread in threads:
            thread.result()

    def check(self) -> None:
        assert self.wrong == []
        assert self.said <= self.ended
        assert len(self.ended - self.said) <= self.unnamed
        assert 0 < len(self.ended) < self.calls
        assert self.denied


@pytest.fixture
def hasty() -> Iterator[None]:
    """Make threads switch as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("hesitant", [False, True])
def test_stops_hit_only_the_calls_that_they_are_meant_for(hesitant: bool) -> None:
    race = Race(100_000, hesitant)
    race.run()
    race.check()


def start_threads() -> None:
    while True:
        threading.Thread(target=int).start()


def test_a_call_that_starts_threads_is_stopped() -> None:
    """A Stopped must not hit a thread that the function starts: the function would wait for it."""
    interruption, rounds = StoppableCaller(), 300
    over = threading.Event()

    def call() -> int:
        stopped = 0
        for number in range(rounds):
            try:
                interruption.call(number, start_threads, (), {})
            except Stopped:
                stopped += 1
        over.set()
        return stopped

    calling = Thread(call)
    while not over.wait(random.random() / 1000):
        interruption.stop()
        assert calling.is_alive() or over.is_set()
    assert calling.result() == rounds


def test_what_must_not_be_interrupted_runs_to_its_end() -> None:
    inside, go, end = Waiting(), Waiting(), Waiting()
    done: list[str] = []

    @uninterrupted
    def finish() -> None:
        inside.set()
        go.must()
        for _ in range(1000):
            done.append("more")
        done.append("finished")

    def work(begun: threading.Event) -> None:
        begun.set()
        finish()
        end.set()
        for _ in count():
            pass

    interruption, thread = started(work)
    inside.must()
    assert interruption.stop(1)  # the call will end by it, but not here
    go.set()
    end.must()
    assert done[-1] == "finished"
    assert interruption.stop(1)
    assert type(thread.error()) is Stopped


def test_a_call_that_was_stopped_where_it_must_not_be_interrupted_ends_in_stopped() -> None:
    inside, go = Waiting(), Waiting()

    @uninterrupted
    def finish() -> None:
        inside.set()
        go.must()

    def work(begun: threading.Event) -> str:
        begun.set()
        finish()
        return "returned"

    interruption, thread = started(work)
    inside.must()
    assert interruption.stop(1)
    go.set()
    assert type(thread.error()) is Stopped
    # Nothing is left that would stop the next call.
    assert interruption.call(2, divmod, (7, 2), {}) == (3, 1)


def test_a_finalizer_is_interrupted_before_or_behind_what_it_must_finish() -> None:
    """Stop calls at arbitrary moments; what they hold is always released."""
    lock = threading.Lock()

    @uninterrupted
    def hold() -> None:
        lock.acquire()
        list(range(20))
        lock.release()

    def work(begun: threading.Event) -> None:
        begun.set()
        for _ in count():
            hold()

    for _ in range(200):
        interruption, thread = started(work)
        while not thread.future.done():
            interruption.stop(1)
            sleep(0)
        assert type(thread.error()) is Stopped
        assert lock.acquire(timeout=TIMEOUT_SECONDS)
        lock.release()
    assert not uninterrupted_threads

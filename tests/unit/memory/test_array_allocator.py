"""Large arrays of a thread are placed in the arena, and are in all else arrays like others."""

from __future__ import annotations

import contextvars
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy._core import multiarray
from support.own_process import in_own_process

from daskbatch.memory import (
    arena,
    array_allocator,
    array_functions,
    array_ranges,
    kept_mappings,
    segment,
)
from daskbatch.memory.array_ranges import ArrayRange
from daskbatch.memory.host import host_id

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

LARGE, SMALL = 500_000, 10  # numbers of 8 bytes


@contextmanager
def placing(*sizes: int) -> Iterator[list[ArrayRange]]:
    """Expect arrays of some numbers, by default ten of `LARGE`."""
    # A range is taken from an arena that exists; tasks have stored a value before.
    assert arena.own_arena() is not None
    begun = array_allocator.begin([each * 8 for each in sizes or [LARGE] * 10])
    assert begun is not None
    try:
        yield begun.ranges
    finally:
        array_allocator.end(begun)


def is_placed(array: np.ndarray) -> bool:
    assert array.flags.owndata
    found = array.ctypes.data in array_ranges._ranges
    assert not found or multiarray.get_handler_name(array) == array_functions.NAME
    return found


def test_only_large_arrays_are_placed_and_only_between_begin_and_end() -> None:
    with placing():
        large, small = np.full(LARGE, 2.0), np.ones(SMALL)
        assert is_placed(large)
        assert not is_placed(small)
        assert large.sum() == 2 * LARGE
        assert small.sum() == SMALL
    assert not is_placed(np.empty(LARGE))
    assert multiarray.get_handler_name(np.empty(SMALL)) == "default_allocator"
    # Both are freed by the functions that have made them, which count on nothing else.
    large += 1
    assert large[-1] == 3


def test_arrays_that_are_not_expected_are_not_placed_and_counted() -> None:
    begun = array_allocator.begin([LARGE * 8, LARGE * 16])
    assert begun is not None
    arrays = [np.empty(LARGE), np.empty(LARGE), np.empty(LARGE * 10), np.empty(SMALL)]
    placed = array_allocator.end(begun)
    assert [is_placed(each) for each in arrays] == [True, False, False, False]
    assert placed == ((True, False), (LARGE * 8, LARGE * 80))


def test_more_arrays_than_are_counted() -> None:
    with placing(*[LARGE // 2] * 300) as ranges:
        assert len(ranges) == array_functions.MAX_SLOTS
        arrays = [np.full(LARGE // 2, float(n)) for n in range(600)]
        assert sum(map(is_placed, arrays)) == array_functions.MAX_SLOTS
    assert [each[-1] for each in arrays] == list(range(600))


def test_zeros_are_zeros_in_memory_that_is_used_again() -> None:
    with placing():
        full = np.full(LARGE, 7.0)
        address = full.ctypes.data
        del full
        again = np.zeros(LARGE)
        assert again.ctypes.data == address
        assert not again.any()


def test_an_array_can_be_resized() -> None:
    with placing():
        array = np.arange(LARGE, dtype=float)
        array.resize(LARGE // 2, refcheck=False)
        assert is_placed(array)
        view = array[:3]
        array.resize(LARGE * 3, refcheck=False)
        del view
        assert not is_placed(array)
        assert array[: LARGE // 2].tolist() == list(range(LARGE // 2))
        assert not array[LARGE:].any()
        small = np.arange(SMALL)
        small.resize(1000, refcheck=False)
        assert small[SMALL - 1] == SMALL - 1


def test_an_exception_that_is_raised_while_arrays_are_freed_is_kept() -> None:
    def fail() -> None:
        raise ValueError("mine")

    calls: list[Callable[[], object]] = [
        lambda: np.ones(SMALL) + fail(),  # type: ignore[operator, func-returns-value]
        lambda: np.ones(LARGE) + fail(),  # type: ignore[operator, func-returns-value]
        lambda: np.add(np.ones(LARGE), np.ones(LARGE - 1)),
        lambda: np.fromiter((1.0 if n < LARGE else fail() for n in range(LARGE + 1)), float),
        lambda: np.array([*[1.0] * SMALL, "x"], float),
    ]
    with placing() as ranges:
        for each in calls:
            with pytest.raises(ValueError, match="mine|broadcast|convert"):
                each()
        assert {each.slot.state for each in ranges} == {array_functions.READY}


def test_a_signal_handler_that_raises_ends_a_computation() -> None:
    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for _ in range(5):
            with placing(), pytest.raises(Alarm):
                array = np.ones(LARGE)
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                while True:
                    array = array * 2.0
    finally:
        signal.signal(signal.SIGALRM, before)


def test_arrays_up_to_the_limit_of_recursion() -> None:
    def deeper() -> None:
        array = np.empty(LARGE // 4)
        try:
            deeper()
        finally:
            del array

    with placing(*[LARGE // 4] * 20), pytest.raises(RecursionError):
        deeper()
    array_ranges.collect()
    assert not array_ranges.has_ranges()


def test_another_thread_and_another_context_are_not_concerned() -> None:
    found: list[bool] = []
    with placing():
        thread = threading.Thread(target=lambda: found.append(is_placed(np.empty(LARGE))))
        thread.start()
        thread.join()
        contextvars.Context().run(lambda: found.append(is_placed(np.empty(LARGE))))
    assert found == [False, False]


def test_a_context_that_outlives_the_call_makes_ordinary_arrays() -> None:
    with placing():
        context = contextvars.copy_context()
    array = context.run(np.empty, LARGE)
    assert not is_placed(array)
    array[:] = 1
    assert array.sum() == LARGE


def test_functions_that_a_program_has_chosen_are_kept() -> None:
    interface = array_allocator._interface()
    assert interface is not None
    _, handler = array_functions.own_handler(interface.default, 1)

    def choose() -> object:
        interface.set_handler(handler)
        return array_allocator.begin([LARGE * 8])

    assert contextvars.Context().run(choose) is None


def test_a_handler_that_the_call_sets_stays() -> None:
    interface = array_allocator._interface()
    assert interface is not None
    _, handler = array_functions.own_handler(interface.default, 1)

    def choose() -> object:
        with placing():
            interface.set_handler(handler)
        return interface.get_handler()

    assert contextvars.Context().run(choose) is handler


def test_without_memory_arrays_are_made_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    real = arena.call

    def full(name: str, *args: object) -> object:
        if name == "fallocate" and args[1] == 0:
            raise OSError(28, "No space left on device")
        return real(name, *args)

    monkeypatch.setattr(arena, "call", full)
    with placing(LARGE * 7) as ranges:  # of a size for which no memory is kept
        assert not ranges
        array = np.full(LARGE * 7, 1.0)
        assert not is_placed(array)
        assert array.sum() == LARGE * 7


def test_memory_that_is_freed_is_used_again() -> None:
    own = arena.own_arena()
    assert own is not None
    end = own._end
    for _ in range(1000):
        with placing(LARGE, LARGE):
            for number in range(3):
                array = np.full(LARGE, float(number))
                assert is_placed(array)
    assert own._end <= end + 5 * LARGE * 8
    del array
    array_ranges.collect()
    assert not array_ranges.has_ranges()


def _in_child(work: Callable[[], bool]) -> bool:
    """Fork; return what the child says."""
    child = os.fork()
    if not child:
        os._exit(bool(work()))
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), status
    return bool(os.WEXITSTATUS(status))


@in_own_process
def test_a_forked_child_has_its_own_copy() -> None:
    with placing():
        array = np.full(LARGE, 1.0)
        freed = np.full(LARGE, 1.0)
    del freed
    read, write = os.pipe()

    def change() -> bool:
        os.read(read, 1)  # the parent has changed its own
        same = bool((array == 1).all())
        array[:] = 5
        gc.collect()
        return same and bool((array == 5).all())

    child = os.fork()
    if not child:
        os._exit(change())
    array[:] = 3
    os.write(write, b"x")
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 1
    assert (array == 3).all()
    assert not array_ranges.can_store(array.ctypes.data, array.nbytes)
    with placing():
        assert is_placed(np.empty(LARGE))


@in_own_process
def test_forks_take_no_memory_for_arrays_that_nobody_changes() -> None:
    with placing(20 * LARGE):
        array = np.full(20 * LARGE, 1.0)
    before = kept_mappings.resident_bytes()
    for _ in range(6):
        assert _in_child(lambda: bool(array[-1] == 1))
    assert kept_mappings.resident_bytes() < before + array.nbytes // 2


@in_own_process
def test_forks_while_other_threads_make_change_and_free_arrays() -> None:
    wrong: list[str] = []
    end = threading.Event()

    def work(number: float) -> None:
        while not end.is_set():
            with placing(LARGE, LARGE):
                array = np.full(LARGE, number)
                other = array + 1
            array += 1
            if not (array == other).all():
                wrong.append(f"{number}: a write was lost")

    threads = [threading.Thread(target=work, args=(float(n),)) for n in range(2)]
    for each in threads:
        each.start()
    with placing():
        mine = np.full(LARGE, 7.0)
    for _ in range(40):
        assert _in_child(lambda: bool((mine == 7).all()))
    end.set()
    for each in threads:
        each.join()
    assert not wrong


@in_own_process
def test_a_forked_child_frees_its_copy_and_makes_arrays_of_its_own() -> None:
    with placing():
        arrays = [np.full(LARGE, 1.0)]

        def free_and_make() -> bool:
            address = arrays[0].ctypes.data
            arrays.clear()
            array_ranges.collect()
            gone = address not in array_ranges._ranges
            made = np.full(LARGE, 9.0)  # the child has no arena yet: an ordinary one
            return gone and bool(made.sum() == 9 * LARGE)

        assert _in_child(free_and_make)
        assert (arrays[0] == 1).all()
        # A grandchild has a copy of the child's.
        assert _in_child(lambda: _in_child(lambda: bool((arrays[0] == 1).all())))


def test_a_range_that_is_stored_is_freed_by_its_value_and_not_by_the_array() -> None:
    with placing():
        array = np.full(LARGE, 4.0)
    address = array.ctypes.data
    assert array_ranges.can_store(address, array.nbytes)
    assert not array_ranges.can_store(address, array.nbytes // 2)
    (held,) = array_ranges.store_ranges([address])
    assert not array_ranges.can_store(address, array.nbytes)
    del array
    memory = segment.cut(segment.attach(held.reference), [LARGE * 8])[0]
    assert np.frombuffer(memory, float).sum() == 4 * LARGE
    with placing():
        others = [np.full(LARGE, 0.0) for _ in range(5)]
    assert np.frombuffer(memory, float).sum() == 4 * LARGE
    # An address may come again, once what was mapped there is not; the memory may not.
    found = [array_ranges._ranges.get(each.ctypes.data) for each in others]
    assert held.offset not in [each.key.offset for each in found if each is not None]


def test_threads_that_make_and_free_arrays_do_not_disturb_each_other() -> None:
    wrong: list[str] = []
    until = time.monotonic() + 2

    def work(number: int) -> None:
        kept: list[np.ndarray] = []
        size = 150_000 + number * 10_000
        while time.monotonic() < until and not wrong:
            with placing(size):
                kept.append(np.full(size, float(number)))
                if len(kept) > 3:
                    old = kept.pop(0)
                    if not (old == number).all():
                        wrong.append(f"thread {number} found other numbers")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong

"""Large arrays of a thread are placed in the arena, and are in all else arrays like others."""

from __future__ import annotations

import contextvars
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy._core import multiarray
from support.own_process import in_own_process

from daskbatch.memory import arena, array_allocator, array_ranges, segment
from daskbatch.memory.host import host_id

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

LARGE, SMALL = 500_000, 10  # numbers of 8 bytes


@contextmanager
def placing(largest: int = 1 << 30) -> Iterator[None]:
    # A range is taken from an arena that exists; tasks have stored a value before.
    assert arena.own_arena() is not None
    assert array_allocator.begin(largest)
    try:
        yield
    finally:
        array_allocator.end()


def is_placed(array: np.ndarray) -> bool:
    assert array.flags.owndata
    found = array_ranges.capacity(array.ctypes.data) is not None
    assert not found or multiarray.get_handler_name(array) == array_allocator.NAME
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


def test_arrays_that_are_larger_than_expected_are_not_placed() -> None:
    with placing(largest=LARGE * 8):
        assert is_placed(np.empty(LARGE))
        assert not is_placed(np.empty(LARGE + 1))


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
        array.resize(LARGE * 3, refcheck=False)
        assert not is_placed(array)
        assert array[: LARGE // 2].tolist() == list(range(LARGE // 2))
        assert not array[LARGE:].any()
        small = np.arange(SMALL)
        small.resize(1000, refcheck=False)
        assert small[SMALL - 1] == SMALL - 1


def test_a_call_that_makes_many_small_arrays_goes_on_with_numpys_own_functions() -> None:
    with placing():
        many = [np.empty(SMALL) for _ in range(1000)]
        names = [multiarray.get_handler_name(each) for each in many]
        assert names[0] == array_allocator.NAME
        assert names[-1] == "default_allocator"
        assert not is_placed(np.empty(LARGE))
    with placing():
        assert is_placed(np.empty(LARGE))


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
    installed = array_allocator._install()
    assert installed is not None

    def choose() -> bool:
        other = contextvars.copy_context().run(installed.get_handler)
        assert other is installed.default
        installed.set_handler(installed.own)  # as if it were another one than NumPy's own
        return array_allocator.begin(1 << 30)

    assert not contextvars.Context().run(choose)


def test_without_memory_arrays_are_made_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    real = arena.call

    def full(name: str, *args: object) -> object:
        if name == "fallocate" and args[1] == 0:
            raise OSError(28, "No space left on device")
        return real(name, *args)

    monkeypatch.setattr(arena, "call", full)
    with placing():
        array = np.full(LARGE * 7, 1.0)  # of a size for which no memory is kept
        assert not is_placed(array)
        assert array.sum() == LARGE * 7


def test_an_array_that_is_freed_while_the_lock_is_held_is_freed_later() -> None:
    with placing():
        array = np.empty(LARGE)
        own = arena.own_arena()
        assert own is not None
        with own._lock:
            # As a finalizer that runs in the middle of a call: it must not wait for it.
            del array
            assert not is_placed(np.empty(LARGE))
        assert is_placed(np.empty(LARGE))


def test_memory_that_is_freed_is_used_again() -> None:
    own = arena.own_arena()
    assert own is not None
    end = own._end
    for _ in range(1000):
        with placing():
            array = np.empty(LARGE)
            assert is_placed(array)
            array[:] = 1
    assert own._end <= end + 3 * LARGE * 8
    del array
    gc.collect()
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
    assert not array_ranges._copies


@in_own_process
def test_a_forked_child_frees_its_copy_and_makes_arrays_of_its_own() -> None:
    with placing():
        arrays = [np.full(LARGE, 1.0)]

        def free_and_make() -> bool:
            address = arrays[0].ctypes.data
            arrays.clear()
            gone = array_ranges.capacity(address) is None
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
    held = array_ranges.store_range(address)
    assert not array_ranges.can_store(address, array.nbytes)
    del array
    memory = segment.cut(segment.attach(held.reference), [LARGE * 8])[0]
    assert np.frombuffer(memory, float).sum() == 4 * LARGE
    with placing():
        others = [np.full(LARGE, 0.0) for _ in range(5)]
    assert np.frombuffer(memory, float).sum() == 4 * LARGE
    assert address not in [each.ctypes.data for each in others]


def test_threads_that_make_and_free_arrays_do_not_disturb_each_other() -> None:
    wrong: list[str] = []
    until = time.monotonic() + 2

    def work(number: int) -> None:
        kept: list[np.ndarray] = []
        with placing():
            while time.monotonic() < until and not wrong:
                kept.append(np.full(150_000 + number * 10_000, float(number)))
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

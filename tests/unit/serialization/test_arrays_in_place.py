"""An array is stored where it is only if nothing else could change it."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from daskbatch.memory import arena, array_allocator, array_ranges
from daskbatch.memory.host import host_id
from daskbatch.serialization import arrays_in_place, stored_value

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

COUNT = 300_000

KEPT: list[Any] = []


@pytest.fixture(autouse=True)
def placing() -> Iterator[None]:
    KEPT.clear()
    assert arena.own_arena() is not None
    assert array_allocator.begin(1 << 30)
    yield
    array_allocator.end()
    KEPT.clear()


def made() -> Any:
    return np.arange(COUNT, dtype=float)


def store(make: Callable[[], Any]) -> tuple[Any, Any]:
    """Store what a function returns; return the value, and what it was if it was copied."""
    box = [make()]
    stored = arrays_in_place.dumps(box)
    assert (stored is None) == bool(box)
    return stored, box[0] if box else None


RECORD = np.dtype([("a", np.int64), ("b", "f4", (3,))])

ALONE: dict[str, Callable[[], Any]] = {
    "one": made,
    "matrix": lambda: np.ones((600, 500)),
    "reshaped": lambda: made().reshape(600, 500),
    "transposed": lambda: made().reshape(600, 500).T,
    "fortran": lambda: np.asfortranarray(np.ones((600, 500))),
    "records": lambda: np.zeros(100_000, RECORD),
    "complex": lambda: np.full(COUNT, 1j),
    "bytes": lambda: np.frombuffer(np.full(2_000_000, 65, np.uint8), "S10").copy(),
    "most": lambda: made()[: COUNT - 1000],
    "zeros": lambda: np.zeros(COUNT),
    "sum": lambda: made() + made(),
}


@pytest.mark.parametrize("name", ALONE)
def test_an_array_that_is_nobody_elses_is_not_copied(name: str) -> None:
    make = ALONE[name]
    expected = make()
    stored, copied = store(make)
    assert stored is not None
    assert copied is None
    found = pickle.loads(stored)
    assert found.dtype == expected.dtype
    assert found.flags.f_contiguous == expected.flags.f_contiguous
    np.testing.assert_array_equal(found, expected)
    found[...] = np.zeros(1, found.dtype)[0]
    # Each reader has a copy of its own.
    np.testing.assert_array_equal(pickle.loads(stored), expected)


def test_a_read_only_array_stays_one() -> None:
    def make() -> Any:
        array = made()
        array.flags.writeable = False
        return array

    stored, _ = store(make)
    assert stored is not None
    assert pickle.loads(stored)[-1] == COUNT - 1


def keep_itself() -> Any:
    array = made()
    KEPT.append(array)
    return array


def keep_a_view() -> Any:
    array = made()
    KEPT.append(array[3:5])
    return array


def return_a_view_and_keep_its_owner() -> Any:
    array = made()
    KEPT.append(array)
    return array.reshape(600, 500)


def return_a_view_and_keep_another() -> Any:
    array = made()
    KEPT.append(array[:2])
    return array[:]


def keep_its_buffer() -> Any:
    array = made()
    KEPT.append(memoryview(array))
    return array


def keep_a_pickle_buffer() -> Any:
    array = made()
    KEPT.append(pickle.PickleBuffer(array))
    return array


def keep_a_weak_reference() -> Any:
    array = made()
    KEPT.append(weakref.ref(array))
    return array


def keep_a_weak_reference_to_its_owner() -> Any:
    array = made()
    KEPT.append(weakref.ref(array))
    return array[:]


def keep_its_interface() -> Any:
    array = made()
    KEPT.append(array.ctypes)
    return array


def keep_in_a_closure() -> Any:
    array = made()
    KEPT.append(lambda: array)
    return array


def keep_in_a_generator() -> Any:
    array = made()

    def numbers() -> Iterator[Any]:
        yield array

    running = numbers()
    next(running)
    KEPT.append(running)
    return array


def keep_in_a_traceback() -> Any:
    array = made()
    try:
        raise ValueError
    except ValueError as error:
        KEPT.append(error)
    return array


def keep_in_a_thread() -> Any:
    array = made()
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        mine = array
        begun.set()
        end.wait(60)
        assert len(mine) == COUNT

    threading.Thread(target=work, daemon=True).start()
    begun.wait(60)
    KEPT.append(end)
    return array


def keep_in_an_object_array() -> Any:
    array = made()
    holder = np.empty(1, object)
    holder[0] = array
    KEPT.append(holder)
    return array


def keep_as_attribute() -> Any:
    array = made()
    made.last = array  # type: ignore[attr-defined]
    return array


SHARED = [value for name, value in list(globals().items()) if name.startswith(("keep_", "return_"))]


@pytest.mark.parametrize("make", SHARED, ids=lambda each: each.__name__)
def test_an_array_that_somebody_keeps_is_copied(make: Callable[[], Any]) -> None:
    stored, copied = store(make)
    assert stored is None
    assert copied is not None
    for each in KEPT:
        if isinstance(each, threading.Event):
            each.set()
    made.__dict__.clear()


class Subclass(np.ndarray):
    pass


OTHERS: dict[str, Callable[[], Any]] = {
    "subclass": lambda: made().view(Subclass),
    "part": lambda: made()[: COUNT // 2],
    "behind": lambda: made()[1000:],
    "steps": lambda: made()[::2],
    "objects": lambda: np.full(COUNT, None),
    "of a buffer": lambda: np.frombuffer(bytearray(COUNT * 8)),
    "broadcast": lambda: np.broadcast_to(made(), (2, COUNT)),
    "small": lambda: np.ones(3),
    "dates": lambda: np.full(COUNT, np.datetime64("2026-11-29")),  # not a buffer
    "list": lambda: [made()],
    "number": lambda: 3,
    "nothing": lambda: None,
    "masked": lambda: np.ma.masked_less(made(), 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_values_are_pickled_and_unchanged(name: str) -> None:
    stored, copied = store(OTHERS[name])
    assert stored is None
    assert copied is not None or name == "nothing"


def test_ordinary_memory_is_copied() -> None:
    array_allocator.end()
    held = [made()]
    assert arrays_in_place.dumps(held) is None
    assert len(held) == 1


def test_many_values_leave_nothing() -> None:
    for _ in range(300):
        array_allocator.end()
        assert array_allocator.begin(1 << 30)
        stored, _ = store(made)
        assert pickle.loads(stored)[-1] == COUNT - 1
    del stored
    gc.collect()
    assert not array_ranges.has_ranges()


def test_a_stored_value_is_carried_to_other_hosts_and_restored() -> None:
    stored, _ = store(made)
    data = pickle.dumps(stored, 5)
    carried = stored_value.carried(stored)
    del stored
    assert pickle.loads(pickle.loads(data))[-1] == COUNT - 1
    assert pickle.loads(carried)[-1] == COUNT - 1

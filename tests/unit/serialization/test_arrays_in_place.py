"""An array is stored where it is only if nothing else could change it."""

from __future__ import annotations

import contextvars
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest

from daskbatch.memory import arena, array_allocator
from daskbatch.memory.host import host_id
from daskbatch.serialization import arrays_in_place, stored_value

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

COUNT = 300_000

KEPT: list[Any] = []


@pytest.fixture(autouse=True)
def placing() -> Iterator[None]:
    KEPT.clear()
    assert arena.own_arena() is not None
    with expecting():
        yield
    KEPT.clear()


@contextmanager
def expecting() -> Iterator[None]:
    """Have arrays of these tests made where values are stored."""
    begun = array_allocator.begin([COUNT * 8] * 10 + [COUNT * 4] * 5 + [COUNT * 16] * 2)
    assert begun is not None
    yield
    array_allocator.end(begun)


def made() -> Any:
    return np.arange(COUNT, dtype=float)


def store(make: Callable[[], Any]) -> tuple[Any, Any]:
    """Store what a function returns; return the value, and what it was if it was copied."""
    box = [make()]
    if not arrays_in_place.is_plain(box[0]):
        return None, box[0]
    pickled = stored_value.pickle_value(box[0], 1 << 16)
    if not isinstance(pickled, stored_value.Pickled):
        return None, box[0]
    stored, in_place = stored_value.store_in_place(pickled, box)
    return (stored, None) if in_place else (None, pickle.loads(stored))


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(found, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.flags.f_contiguous == expected.flags.f_contiguous
        np.testing.assert_array_equal(found, expected)
    elif isinstance(found, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    elif isinstance(found, pd.Series):
        pd.testing.assert_series_equal(found, expected)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        for key, value in found.items():
            assert_equal(value, expected[key])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def arrays_of(value: Any) -> Iterator[Any]:
    """Find the arrays in nested containers."""
    if isinstance(value, np.ndarray):
        yield value
    for each in value.values() if isinstance(value, dict) else value if type(value) is list else ():
        yield from arrays_of(each)


RECORD = np.dtype([("a", np.int64), ("b", "f4", (3,))])

ALONE: dict[str, Callable[[], Any]] = {
    "one": made,
    "matrix": lambda: np.ones((600, 500)),
    "reshaped": lambda: made().reshape(600, 500),
    "transposed": lambda: made().reshape(600, 500).T,
    "fortran": lambda: np.asfortranarray(np.ones((600, 500))),
    "complex": lambda: np.full(COUNT, 1j),
    "bytes": lambda: np.frombuffer(np.full(2_000_000, 65, np.uint8), "S10").copy(),
    "most": lambda: made()[: COUNT - 1000],
    "zeros": lambda: np.zeros(COUNT),
    "sum": lambda: made() + made(),
    "list": lambda: [made()],
    "pair": lambda: (made(), np.ones(COUNT)),
    "twice": lambda: [made()] * 2,
    "dict": lambda: {"a": made(), "b": 3, "c": "text", 4: None},
    "nested": lambda: [{"a": (made(), [made()])}, np.float64(3)],
    "with small ones": lambda: [np.ones(3), made(), np.ones(20_000), made(), np.arange(9_000)],
    "frame": lambda: pd.DataFrame({"a": made(), "b": made()}),
    "integers": lambda: pd.DataFrame({"a": made().astype(int)}, index=pd.RangeIndex(COUNT)),
    "series": lambda: pd.Series(made(), name="numbers"),
    "frames": lambda: [pd.DataFrame({"a": made(), "b": 1}) for _ in range(3)],
    "frame of dates": lambda: pd.DataFrame(
        {"t": pd.date_range("2026-11-29", periods=COUNT, freq="s"), "a": made()}
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_an_array_that_is_nobody_elses_is_not_copied(name: str) -> None:
    make = ALONE[name]
    expected = make()
    stored, copied = store(make)
    assert stored is not None
    assert copied is None
    found = pickle.loads(stored)
    assert_equal(found, expected)
    for each in arrays_of(found):
        each[...] = np.zeros(1, each.dtype)[0]
    # Each reader has a copy of its own; and a value that travels to other hosts is the same.
    assert_equal(pickle.loads(stored), expected)
    assert_equal(pickle.loads(stored_value.carried(stored)), expected)
    assert_equal(pickle.loads(pickle.loads(pickle.dumps(stored, 5))), expected)
    assert_equal(pickle.loads(pickle.loads(pickle.dumps(stored, 4))), expected)


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


def keep_beside_what_is_not_counted(make: Callable[[Any], Any]) -> Any:
    array = made()
    KEPT.append(array)
    return make(array)


def keep_and_return_a_buffer() -> Any:
    return keep_beside_what_is_not_counted(lambda a: np.asarray(memoryview(a)).reshape(600, 500))


def keep_and_return_bytes_of_a_buffer() -> Any:
    return keep_beside_what_is_not_counted(
        lambda a: np.asarray(memoryview(a).cast("B")).view(float)
    )


def keep_and_return_by_dlpack() -> Any:
    return keep_beside_what_is_not_counted(lambda a: np.from_dlpack(a)[:])


def keep_and_return_with_strides() -> Any:
    return keep_beside_what_is_not_counted(lambda a: np.lib.stride_tricks.as_strided(a)[:])


def keep_and_return_by_ctypes() -> Any:
    return keep_beside_what_is_not_counted(
        lambda a: np.ctypeslib.as_array(np.ctypeslib.as_ctypes(a))[:]
    )


def keep_and_return_a_view_of_a_subclass() -> Any:
    return keep_beside_what_is_not_counted(lambda a: np.asarray(a.view(Subclass)[:])[:])


class Interface:
    def __init__(self, array: Any) -> None:
        self.__array_interface__ = array.__array_interface__
        self.array = array


def keep_and_return_by_an_interface() -> Any:
    return keep_beside_what_is_not_counted(lambda a: np.asarray(Interface(a))[:])


def keep_in_a_list() -> Any:
    array = made()
    KEPT.append([array])
    return [array]


def keep_the_list() -> Any:
    KEPT.append([made()])
    return KEPT[-1]


def keep_the_inner_list() -> Any:
    KEPT.append([made()])
    return {"a": KEPT[-1]}


def keep_as_attribute() -> Any:
    array = made()
    made.last = array  # type: ignore[attr-defined]
    return array


SHARED = [value for name, value in list(globals().items()) if name.startswith(("keep_", "return_"))]
SHARED.remove(keep_beside_what_is_not_counted)


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
    "records": lambda: np.zeros(100_000, RECORD),
    "dates": lambda: np.full(COUNT, np.datetime64("2026-11-29")),  # not a buffer
    "number": lambda: 3,
    "nothing": lambda: None,
    "masked": lambda: np.ma.masked_less(made(), 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_values_are_pickled_and_unchanged(name: str) -> None:
    stored, copied = store(OTHERS[name])
    assert stored is None
    assert copied is not None or name == "nothing"


class Last:
    """Changes an array when it is dropped, as one that puts it back into a pool could."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.small = np.arange(4.0)
        self.__array_interface__ = self.small.__array_interface__

    def __del__(self) -> None:
        self.array[...] = -1


def in_metadata(array: Any) -> Any:
    return np.zeros(3, np.dtype("f8", metadata={"last": Last(array)}))


def in_nested_metadata(array: Any) -> Any:
    return np.zeros(3, np.dtype([("f", np.dtype("f8", metadata={"last": Last(array)}))]))


def as_attribute(array: Any) -> Any:
    frame = pd.DataFrame({"a": [1.0]})
    object.__setattr__(frame, "last", Last(array))
    return frame


def as_attribute_of_an_index(array: Any) -> Any:
    frame = pd.DataFrame({"a": [1.0]})
    object.__setattr__(frame.index, "last", Last(array))
    return frame


def by_finalizer_of_an_index(array: Any) -> Any:
    frame = pd.DataFrame({"a": [1.0]})
    weakref.finalize(frame.index, array.fill, -1)
    return frame


def by_finalizer_of_a_frame(array: Any) -> Any:
    frame = pd.DataFrame({"a": [1.0]})
    weakref.finalize(frame, array.fill, -1)
    return frame


def below_a_frame(array: Any) -> Any:
    return pd.DataFrame(np.asarray(Last(array)).reshape(4, 1), copy=False)


def below_an_index(array: Any) -> Any:
    return pd.DataFrame({"a": [1.0] * 4}, index=pd.Index(np.asarray(Last(array)), copy=False))


def in_a_frame_of_objects(array: Any) -> Any:
    return pd.DataFrame({"a": [Last(array)]})


WATCHERS: list[Callable[[Any], Any]] = [
    lambda array: np.asarray(Last(array)),
    in_metadata,
    in_nested_metadata,
    as_attribute,
    as_attribute_of_an_index,
    by_finalizer_of_an_index,
    by_finalizer_of_a_frame,
    below_a_frame,
    below_an_index,
    in_a_frame_of_objects,
    Last,
]


@pytest.mark.parametrize("watch", WATCHERS, ids=lambda each: each.__name__)
def test_an_object_that_changes_arrays_when_it_is_dropped(watch: Callable[[Any], Any]) -> None:
    array = made()
    assert not arrays_in_place.is_plain([array, watch(array)])


def test_a_fork_in_the_middle_of_storing(monkeypatch: pytest.MonkeyPatch) -> None:
    take = arrays_in_place.take

    def take_and_fork(box: Any, buffers: Any) -> Any:
        found = take(box, buffers)
        assert found[0]
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        return found

    monkeypatch.setattr(arrays_in_place, "take", take_and_fork)
    box = [[made(), np.ones(20_000)]]
    pickled = stored_value.pickle_value(box[0], 1 << 16)
    assert isinstance(pickled, stored_value.Pickled)
    stored, in_place = stored_value.store_in_place(pickled, box)
    assert in_place is False
    assert pickle.loads(stored)[0][-1] == COUNT - 1


@pytest.mark.parametrize(("count", "in_place"), [(8, True), (9, None)])
def test_many_small_arrays_are_copied(count: int, in_place: bool | None) -> None:
    small = COUNT // 4

    def run() -> None:
        begun = array_allocator.begin([small * 8] * count)
        assert begun is not None
        box = [[np.full(small, float(n)) for n in range(count)]]
        assert all(each.slot.was_used for each in begun.ranges)
        array_allocator.end(begun)
        pickled = stored_value.pickle_value(box[0], 1 << 16)
        assert isinstance(pickled, stored_value.Pickled)
        stored, found = stored_value.store_in_place(pickled, box)
        assert found is in_place
        assert [each[0] for each in pickle.loads(stored)] == list(range(count))

    contextvars.Context().run(run)


def test_ordinary_memory_is_copied() -> None:
    assert contextvars.Context().run(store, made)[0] is None


def test_many_values_leave_nothing() -> None:
    def once() -> None:
        with expecting():
            stored, _ = store(made)
        assert stored is not None
        assert pickle.loads(stored)[-1] == COUNT - 1

    own = arena.own_arena()
    assert own is not None
    for number in range(300):
        if number == 20:
            end = own._end
        contextvars.Context().run(once)
    assert own._end == end


def test_a_stored_value_is_carried_to_other_hosts_and_restored() -> None:
    stored, _ = store(made)
    data = pickle.dumps(stored, 5)
    carried = stored_value.carried(stored)
    del stored
    assert pickle.loads(pickle.loads(data))[-1] == COUNT - 1
    assert pickle.loads(carried)[-1] == COUNT - 1

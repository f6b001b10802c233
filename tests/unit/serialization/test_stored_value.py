"""Large values become pickles that refer to memory; each reader has a copy of its own."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.own_process import in_own_process

from daskbatch.memory import kept_mappings, segment
from daskbatch.memory.host import host_id
from daskbatch.memory.segment import ValueGone
from daskbatch.memory.shared_buffer import by_reference
from daskbatch.serialization import pickling, stored_value
from daskbatch.serialization.stored_value import StoredValue

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

LIMIT = 1 << 16
COUNT = LIMIT // 8 + 1


class Reducing:
    """An object that pickles its array by itself, out of band."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Reducing._from, (pickle.PickleBuffer(self.data), self.data.dtype.str)

    @classmethod
    def _from(cls, data: Any, dtype: str) -> Reducing:
        return cls(np.frombuffer(data, dtype))


@dataclass
class Record:
    name: str
    parts: list[Any]


def numbers(count: int = COUNT) -> Any:
    return np.arange(count, dtype=float)


def frozen(made: Any) -> Any:
    made.flags.writeable = False
    return made


#: Makes a value, and finds the arrays in it.
KINDS: dict[str, tuple[Any, Any]] = {
    "array": (numbers, lambda v: [v]),
    "several": (lambda: [numbers(), numbers(3), numbers()], lambda v: v),
    "twice the same": (lambda: [numbers()] * 2, lambda v: v),
    "nested": (
        lambda: {"a": (1, [numbers()]), "b": {2: numbers()}},
        lambda v: [v["a"][1][0], v["b"][2]],
    ),
    "dataclass": (
        lambda: Record("x", [numbers(), {1: numbers()}]),
        lambda v: [v.parts[0], v.parts[1][1]],
    ),
    "Fortran order": (
        lambda: np.asfortranarray(numbers().reshape(-1, 1).repeat(3, 1)),
        lambda v: [v],
    ),
    "view": (lambda: numbers(4 * COUNT)[COUNT:-COUNT], lambda v: [v]),
    "strided": (lambda: numbers(4 * COUNT)[::2], lambda v: [v]),
    "reversed": (lambda: numbers()[::-1], lambda v: [v]),
    "read-only": (lambda: frozen(numbers()), lambda v: [v]),
    "empty beside": (lambda: [numbers(), np.empty((0, 3)), numbers(0)], lambda v: v),
    "own reduce": (lambda: Reducing(numbers()), lambda v: [v.data]),
    "structured": (lambda: np.zeros(COUNT, [("a", "i4"), ("b", "f8")]), lambda v: [v["a"], v["b"]]),
    "objects beside": (
        lambda: [np.array([{}, None, "x"], dtype=object), numbers()],
        lambda v: v[1:],
    ),
    "other array": (lambda: [array("d", range(COUNT)), numbers()], lambda v: v[1:]),
}


def stored(value: object) -> StoredValue:
    data = stored_value.dumps(value, LIMIT)
    assert type(data) is StoredValue
    assert len(data) < 10_000
    return data


@pytest.mark.parametrize(("make", "arrays"), KINDS.values(), ids=KINDS)
def test_each_reader_has_its_own_copy(make: Any, arrays: Any) -> None:
    original = make()
    data = stored(original)
    expected = arrays(make())
    for each in arrays(original):
        if each.flags.writeable:
            each[...] = 0  # the value is that of the moment
    first, second = (pickling.loads(data) for _ in range(2))
    for found, same in zip(arrays(first), expected, strict=True):
        assert found.dtype == same.dtype
        if same.flags.forc:  # pickle makes others contiguous
            assert found.flags.f_contiguous == same.flags.f_contiguous
        np.testing.assert_array_equal(found, same)
    for found in arrays(first):
        if found.flags.writeable:
            found[...] = 9
    for found, same in zip(arrays(second), expected, strict=True):
        np.testing.assert_array_equal(found, same)
    for found, same in zip(arrays(pickling.loads(data)), expected, strict=True):
        np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize(("make", "arrays"), KINDS.values(), ids=KINDS)
def test_each_reader_has_its_own_copy_in_memory_that_is_used_again(
    make: Any, arrays: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_mappings, "MIN_KEPT_BYTES", 1)
    gc.collect()
    for step in range(4):
        value = make()
        data = stored(value)
        for _ in range(2):
            found = pickling.loads(data)
            for mine, same in zip(arrays(found), arrays(value), strict=True):
                assert (np.asarray(mine) == np.asarray(same)).all()
            if step % 2:  # the next reader has another mapping
                for mine in arrays(found):
                    mine = np.asarray(mine)
                    if mine.size and mine.flags.writeable:
                        mine[...] = np.zeros((), mine.dtype)
            del found, mine, same
        del data
    kept_mappings.release_kept()


def test_what_was_read_only_stays_so_and_what_was_not_does_not() -> None:
    assert not pickling.loads(stored(frozen(numbers()))).flags.writeable
    assert pickling.loads(stored(numbers())).flags.writeable


def test_objects_that_are_one_stay_one() -> None:
    first, second = pickling.loads(stored([numbers()] * 2))
    assert first is second


@pytest.mark.parametrize(
    "value",
    [b"x" * 100_000, "é" * 100_000, list(range(50_000)), {n: str(n) for n in range(20_000)},
     bytearray(100_000), (1 << 1_000_000)],
    ids=["bytes", "str", "list", "dict", "bytearray", "int"],
)  # fmt: skip
def test_what_has_no_buffers_is_stored_as_its_pickle(value: Any) -> None:
    data = stored(value)
    first = pickling.loads(data)
    assert (type(first), first) == (type(value), value)
    if isinstance(first, (list, dict, bytearray)):
        first.clear()
    assert pickling.loads(data) == value


@pytest.mark.parametrize("value", [None, 1, "x", b"x" * 1000, [1, 2], np.arange(10)], ids=repr)
def test_small_values_are_plain_pickles(value: Any) -> None:
    data = stored_value.dumps(value, LIMIT)
    assert type(data) is bytes
    assert not stored_value.is_stored(data)
    assert repr(pickle.loads(data)) == repr(value)


def test_a_limit_above_the_size_of_buffers_keeps_values_in_messages() -> None:
    data = stored_value.dumps(numbers(), 1 << 30)
    assert pickling.loads(data).sum() == numbers().sum()


def test_without_shared_memory_values_carry_their_buffers(monkeypatch: Any) -> None:
    monkeypatch.setattr(segment, "own_arena", lambda: None)
    for value in (numbers(), [numbers(), "x"], b"x" * 100_000):
        data = stored_value.dumps(value, LIMIT)
        assert type(data) is bytes
        first = pickling.loads(data)
        if isinstance(first, np.ndarray):
            first[:] = 0
        assert repr(pickling.loads(data)) == repr(value)


def test_it_carries_its_buffers_unless_by_reference() -> None:
    data = stored([numbers(), b"beside"])
    buffers: list[pickle.PickleBuffer] = []
    out_of_band = pickle.dumps(data, 5, buffer_callback=buffers.append)
    in_band = [pickle.dumps(data, protocol) for protocol in (2, 4, 5)]
    assert len(out_of_band) < 2000
    content = [bytes(each) for each in buffers]
    del data
    gc.collect()
    for copy in (*map(pickle.loads, in_band), pickle.loads(out_of_band, buffers=content)):
        assert type(copy) is StoredValue
        assert (pickling.loads(copy)[0] == numbers()).all()


def test_by_reference_the_receiver_holds_the_memory() -> None:
    data = stored(numbers())
    with by_reference():
        sent = pickle.dumps(data)
    assert len(sent) < 2000
    held = pickle.loads(sent)
    del data
    gc.collect()
    assert (pickling.loads(held) == numbers()).all()
    del held
    gc.collect()
    assert pickle.loads(sent).segment is None


def test_what_is_gone_is_an_error_and_not_another_value() -> None:
    data = stored(numbers())
    plain = bytes(data)
    del data
    gc.collect()
    others = [stored(numbers() + n) for n in range(3)]
    with pytest.raises(ValueGone):
        pickling.loads(plain)
    assert stored_value.adopt(plain).segment is None
    del others


def test_another_process_reads_and_changes_its_own() -> None:
    data = stored({"a": numbers(), "b": "text"})
    program = (
        "import sys, pickle; v = pickle.load(sys.stdin.buffer); v['a'] += 1;"
        "sys.stdout.write(f\"{v['a'][-1]} {v['b']}\")"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=bytes(data), capture_output=True, check=True
    )
    assert done.stdout.decode() == f"{COUNT}.0 text"
    assert pickling.loads(data)["a"][-1] == COUNT - 1


def test_dask_sees_the_size() -> None:
    data = stored(numbers(1_000_000))
    # Memory that is used again may be larger than what is needed, by a third.
    assert 8_000_000 <= sys.getsizeof(data) < 10_700_000
    assert sys.getsizeof(pickle.loads(pickle.dumps(data))) >= 8_000_000


def test_errors_of_pickling_are_raised_and_nothing_stays() -> None:
    with pytest.raises(TypeError):
        stored_value.dumps([numbers(), (n for n in ())], LIMIT)
    assert pickling.loads(stored(numbers())).sum() == numbers().sum()


@settings(max_examples=25, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 255)), max_size=30
    ),
    shapes=st.lists(st.integers(LIMIT + 1, 3 * LIMIT), min_size=1, max_size=4),
)
def test_no_reader_sees_another_change(
    changes: list[tuple[int, int, int]], shapes: list[int]
) -> None:
    """Readers of several values change them in any order; each sees its own changes alone."""
    values = [np.full(size, n, np.uint8) for n, size in enumerate(shapes)]
    kept: list[Any] = [stored([each, each[::2]]) for each in values]
    readers = [(n % len(kept), pickling.loads(kept[n % len(kept)])[0]) for n in range(8)]
    expected = [values[n].copy() for n, _ in readers]
    for action, which, byte in changes:
        number, found = readers[which]
        if action == 0:  # change a part
            found[byte::1000] = byte
            expected[which][byte::1000] = byte
        elif action == 1:  # change all
            found += 1
            expected[which] += 1
        elif action == 2:  # store what was changed, and read that
            kept.append(stored([found, found[::2]]))
            readers[which] = number, pickling.loads(kept[-1])[0]
        else:  # drop the value, and read another one
            other = byte % len(values)
            data = stored([values[other]])
            readers[which] = other, pickling.loads(data)[0]
            expected[which] = values[other].copy()
    for (_, found), same in zip(readers, expected, strict=True):
        assert (found == same).all()
    assert all((pickling.loads(kept[n])[0] == each).all() for n, each in enumerate(values))


@in_own_process
def test_many_values_leave_no_descriptors_or_mappings() -> None:
    def count() -> tuple[int, int]:
        gc.collect()
        with open("/proc/self/maps", encoding="utf-8") as file:
            mapped = sum("daskbatch-values" in line for line in file)
        return len(os.listdir("/proc/self/fd")), mapped

    pickling.loads(stored(numbers()))
    kept_mappings.release_kept()
    before = count()
    for n in range(1000):
        assert pickling.loads(stored(numbers() + n))[0] == n
    assert count() == before


def test_a_large_argument_is_mapped_and_not_copied() -> None:
    array = np.arange(100_000.0)
    data, _, (buffer,) = pickling.pack(array)
    stored = stored_value.buffer_value(buffer)
    assert stored is not None
    content = pickling.loads(bytes(stored))
    found = pickling.unpack(data, (), [content])
    assert np.shares_memory(found, np.frombuffer(content, "u1"))
    found[0] = 5.0  # the task's own
    assert array[0] == 0.0
    assert pickling.unpack(data, (), [pickling.loads(bytes(stored))])[0] == 0.0
    read_only = np.arange(100_000.0)
    read_only.flags.writeable = False
    data, _, (buffer,) = pickling.pack(read_only)
    stored = stored_value.buffer_value(buffer)
    assert stored is not None
    assert not pickling.unpack(data, (), [pickling.loads(bytes(stored))]).flags.writeable

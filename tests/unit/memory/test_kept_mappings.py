"""Mappings are kept for the next value in the same memory, and never show another value."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support.own_process import in_own_process
from support.processes import killed_if_failed
from support.waiting import wait_until

from daskbatch.memory import kept_mappings, segment
from daskbatch.memory.arena import Arena, erase, new_memory_file
from daskbatch.memory.host import host_id
from daskbatch.memory.kept_mappings import Key, kept_bytes, release_kept, set_limits
from daskbatch.memory.segment import Reference, Segment

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

SIZE = 2_000_000
#: What a range of `SIZE` takes.
RANGE = 2_002_944


@contextmanager
def new_arena(watches: bool) -> Iterator[Arena]:
    """Yield an arena; others may erase its memory, if it is that of a child."""
    gc.collect()
    release_kept()
    before = kept_mappings.limit(), None
    file = new_memory_file()
    made = Arena(file, (os.getpid(), file), watches=watches)
    yield made
    set_limits(*before)
    release_kept()
    if not watches:
        gc.collect()
        os.close(file)
    # Else its thread may use the file, as long as the process lives.


@pytest.fixture(params=[True, False], ids=["own", "of a child"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    with new_arena(request.param) as made:
        yield made


def store(arena: Arena, value: int, size: int = SIZE) -> Segment:
    content = np.full(size, value, np.uint8)
    return Segment(arena, *arena.write([content], [size]), made_here=True)


def read(held: Segment, size: int = SIZE) -> Any:
    return np.frombuffer(segment.cut(segment.attach(held.reference), [size])[0], np.uint8)


def address(array: Any) -> int:
    return int(array.ctypes.data)


def test_the_next_value_in_the_memory_has_the_mapping_of_the_last_one(arena: Arena) -> None:
    held = store(arena, 1)
    array = read(held)
    offset, place = held.offset, address(array)
    assert (array == 1).all()
    for value in range(2, 6):
        del held, array
        assert kept_bytes() >= RANGE
        held = store(arena, value)
        assert held.offset == offset
        array = read(held)
        assert address(array) == place
        assert (array == value).all()
    # One for reading, which is in use, and one for writing.
    assert kept_bytes() == RANGE


@pytest.mark.parametrize("position", [0, SIZE // 2, SIZE - 1])
def test_what_a_reader_has_changed_nobody_sees(arena: Arena, position: int) -> None:
    held = store(arena, 1)
    array = read(held)
    array[position] = 77
    del array
    assert kept_bytes() == 0  # the changed copies are memory that nobody needs
    assert (read(held) == 1).all()
    del held
    again = store(arena, 2)
    assert (read(again) == 2).all()


def test_two_readers_of_one_value_have_two_mappings(arena: Arena) -> None:
    held = store(arena, 1)
    del arena
    read(held)
    first, second = read(held), read(held)
    assert address(first) != address(second)
    second[:] = 9
    assert (first == 1).all()
    del first
    assert (second == 9).all()
    assert (read(held) == 1).all()


def test_a_value_that_is_read_is_not_overwritten(arena: Arena) -> None:
    held = store(arena, 1)
    read(held)
    array = read(held)  # with the kept mapping
    offset = held.offset
    del held
    others = [store(arena, 2) for _ in range(3)]
    assert all(each.offset != offset for each in others)
    assert (array == 1).all()
    del array
    assert store(arena, 3).offset == offset


#: Reads a value of the process that has started it, and drops it; then waits.
READER = """\
import sys
from daskbatch.memory import kept_mappings, segment
from daskbatch.memory.segment import Reference
for line in sys.stdin:
    memory = segment.attach(Reference(*eval(line)))
    found = set(bytes(memory[64:64 + 2_000_000]))
    del memory
    print((found, kept_mappings.kept_bytes()), flush=True)
"""


def test_another_process_that_keeps_a_mapping_sees_each_value(arena: Arena) -> None:
    with killed_if_failed(
        subprocess.Popen(
            [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        offsets = set()
        for value in range(1, 6):
            held = store(arena, value)
            offsets.add(held.offset)
            print(tuple(held.reference), file=reader.stdin, flush=True)
            assert literal_eval(reader.stdout.readline()) == ({value}, RANGE)
            del held
        assert len(offsets) == 1
        reader.kill()


def test_memory_that_was_returned_to_the_system_is_written_again(arena: Arena) -> None:
    for value in range(1, 4):
        held = store(arena, value)
        assert (read(held) == value).all()
        offset, length = held.offset, held.length
        del held
        if value == 2:
            assert kept_bytes() == 2 * RANGE
            erase(arena.file, offset, length)
    assert (read(store(arena, 9)) == 9).all()


def test_a_forked_child_keeps_what_it_reads(arena: Arena) -> None:
    held = store(arena, 1)
    read(held)
    array = read(held)
    begin, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.read(begin[0], 1)
            code = 0 if (array == 1).all() and kept_bytes() == 0 else 2
        finally:
            os._exit(code)
    offset = held.offset
    del held, array
    others = [store(arena, 2) for _ in range(3)]
    assert all(each.offset != offset for each in others)
    os.write(begin[1], b"!")
    assert os.waitpid(child, 0)[1] == 0
    for each in (*begin, *done):
        os.close(each)
    assert store(arena, 3).offset == offset


@pytest.mark.parametrize("watches", [True, False])
@in_own_process
def test_no_more_is_kept_than_allowed(watches: bool) -> None:
    with new_arena(watches) as arena:
        set_limits(3 * RANGE, None)
        held = [store(arena, value) for value in range(6)]
        arrays = [read(each) for each in held]
        files = len(os.listdir("/proc/self/fd"))
        assert all((array == value).all() for value, array in enumerate(arrays))
        del arrays
        assert kept_bytes() == 3 * RANGE
        assert len(os.listdir("/proc/self/fd")) == files - 3
        release_kept()
        assert kept_bytes() == 0
        assert len(os.listdir("/proc/self/fd")) == files - 6
        set_limits(0, None)
        read(held[0])
        assert kept_bytes() == 0


@pytest.mark.parametrize("watches", [True, False])
@in_own_process
def test_a_thousand_readers_have_few_descriptors(watches: bool) -> None:
    with new_arena(watches) as arena:
        held = store(arena, 1)
        before = len(os.listdir("/proc/self/fd"))
        arrays = [read(held) for _ in range(1000)]
        assert len(os.listdir("/proc/self/fd")) <= before + 64
        del arrays
        release_kept()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("watches", [True, False])
@in_own_process
def test_nothing_is_kept_while_the_process_uses_much_memory(watches: bool) -> None:
    with new_arena(watches) as arena:
        held = store(arena, 1)
        read(held)
        assert kept_bytes() == RANGE
        set_limits(100 * RANGE, kept_mappings.resident_bytes() + 64_000_000)
        # The thread may have begun to wait for longer, when there was no limit.
        used = np.ones(16_000_000)
        wait_until(lambda: kept_bytes() == 0)
        assert (read(held) == 1).all()
        assert kept_bytes() == 0
        del used
        read(held)
        assert kept_bytes() == RANGE


@in_own_process
def test_the_oldest_are_unmapped_if_the_process_uses_more_memory() -> None:
    size = 20_000_000
    with new_arena(watches=True) as arena:
        set_limits(100_000_000, None)
        held = [store(arena, value, size) for value in range(4)]
        for each in held:
            assert (read(each, size) == held.index(each)).all()
        assert kept_bytes() >= 4 * size
        # One of them is less than what the process has too much.
        resident = kept_mappings.resident_bytes()
        set_limits(100_000_000, int((resident - 1.5 * size) / 0.9))
        assert kept_mappings.is_resident_memory_short()
        wait_until(lambda: kept_bytes() < 3 * size)
        assert kept_bytes() >= 2 * size
        set_limits(100_000_000, None)
        kept = [kept_mappings.take(made_key(each)) is not None for each in held]
        assert kept == [False, False, True, True]


def made_key(held: Segment) -> Key:
    return Key(held.arena.identity, held.offset, held.length, is_private=True)


WRITER = """\
import sys
from daskbatch.memory import segment
held = segment.store([bytes(2_000_000)], [2_000_000])
print(tuple(held.reference), flush=True)
sys.stdin.read()
"""


def test_the_memory_of_a_process_that_has_ended_is_not_kept() -> None:
    release_kept()
    with killed_if_failed(
        subprocess.Popen(
            [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    ) as writer:
        assert writer.stdout is not None
        segment.attach(Reference(*literal_eval(writer.stdout.readline())))
        assert kept_bytes() == RANGE
        segment.erase_orphans()
        assert kept_bytes() == RANGE
        os.kill(writer.pid, signal.SIGKILL)
    segment.erase_orphans()
    assert kept_bytes() == 0


@pytest.mark.parametrize("seed", range(4))
def test_threads_never_see_the_values_of_others(
    arena: Arena, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads store, read, change and drop values of few sizes; each sees what it has stored."""
    monkeypatch.setattr(kept_mappings, "MIN_KEPT_BYTES", 1)
    monkeypatch.setattr(kept_mappings, "_IDLE_SECONDS_WITHOUT_ROOM", 0.0)
    wrong: list[object] = []
    set_limits(400_000, None)

    def work(number: int) -> None:
        choose = random.Random(1000 * seed + number)
        values: list[tuple[Segment, int]] = []
        arrays: list[tuple[Any, Any]] = []
        for _ in range(120):
            action = choose.randrange(6)
            if action < 2 or not values:
                size = choose.choice([4000, 20_000, 50_000])
                value = choose.randrange(256)
                values.append((store(arena, value, size), value))
            elif action == 2:
                values.pop(choose.randrange(len(values)))
            elif action == 3 and arrays:
                array, expected = arrays.pop(choose.randrange(len(arrays)))
                if not (array == expected).all():
                    wrong.append((number, expected))
            else:
                held, value = choose.choice(values)
                array = np.frombuffer(segment.attach(held.reference), np.uint8)[64:4000]
                expected = np.full(array.size, value, np.uint8)
                if action == 5:
                    array[choose.randrange(array.size)] = choose.randrange(256)
                    expected = array.copy()
                arrays.append((array, expected))
        wrong.extend(number for array, expected in arrays if not (array == expected).all())

    run_in_threads(4, work)
    assert not wrong


def run_in_threads(count: int, work: Callable[[int], None]) -> None:
    failed: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if failed:
        raise failed[0]

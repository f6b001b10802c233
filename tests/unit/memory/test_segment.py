"""Ranges of memory files: written once, mapped privately, and used again when nobody has them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.own_process import in_own_process

from daskbatch.memory import arena as arena_module
from daskbatch.memory import segment
from daskbatch.memory.arena import Arena, layout, new_memory_file
from daskbatch.memory.host import host_id
from daskbatch.memory.segment import Reference, Segment, ValueGone

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

PAGE = os.sysconf("SC_PAGE_SIZE")

#: Maps a range of the process that has started it, and says what it finds, until its stdin ends.
READER = """\
import sys
from daskbatch.memory import segment
from daskbatch.memory.segment import Reference, ValueGone
for line in sys.stdin:
    what, reference = eval(line)
    try:
        memory = getattr(segment, what)(Reference(*reference))
        found = bytes(segment.cut(memory, [4])[0]) if what == "attach" else b"held"
    except ValueGone as error:
        found = str(error).encode()
    print(found, flush=True)
"""


class Reader:
    """Another process of this host, which maps or holds ranges for as long as it lives."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str, reference: Reference) -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{(what, tuple(reference))!r}\n")
        self.process.stdin.flush()
        found = eval(self.process.stdout.readline())
        assert isinstance(found, bytes)
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.end()


@pytest.fixture
def arena() -> Iterator[Arena]:
    file = new_memory_file()
    yield Arena(file, (os.getpid(), file), watches=False)
    gc.collect()
    os.close(file)


def stored(arena: Arena, *buffers: bytes) -> Segment:
    return Segment(arena, *arena.write(buffers, [len(each) for each in buffers]), made_here=True)


def content(held: Segment, *sizes: int) -> list[bytes]:
    return [bytes(each) for each in segment.cut(segment.attach(held.reference), sizes)]


def test_buffers_of_all_sizes_come_back(arena: Arena) -> None:
    sizes = [0, 1, 63, 64, 65, PAGE - 1, PAGE, PAGE + 1, 0, 3 * PAGE]
    buffers = [os.urandom(size) for size in sizes]
    assert content(stored(arena, *buffers), *sizes) == buffers
    starts, length = layout(sizes)
    assert all(start % 64 == 0 for start in starts)
    assert length % PAGE == 0


def test_more_buffers_than_one_system_call_writes(arena: Arena) -> None:
    buffers = [bytes([n % 256]) * (n % 70) for n in range(3000)]
    assert content(stored(arena, *buffers), *map(len, buffers)) == buffers


def test_a_reader_changes_its_own_copy_alone(arena: Arena) -> None:
    held = stored(arena, b"same")
    first, second = (segment.cut(segment.attach(held.reference), [4])[0] for _ in range(2))
    first[:] = b"mine"
    assert (bytes(first), bytes(second), content(held, 4)) == (b"mine", b"same", [b"same"])


def test_another_process_reads_it(arena: Arena, reader: Reader) -> None:
    assert reader.ask("attach", stored(arena, b"here").reference) == b"here"


def test_memory_is_used_again_once_nobody_has_it(arena: Arena) -> None:
    held = stored(arena, b"x" * 100_000)
    reference = held.reference
    del held
    again = stored(arena, b"y" * 100_000)
    assert again.offset == reference.offset
    with pytest.raises(ValueGone, match="used again"):
        segment.attach(reference)


def test_a_range_that_another_thread_holds_while_it_is_dropped_stays(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = stored(arena, b"x" * 100_000)
    reference, found, drop = held.reference, [], Arena.drop

    def drop_late(self: Arena, offset: int, length: int) -> None:
        found.append(segment.adopt(reference))
        drop(self, offset, length)

    monkeypatch.setattr(Arena, "drop", drop_late)
    del held
    stored(arena, b"y" * 100_000)
    assert content(found.pop(), 100_000) == [b"x" * 100_000]


def test_memory_that_a_reader_has_mapped_is_not_used_again(arena: Arena) -> None:
    held = stored(arena, b"x" * 100_000)
    offset = held.offset
    mapped = segment.cut(segment.attach(held.reference), [100_000])[0]
    del held
    others = [stored(arena, b"y" * 100_000) for _ in range(3)]
    assert all(each.offset != offset for each in others)
    assert bytes(mapped) == b"x" * 100_000
    del mapped
    assert stored(arena, b"z" * 100_000).offset == offset


def test_memory_that_many_readers_had_is_used_again_when_they_have_ended(arena: Arena) -> None:
    values = [stored(arena, b"x" * 100_000) for _ in range(40)]
    mapped = [segment.cut(segment.attach(each.reference), [100_000])[0] for each in values]
    known = {each.offset for each in values}
    values.clear()
    for _ in range(50):
        one = stored(arena, b"y" * 100_000)
        assert one.offset not in known
        last = one.offset
        del one
    assert all(bytes(each) == b"x" * 100_000 for each in mapped)
    mapped.clear()
    again = [stored(arena, b"z" * 100_000) for _ in range(41)]
    assert {each.offset for each in again} == known | {last}


def test_a_part_of_a_mapping_keeps_all_of_it(arena: Arena) -> None:
    held = stored(arena, b"x" * 100_000)
    offset = held.offset
    array = np.frombuffer(segment.cut(segment.attach(held.reference), [100_000])[0], np.uint8)
    part = array[50:60][::2]
    del held, array
    assert stored(arena, b"y" * 100_000).offset != offset
    assert bytes(part) == b"xxxxx"


@pytest.mark.parametrize("what", ["attach", "adopt"])
def test_a_killed_process_gives_its_ranges_back(arena: Arena, reader: Reader, what: str) -> None:
    held = stored(arena, b"x" * 100_000)
    offset, reference = held.offset, held.reference
    READ = {"attach": b"xxxx", "adopt": b"held"}[what]
    if what == "adopt":
        # An object that nothing refers to is deleted at once: so the other process keeps it.
        assert reader.ask("adopt", reference) == READ
        assert reader.ask("attach", reference) == b"xxxx"
    else:
        assert reader.ask(what, reference) == READ
    # The loop of the other process has the mapping in a variable.
    del held
    assert stored(arena, b"y" * 100_000).offset != offset
    os.kill(reader.process.pid, signal.SIGKILL)
    reader.process.wait()
    assert stored(arena, b"z" * 100_000).offset == offset


def test_what_another_process_holds_outlives_its_writer(reader: Reader) -> None:
    program = (
        "import sys; from daskbatch.memory import segment;"
        "held = segment.store([b'gone'], [4]);"
        "print(tuple(held.reference), flush=True); sys.stdin.read()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    reference = Reference(*eval(writer.stdout.readline()))
    adopted = segment.adopt(reference)
    writer.kill()
    writer.communicate()
    assert content(adopted, 4) == [b"gone"]
    assert reader.ask("attach", adopted.reference) == b"gone"
    del adopted
    with pytest.raises(ValueGone):
        segment.adopt(reference)
    assert b"ended" in reader.ask("attach", reference) or b"opened" in reader.ask(
        "attach", reference
    )


def test_a_reference_to_anything_else_is_refused(arena: Arena, tmp_path: Any) -> None:
    held = stored(arena, b"here")
    with open(tmp_path / "other", "wb+") as file:
        file.write(b"x" * 10_000)
        for wrong in (
            held.reference._replace(token=b"?" * 16),
            held.reference._replace(token=b"?" * 16, descriptor=file.fileno()),
            held.reference._replace(token=b"?" * 16, descriptor=1 << 20),
            held.reference._replace(token=b"?" * 16, host="elsewhere"),
            held.reference._replace(token=b"?" * 16, host=""),
        ):
            for ask in (segment.attach, segment.adopt):
                with pytest.raises(ValueGone):
                    ask(wrong)


@in_own_process
def test_a_thousand_values_need_no_descriptors() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    first = segment.store([b"x"], [1])
    before = count()
    held = [segment.store([bytes([n % 256]) * 5000], [5000]) for n in range(1000)]
    mapped = [segment.attach(each.reference) for each in held if each is not None]
    assert count() == before
    assert all(bytes(each[64:65]) == bytes([n % 256]) for n, each in enumerate(mapped))
    del first, held, mapped
    assert count() == before


def test_a_forked_child_reads_its_parents_and_writes_its_own(arena: Arena) -> None:
    held = stored(arena, b"here")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        found = b""
        try:
            own = segment.store([b"mine"], [4])
            assert own is not None
            assert own.reference.process == os.getpid()
            found = content(held, 4)[0] + content(own, 4)[0]
            del held
        finally:
            os.write(write, found)
            os._exit(0)
    os.close(write)
    assert os.read(read, 100) == b"heremine"
    os.close(read)
    os.waitpid(child, 0)
    assert content(held, 4) == [b"here"]


def test_threads_store_and_drop_at_the_same_time(arena: Arena) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        kept: list[tuple[Segment, int, memoryview]] = []
        for n in range(60):
            size = 1000 * (1 + (n * 7 + number) % 40)
            value = (number * 100 + n) % 251
            held = stored(arena, bytes([value]) * size)
            kept.append((held, value, segment.cut(segment.attach(held.reference), [size])[0]))
            if n % 3:
                kept.pop(n % len(kept))
            wrong.extend(value for _, value, each in kept if {*bytes(each)} != {value})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_too_much_for_the_system_is_an_error(arena: Arena, monkeypatch: Any) -> None:
    def refuses(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", refuses)
        with pytest.raises(OSError, match="No space"):
            stored(arena, b"x" * 100_000)
    assert content(stored(arena, b"next"), 4) == [b"next"]


@pytest.fixture
def shared_arena() -> Iterator[tuple[Arena, segment.AdoptedArena]]:
    """The memory file of a child process: the end that writes, and that of its worker."""
    kept = segment.new_child_arena()
    assert kept is not None
    file = os.open(f"/proc/self/fd/{kept.file}", os.O_RDWR)
    yield Arena(file, kept.location, kept.identity, watches=False), kept
    gc.collect()
    os.close(file)


def hand_over(writer: Arena, keeper: segment.AdoptedArena, data: bytes) -> Segment:
    """Write a value, have the other end hold it, and drop it where it was written."""
    offset, length, token = writer.write([data], [len(data)])
    keeper.hold(offset, length, token)
    held = Segment(keeper, offset, length, token, made_here=True)
    writer.drop(offset, length)
    return held


def test_memory_used_again_stays_held_when_the_old_value_is_erased(
    shared_arena: tuple[Arena, segment.AdoptedArena], monkeypatch: Any
) -> None:
    writer, keeper = shared_arena
    first = hand_over(writer, keeper, b"x" * 100_000)
    offset = first.offset
    del first  # it is spare now: the writer may use the memory again, or the keeper erase it
    second = hand_over(writer, keeper, b"y" * 100_000)
    assert second.offset == offset
    monkeypatch.setattr(segment, "spare_limits", lambda: (0, 0))
    third = hand_over(writer, keeper, b"z" * 100_000)
    del third  # now the keeper erases what is spare
    others = [hand_over(writer, keeper, b"o" * 100_000) for _ in range(3)]
    assert all(each.offset != offset for each in others)
    assert content(second, 100_000) == [b"y" * 100_000]


def blocks(file: int) -> int:
    return os.fstat(file).st_blocks * 512


def test_spare_memory_is_kept_for_a_while_and_then_returned(
    shared_arena: tuple[Arena, segment.AdoptedArena], monkeypatch: Any
) -> None:
    writer, keeper = shared_arena
    monkeypatch.setattr(segment, "spare_limits", lambda: (10_000_000, 150_000))
    values = [hand_over(writer, keeper, b"x" * 100_000) for _ in range(5)]
    offsets = {each.offset for each in values}
    del values
    assert blocks(keeper.file) >= 500_000
    again = [hand_over(writer, keeper, b"y" * 100_000) for _ in range(3)]
    assert {each.offset for each in again} < offsets
    del again
    # The writer has some of it as spare memory of its own: that is returned, too.
    assert keeper.trim(), "three ranges were used again, and are kept"
    assert blocks(keeper.file) >= 300_000
    assert not keeper.trim(), "none was used since"
    assert blocks(keeper.file) < 250_000
    more = [hand_over(writer, keeper, bytes([n]) * 100_000) for n in range(5)]
    assert [content(each, 100_000) for each in more] == [[bytes([n]) * 100_000] for n in range(5)]


def test_an_arena_returns_what_was_not_used_again(arena: Arena, monkeypatch: Any) -> None:
    monkeypatch.setattr(arena_module, "_spare_limit", 10_000_000)
    monkeypatch.setattr(arena_module, "_idle_spare_limit", 150_000)
    values = [stored(arena, b"x" * 100_000) for _ in range(5)]
    del values
    assert blocks(arena.file) >= 500_000
    monkeypatch.setattr(arena_module, "SPARE_INTERVAL_SECONDS", -1.0)
    del [stored(arena, b"y" * 100_000) for _ in range(3)][:]
    arena._trim()
    assert 300_000 <= blocks(arena.file) < 450_000
    arena._trim()
    assert blocks(arena.file) < 250_000
    assert content(stored(arena, b"z" * 100_000), 100_000) == [b"z" * 100_000]


def test_values_and_spare_memory_may_take_twice_the_limit_together(
    arena: Arena, monkeypatch: Any
) -> None:
    monkeypatch.setattr(arena_module, "_spare_limit", 500_000)
    monkeypatch.setattr(arena_module, "_idle_spare_limit", 500_000)
    held = [stored(arena, b"x" * 100_000) for _ in range(3)]
    dropped = [stored(arena, b"y" * 100_000) for _ in range(12)]
    offsets = {each.offset for each in dropped}
    del dropped
    arena.drop(*arena._take(0)[:2])  # what is dropped is looked at
    assert 900_000 <= blocks(arena.file) < 1_050_000
    again = [stored(arena, b"z" * 100_000) for _ in range(6)]
    assert {each.offset for each in again} < offsets
    assert 900_000 <= blocks(arena.file) < 1_050_000
    more = [stored(arena, b"m" * 100_000) for _ in range(6)]
    del again, more
    assert 700_000 <= blocks(arena.file) < 1_050_000
    assert content(held[0], 100_000) == [b"x" * 100_000]


def test_a_reference_to_an_earlier_value_does_not_unlock_the_present_one(
    shared_arena: tuple[Arena, segment.AdoptedArena],
) -> None:
    writer, keeper = shared_arena
    gone = hand_over(writer, keeper, b"x" * 100_000).reference
    second = hand_over(writer, keeper, b"y" * 100_000)
    assert second.offset == gone.offset
    for _ in range(2):
        with pytest.raises(ValueGone):
            segment.adopt(gone)
    others = [hand_over(writer, keeper, b"o" * 100_000) for _ in range(3)]
    assert all(each.offset != second.offset for each in others)
    assert content(second, 100_000) == [b"y" * 100_000]


def test_what_nobody_holds_of_a_dead_process_is_freed() -> None:
    program = (
        "import sys; from daskbatch.memory import segment;"
        "held = [segment.store([bytes(5_000_000)], [5_000_000]) for _ in range(4)];"
        "print([tuple(each.reference) for each in held], flush=True); sys.stdin.read()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    references = [Reference(*each) for each in eval(writer.stdout.readline())]
    kept, dropped = segment.adopt(references[1]), segment.adopt(references[3])
    mapped = segment.attach(references[2])

    def blocks() -> int:
        return os.fstat(kept.arena.file).st_blocks * 512

    assert blocks() > 20_000_000
    writer.kill()
    writer.communicate()
    segment.erase_orphans()
    assert blocks() < 21_000_000
    del mapped
    segment.erase_orphans()
    assert 10_000_000 < blocks() < 11_000_000
    del dropped
    assert 5_000_000 < blocks() < 6_000_000
    assert not any(content(kept, 5_000_000)[0])


ENDS_WITH_A_VALUE = """\
import builtins, subprocess, sys
from daskbatch.memory import segment
writer = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
reference = segment.Reference(*eval(writer.stdout.readline()))
# It is deleted when no module can be imported any longer.
builtins.kept = segment.adopt(reference)
writer.kill()
writer.communicate()
"""


def test_a_process_that_ends_with_a_value_of_a_dead_one_prints_nothing() -> None:
    writer = (
        "import sys; from daskbatch.memory import segment;"
        "held = segment.store([bytes(5_000_000)], [5_000_000]);"
        "print(tuple(held.reference), flush=True); sys.stdin.read()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", ENDS_WITH_A_VALUE, writer], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_process_that_ends_with_values_of_its_own_prints_nothing() -> None:
    program = (
        "import builtins; from daskbatch.memory import arena, segment; arena.set_spare_limit(0);"
        "builtins.kept = [segment.store([bytes(1_000_000)], [1_000_000]) for _ in range(3)]"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")

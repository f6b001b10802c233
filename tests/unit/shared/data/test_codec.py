"""What keys and values are made into, and back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from daskbatch.shared.data.codec import APART, empty, pack, part_of, to_send, unpack

CYCLES = """
import gc
from daskbatch.shared.data.codec import APART, empty, part_of, sendable, to_send
for round in range(200):
    kept = empty(2 * APART), empty(10), part_of(memoryview(bytes(3 * APART)), 1, 2 * APART)
    sent = to_send(kept)
    cycle = [sent, kept, [each.raw() for each in sent], sendable(kept)]
    cycle.append(cycle)
    del kept, sent, cycle
    gc.collect()
print("survived")
"""


def test_what_is_kept_and_sent_may_end_in_a_cycle() -> None:
    """As in the traceback of an exception. With a memoryview CPython itself crashes there."""
    done = subprocess.run([sys.executable, "-c", CYCLES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@pytest.mark.parametrize("length", [0, 10, APART - 1, APART, 5 * APART])
def test_a_part_is_what_was_there(length: int) -> None:
    data = bytes(range(256)) * 400
    part = part_of(memoryview(data), 7, length)
    assert part.tobytes() == data[7 : 7 + length]
    (sent,) = to_send((part,))
    assert bytes(sent) == data[7 : 7 + length]


def test_room_of_any_size() -> None:
    for size in (0, 1, APART, 3 * APART):
        room = empty(size)
        room[:] = b"a" * size
        (sent,) = to_send((room,))
        assert bytes(sent) == b"a" * size


def test_a_value_comes_back() -> None:
    for value in (None, 1, "text", b"x" * 3 * APART, ["a", b"y" * 3 * APART]):
        assert unpack(to_send(pack(value))) == value

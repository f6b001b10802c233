"""What keys and values are encoded as, and back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from daskbatch.shared.data.codec import (
    MIN_BUFFER_BYTES,
    allocate,
    independent_part,
    pack,
    prepare_to_send,
    unpack,
)

CYCLES = """
import gc
from daskbatch.shared.data.codec import MIN_BUFFER_BYTES as size
from daskbatch.shared.data.codec import allocate, independent_part
from daskbatch.shared.data.codec import prepare_to_resend, prepare_to_send
for round in range(200):
    part = independent_part(memoryview(bytes(3 * size)), 1, 2 * size)
    kept = allocate(2 * size), allocate(10), part
    sent = prepare_to_send(kept)
    cycle = [sent, kept, [each.raw() for each in sent], prepare_to_resend(kept)]
    cycle.append(cycle)
    del part, kept, sent, cycle
    gc.collect()
print("survived")
"""


def test_what_is_kept_and_sent_may_end_in_a_cycle() -> None:
    """As in the traceback of an exception. With a memoryview CPython itself crashes there."""
    done = subprocess.run([sys.executable, "-c", CYCLES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@pytest.mark.parametrize(
    "length", [0, 10, MIN_BUFFER_BYTES - 1, MIN_BUFFER_BYTES, 5 * MIN_BUFFER_BYTES]
)
def test_a_part_is_what_was_there(length: int) -> None:
    data = bytes(range(256)) * 400
    part = independent_part(memoryview(data), 7, length)
    assert part.tobytes() == data[7 : 7 + length]
    (sent,) = prepare_to_send((part,))
    assert bytes(sent) == data[7 : 7 + length]


def test_room_of_any_size() -> None:
    for size in (0, 1, MIN_BUFFER_BYTES, 3 * MIN_BUFFER_BYTES):
        room = allocate(size)
        room[:] = b"a" * size
        (sent,) = prepare_to_send((room,))
        assert bytes(sent) == b"a" * size


def test_a_value_comes_back() -> None:
    large = 3 * MIN_BUFFER_BYTES
    for value in (None, 1, "text", b"x" * large, ["a", b"y" * large]):
        assert unpack(prepare_to_send(pack(value))) == value

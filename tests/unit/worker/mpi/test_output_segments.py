"""What a rank writes during one job ends at the mark, however the pieces are cut."""

from __future__ import annotations

import pytest

from daskbatch.worker.execution.capture import BoundedText
from daskbatch.worker.mpi.output_segments import OutputSegment

MARK = b"\x00ab\x00ac"


@pytest.mark.parametrize("text", [b"", b"x", b"\x00", b"\x00ab\x00ab", b"\x00ab\x00", b"a\x00b\n"])
def test_each_cut_gives_the_same_text(text: bytes) -> None:
    data = text + MARK + b"of no job"
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            segment = OutputSegment(MARK, BoundedText(1000))
            for piece in (data[:first], data[first:second], data[second:]):
                segment.add(piece)
            assert segment.complete
            assert segment.text.text() == text.decode().removesuffix("\n")


def test_without_the_mark_all_is_kept_at_the_end() -> None:
    segment = OutputSegment(MARK, BoundedText(1000))
    segment.add(b"x\x00ab")
    assert (segment.complete, segment.text.text()) == (False, "x")
    segment.end()
    assert segment.text.text() == "x\x00ab"

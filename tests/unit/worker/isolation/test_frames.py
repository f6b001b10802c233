"""Frames are decoded the same, however the bytes are split; an unfinished frame never is."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from daskbatch.worker.isolation.control import PIPE_FULL
from daskbatch.worker.isolation.frames import Frame, FrameDecoder, FrameReader, FrameWriter, encode

FRAMES = [
    Frame(0, 0, 0.5, b"value", None),
    Frame(1, 3, 0.0, None, None),
    Frame(2, 0, 1.25, b"", ("", "")),
    Frame(3, 1, 2.0, b"error", ("out \u00e4\U0001f600", "err\udc80")),
    Frame(4, 0, 0.0, None, ("only output", "")),
    Frame(5, 2, 0.0, bytes(300), None),
    Frame(6, 0, 1.5, b"value", ("out", ""), 1e9, 0.25, 1 << 40, 2),
]
DATA = b"".join(piece for frame in FRAMES for piece in encode(frame))


def test_the_format_stays_the_same_byte_for_byte() -> None:
    header = bytes.fromhex("07000000010000003f")
    measured = bytes.fromhex("0000000000000000000080bfffffffffffffffff01000000")
    head = header + measured + bytes.fromhex("0200000000000000")
    assert encode(Frame(7, 1, 0.5, b"ab", None)) == [head + b"\xff" * 16, b"ab"]
    measured = bytes.fromhex("00000000000000400000803f000400000000000003000000")
    head = header + measured + bytes.fromhex("0200000000000000")
    head += bytes.fromhex("01000000000000000300000000000000")
    frame = Frame(7, 1, 0.5, b"ab", ("x", "yyz"), 2.0, 1.0, 1024, 3)
    assert encode(frame) == [head, b"ab", b"x", b"yyz"]


def test_all_frames_are_decoded_from_one_piece() -> None:
    assert FrameDecoder().feed(DATA) == FRAMES


@pytest.mark.parametrize("position", range(len(DATA) + 1))
def test_frames_are_decoded_from_two_pieces(position: int) -> None:
    decoder = FrameDecoder()
    first = decoder.feed(DATA[:position])
    assert first == FRAMES[: len(first)]
    assert first + decoder.feed(DATA[position:]) == FRAMES


@pytest.mark.parametrize("size", [1, 2, 7, 36, 37, 38, 60, 61, 62])
def test_frames_are_decoded_from_many_pieces(size: int) -> None:
    decoder = FrameDecoder()
    pieces = [DATA[start : start + size] for start in range(0, len(DATA), size)]
    assert [frame for piece in pieces for frame in decoder.feed(piece)] == FRAMES


def test_a_frame_is_returned_as_soon_as_it_is_complete_and_not_before() -> None:
    for frame in FRAMES:
        decoder, data = FrameDecoder(), b"".join(encode(frame))
        assert decoder.feed(data[:-1]) == []
        assert decoder.feed(data[-1:]) == [frame]
        assert decoder.feed(b"") == []


# -- pipes --------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    yield read, write
    for file in (read, write):
        with contextlib.suppress(OSError):  # the test may have closed it
            os.close(file)


def test_a_reader_returns_what_has_arrived_and_says_when_nobody_writes(
    pipe: tuple[int, int],
) -> None:
    read, write = pipe
    reader = FrameReader(read)
    assert reader.read() == ([], False)
    os.write(write, DATA[:-1])
    assert reader.read() == (FRAMES[:-1], False)
    assert not reader.ended
    os.write(write, DATA[-1:])
    os.close(write)
    assert reader.read() == (FRAMES[-1:], False)
    assert reader.ended


def test_a_reader_of_a_killed_writer_has_whole_frames_only(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.write(write, DATA[:-1])
    os.close(write)
    reader = FrameReader(read)
    assert reader.read() == (FRAMES[:-1], False)
    assert reader.ended


def test_a_writer_writes_when_it_is_flushed(pipe: tuple[int, int]) -> None:
    read, write = pipe
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer, reader = FrameWriter(write, theirs), FrameReader(read)
        for frame in FRAMES:
            writer.add(frame)
        assert reader.read() == ([], False)
        writer.flush()
        assert reader.read() == (FRAMES, False)
        writer.flush()
        assert reader.read() == ([], False)


def test_a_writer_says_that_the_pipe_is_full_and_waits(pipe: tuple[int, int]) -> None:
    read, write = pipe
    ours, theirs = socket.socketpair()
    frame = Frame(0, 0, 0.0, os.urandom(5_000_000), ("out", "err"))
    with ours, theirs:
        writer, reader = FrameWriter(write, theirs), FrameReader(read)
        writer.add(frame)
        thread = threading.Thread(target=writer.flush)
        thread.start()
        assert ours.recv(1) == PIPE_FULL
        found: list[Frame] = []
        while not found:
            select.select([read], [], [], 30)
            found += reader.read()[0]
        thread.join(30)
        assert found == [frame]

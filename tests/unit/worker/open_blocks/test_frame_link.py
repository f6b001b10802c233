"""Frames on a connection: whole, in order, and never blocking."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from daskbatch.worker.open_blocks.frame_link import FrameLink, LinkClosed


@pytest.fixture
def ends() -> Iterator[tuple[FrameLink, FrameLink]]:
    one, other = socket.socketpair()
    links = FrameLink(one), FrameLink(other)
    yield links
    for link in links:
        link.close()


def receive(link: FrameLink, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        link.wait(10)
        frames += link.receive()
    return frames


def test_frames_arrive_whole_and_in_order(ends: tuple[FrameLink, FrameLink]) -> None:
    one, other = ends
    one.send(b"a", b"b" * 1000)
    one.send(b"c")
    assert receive(other, 3) == [b"a", b"b" * 1000, b"c"]
    assert other.receive() == []


def test_a_frame_larger_than_the_buffers_of_the_system_does_not_block(
    ends: tuple[FrameLink, FrameLink],
) -> None:
    one, other = ends
    large = bytes(range(256)) * 40_000
    one.send(large, b"end")
    assert one.has_unsent
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(receive(other, 2)))
    reader.start()
    while not one.flush():
        one.wait(10, sending=True)
    reader.join()
    assert found == [large, b"end"]


def test_an_empty_frame_only_says_that_the_sender_lives(ends: tuple[FrameLink, FrameLink]) -> None:
    one, other = ends
    before = other.heard
    one.send(b"")
    other.wait(10)
    assert other.receive() == []
    assert other.heard > before


def test_a_closed_connection_is_noticed_after_its_last_frames(
    ends: tuple[FrameLink, FrameLink],
) -> None:
    one, other = ends
    one.send(b"last")
    one.close()
    assert receive(other, 1) == [b"last"]
    other.wait(10)
    with pytest.raises(LinkClosed):
        other.receive()
    other.send(b"x")
    other.send(b"y")
    assert other.broken
    assert not other.has_unsent
    assert not other.keep_alive()


def test_a_silent_connection_does_not_live(
    ends: tuple[FrameLink, FrameLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = ends
    assert one.keep_alive()
    monkeypatch.setattr("daskbatch.worker.open_blocks.frame_link.SILENCE_LIMIT_SECONDS", -1.0)
    assert not one.keep_alive()


def test_the_owner_is_notified_of_what_could_not_be_sent() -> None:
    notified = threading.Event()
    one, other = socket.socketpair()
    link = FrameLink(one, notified.set)
    link.send(b"small")
    assert not notified.is_set()
    link.send(bytes(10_000_000))
    assert notified.is_set()
    link.close()
    other.close()

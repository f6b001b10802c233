"""What came last through a lane is known; not for ever what was large."""

from __future__ import annotations

from pickle import PickleBuffer

from daskbatch.shared.rpc.reply_cache import GONE, ReplyCache


def test_what_came_last_is_known_and_what_came_before_it_is_past() -> None:
    lately = ReplyCache()
    lately.note(b"a", 1, b"one")
    lately.note(b"a", 2, b"two")
    lately.note(b"", 1, b"nobody's")
    found = lately.find(b"a", 2)
    assert found is not None
    assert found.reply == b"two"
    assert lately.find(b"a", 1) is not None
    assert lately.find(b"a", 3) is None
    assert lately.find(b"b", 1) is None
    assert lately.find(b"", 1) is None
    assert list(lately.all()) == [(b"a", 2, b"two")]


def test_large_answers_are_kept_as_long_as_they_are_not_many() -> None:
    lately = ReplyCache()
    names = [bytes([number]) for number in range(10)]
    for name in names:
        lately.note(name, 1, (PickleBuffer(bytes(4_000_000)), b"key"))
    kept = [sum(reply is not GONE for _, _, reply in lately.all())]
    assert 1 < kept[0] < 10
    # All are known to have been done.
    assert all(lately.find(name, 1) for name in names)
    last = lately.find(names[-1], 1)
    assert last is not None
    assert last.reply is not GONE
    lately.note(b"huge", 1, b"x" * 50_000_000)
    huge = lately.find(b"huge", 1)
    assert huge is not None
    assert huge.reply is not GONE
    assert sum(reply is not GONE for _, _, reply in lately.all()) == 1
    # The next one of its lane, and there is room again.
    lately.note(b"huge", 2)
    for name in names[:3]:
        lately.note(name, 2, b"x" * 4_000_000)
    assert sum(reply is not GONE for _, _, reply in lately.all()) == 4


def test_so_many_lanes_are_known_and_no_more() -> None:
    lately = ReplyCache()
    for number in range(40_000):
        lately.note(number.to_bytes(8, "big"), 1, b"x" * 2000)
    assert 10_000 < len(list(lately.all())) < 20_000

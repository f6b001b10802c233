"""The last reply to each client is kept; large replies not for ever."""

from __future__ import annotations

from pickle import PickleBuffer

from daskbatch.shared.rpc.reply_cache import DROPPED, ReplyCache


def test_what_came_last_is_known_and_what_came_before_it_is_past() -> None:
    cache = ReplyCache()
    cache.record(b"a", 1, b"one")
    cache.record(b"a", 2, b"two")
    cache.record(b"", 1, b"nobody's")
    found = cache.find(b"a", 2)
    assert found is not None
    assert found.reply == b"two"
    assert cache.find(b"a", 1) is not None
    assert cache.find(b"a", 3) is None
    assert cache.find(b"b", 1) is None
    assert cache.find(b"", 1) is None
    assert list(cache.entries()) == [(b"a", 2, b"two")]


def test_large_answers_are_kept_as_long_as_they_are_not_many() -> None:
    cache = ReplyCache()
    names = [bytes([number]) for number in range(10)]
    for name in names:
        cache.record(name, 1, (PickleBuffer(bytes(4_000_000)), b"key"))
    kept = [sum(reply is not DROPPED for _, _, reply in cache.entries())]
    assert 1 < kept[0] < 10
    # All requests are known to have been executed.
    assert all(cache.find(name, 1) for name in names)
    last = cache.find(names[-1], 1)
    assert last is not None
    assert last.reply is not DROPPED
    cache.record(b"huge", 1, b"x" * 50_000_000)
    huge = cache.find(b"huge", 1)
    assert huge is not None
    assert huge.reply is not DROPPED
    assert sum(reply is not DROPPED for _, _, reply in cache.entries()) == 1
    # The next request of this client, and there is room again.
    cache.record(b"huge", 2)
    for name in names[:3]:
        cache.record(name, 2, b"x" * 4_000_000)
    assert sum(reply is not DROPPED for _, _, reply in cache.entries()) == 4


def test_so_many_lanes_are_known_and_no_more() -> None:
    cache = ReplyCache()
    for number in range(40_000):
        cache.record(number.to_bytes(8, "big"), 1, b"x" * 2000)
    assert 10_000 < len(list(cache.entries())) < 20_000

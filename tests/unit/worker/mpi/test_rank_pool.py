"""The pool of idle ranks: which set a job gets, and when idle sets end."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.waiting import wait_until

from daskbatch.worker.mpi import rank_pool as module
from daskbatch.worker.mpi.rank_pool import RankPool
from daskbatch.worker.mpi.rank_set import SetKey

KEY = SetKey("daskbatch-0a", (("h1", 2),), 1, (), "auto")
LONG_SECONDS = 1000.0


class FakeSet:
    """A set without processes."""

    def __init__(self, key: SetKey = KEY, usable: bool = True) -> None:
        self.key = key
        self.usable = usable
        self.ended = threading.Event()

    def is_usable(self) -> bool:
        return self.usable

    def end_idle(self, farewell: float) -> None:
        self.ended.set()


def give(pool: RankPool, ranks: FakeSet, seconds: float = LONG_SECONDS) -> None:
    pool.give_back(ranks, seconds)  # type: ignore[arg-type]


def take(pool: RankPool, key: SetKey = KEY) -> Any:
    return pool.take(key)


def test_a_set_is_used_by_one_job_at_a_time() -> None:
    pool, ranks = RankPool(), FakeSet()
    assert take(pool) is None
    give(pool, ranks)
    assert take(pool) is ranks
    assert take(pool) is None
    assert not ranks.ended.is_set()


def test_the_set_that_was_used_last_is_used_first() -> None:
    pool, first, second = RankPool(), FakeSet(), FakeSet()
    give(pool, first)
    give(pool, second)
    assert (take(pool), take(pool)) == (second, first)


def test_a_set_that_is_not_usable_ends() -> None:
    pool, good, bad = RankPool(), FakeSet(), FakeSet(usable=False)
    give(pool, good)
    give(pool, bad)
    assert take(pool) is good
    assert bad.ended.wait(60)


@pytest.mark.parametrize(
    "changes",
    [
        {"topic": "daskbatch-0b"},
        {"hosts": (("h1", 1), ("h2", 1))},
        {"cores": 2},
        {"env": (("A", "1"),)},
        {"launcher": "mpiexec -n {num_procs}"},
    ],
)
def test_a_job_with_another_key_ends_idle_sets_on_its_hosts(changes: dict[str, Any]) -> None:
    pool, ranks, elsewhere = RankPool(), FakeSet(), FakeSet(KEY._replace(hosts=(("h3", 2),)))
    give(pool, ranks)
    give(pool, elsewhere)
    assert take(pool, KEY._replace(**changes)) is None
    assert ranks.ended.wait(60)
    assert take(pool, elsewhere.key) is elsewhere


def test_a_set_ends_when_its_time_is_over() -> None:
    pool, short, long = RankPool(), FakeSet(), FakeSet()
    give(pool, long)
    give(pool, short, 0.01)
    assert short.ended.wait(60)
    assert not long.ended.is_set()
    assert take(pool) is long


def test_with_a_time_of_zero_no_set_is_kept() -> None:
    pool, ranks = RankPool(), FakeSet()
    give(pool, ranks, 0.0)
    assert ranks.ended.wait(60)
    assert take(pool) is None


def test_the_thread_ends_with_the_last_idle_set_and_starts_again() -> None:
    pool = RankPool()
    for _ in range(2):
        give(pool, FakeSet())
        thread = pool._thread
        assert thread is not None
        take(pool)
        thread.join(60)
        assert not thread.is_alive()


def test_idle_sets_end_with_their_client() -> None:
    pool, ranks, other = RankPool(), FakeSet(), FakeSet(KEY._replace(topic="daskbatch-0b"))
    used = FakeSet()
    give(pool, ranks)
    give(pool, other)
    pool.end_client(KEY.topic)
    assert ranks.ended.wait(60)
    assert not other.ended.is_set()
    give(pool, used)  # its job was over after the client
    assert used.ended.wait(60)


def test_idle_sets_end_when_memory_is_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_memory_is_scarce", lambda: True)
    pool, ranks = RankPool(), FakeSet()
    give(pool, ranks)
    assert ranks.ended.wait(60)


def test_close_waits_until_all_sets_have_ended() -> None:
    pool, sets = RankPool(), [FakeSet() for _ in range(3)]
    for ranks in sets:
        give(pool, ranks)
    pool.close()
    assert all(ranks.ended.is_set() for ranks in sets)
    pool.close()


def test_many_threads_never_share_a_set() -> None:
    pool = RankPool()
    in_use: set[FakeSet] = set()
    problems: list[str] = []

    def work() -> None:
        for _ in range(200):
            ranks = take(pool) or FakeSet()
            if ranks in in_use:
                problems.append("shared")
            in_use.add(ranks)
            in_use.discard(ranks)
            give(pool, ranks)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    wait_until(lambda: len(pool._idle) <= 8)

"""Clients are served in turn, by the time that their blocks are expected to take."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence

import pytest

from daskbatch.cluster.fair_share import FairQueue, QueuedKey, Rank


def keys(name: str, count: int, generation: int, seconds: float = 0.1) -> list[QueuedKey]:
    return [QueuedKey((name, number), generation, seconds) for number in range(count)]


class Slot:
    """Serves the keys of a queue, one after another."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.waiting: list[tuple[Rank, int, Hashable]] = []
        self.count = 0

    def add(self, client: str, some: Sequence[QueuedKey], again: bool = False) -> None:
        for key, rank in self.queue.add(client, some, again).items():
            self.count += 1
            self.waiting.append((rank, self.count, key))

    def add_of_others(self, name: str, generation: int) -> None:
        self.count += 1
        self.waiting.append((Rank(generation, 0), self.count, (name, 0)))

    def serve(self, count: int | None = None) -> str:
        names = ""
        while self.waiting and (count is None or len(names) < count):
            first = min(self.waiting)
            self.waiting.remove(first)
            self.queue.end(first[-1], ran=True)
            names += first[-1][0]  # type: ignore[index]
        return names

    def cancel(self, name: str) -> None:
        for entry in [each for each in self.waiting if each[-1][0] == name]:  # type: ignore[index]
            self.waiting.remove(entry)
            self.queue.end(entry[-1], ran=False)


@pytest.fixture
def slot() -> Slot:
    return Slot()


def test_two_programs_take_turns(slot: Slot) -> None:
    slot.add("a", keys("a", 5, 1))
    slot.add("b", keys("b", 3, 2))
    assert slot.serve() == "abababaa"


def test_time_counts_and_not_blocks(slot: Slot) -> None:
    slot.add("a", keys("a", 4, 1, seconds=1.0))
    slot.add("b", keys("b", 40, 2, seconds=0.1))
    served = slot.serve(33)
    assert 28 <= Counter(served)["b"] <= 31, served


def test_a_late_client_does_not_make_up_for_the_past(slot: Slot) -> None:
    slot.add("a", keys("a", 10, 1))
    assert slot.serve(6) == "aaaaaa"
    slot.add("b", keys("b", 4, 2))
    served = slot.serve()
    assert served in ("babababa", "bbababaa"), served


def test_one_client_is_served_in_its_order(slot: Slot) -> None:
    slot.add("a", keys("a", 2, 1))
    slot.add("a", keys("b", 2, 2))
    slot.add("a", keys("c", 2, 3))
    assert slot.serve() == "aabbcc"


def test_what_is_placed_again_keeps_its_turn(slot: Slot) -> None:
    slot.add("a", keys("a", 3, 1))
    slot.add("a", keys("b", 3, 2))
    assert slot.serve(1) == "a"
    slot.add("a", keys("c", 1, 2), again=True)
    assert slot.serve() == "aacbbb"


def test_what_was_cancelled_is_not_charged(slot: Slot) -> None:
    slot.add("o", keys("o", 10, 1))
    slot.add("a", keys("a", 10, 2, seconds=3600.0))
    slot.cancel("a")
    slot.add("a", keys("A", 3, 3))
    assert slot.serve(6) == "oAoAoA"


def test_the_true_duration_counts_for_what_comes_later(slot: Slot) -> None:
    slot.add("b", keys("b", 30, 1))
    slot.add("a", keys("a", 1, 2))
    for _ in range(2):
        *_, first = slot.waiting.pop(slot.waiting.index(min(slot.waiting)))
        slot.queue.end(first, ran=True, seconds=1.0 if first == ("a", 0) else None)
    slot.add("a", [QueuedKey(("A", 0), 3, 0.1)])
    served = slot.serve()
    assert 8 <= served.index("A") <= 10, served


def test_a_client_cannot_gain_by_small_portions(slot: Slot) -> None:
    slot.add("b", keys("b", 50, 1))
    served = ""
    for number in range(30):
        slot.add("a", [QueuedKey(("a", number), 2 + number, 0.1)])
        served += slot.serve(2)
    assert 28 <= Counter(served)["a"] <= 32, served


def test_graphs_of_others_are_served_in_the_order_of_arrival(slot: Slot) -> None:
    slot.add("a", keys("a", 4, 1))
    slot.add_of_others("d", 2)
    slot.add("b", keys("b", 6, 3))
    # Only beside what came before it does a block that came later overtake.
    assert slot.serve() == "ababababdbb"
    slot.add_of_others("e", 4)
    slot.add("a", keys("a", 2, 5))
    assert slot.serve() == "eaa"


@pytest.mark.parametrize("seed", range(20))
def test_each_gets_its_share(seed: int) -> None:
    """While all have tasks, no client is behind another one by more than their longest blocks."""
    source = random.Random(seed)
    slot = Slot()
    seconds = {name: source.choice([0.01, 0.1, 0.2]) for name in "abc"[: source.choice([2, 3])]}
    generation = 0
    pending: Counter[str] = Counter()
    had: Counter[str] = Counter()
    for _ in range(300):
        for name in seconds:
            while pending[name] < 3:
                generation += 1
                count = source.randint(1, 40)
                some = [
                    QueuedKey((name, generation, n), generation, seconds[name])
                    for n in range(count)
                ]
                slot.add(name, some)
                pending[name] += count
        (served,) = slot.serve(1)
        pending[served] -= 1
        had[served] += seconds[served]  # type: ignore[assignment]
    assert max(had[name] for name in seconds) - min(had[name] for name in seconds) < 0.81


def test_many_small_submissions_cost_as_much_as_few(slot: Slot) -> None:
    """Two clients submit ten thousand calls each, one by one: in time that grows linearly."""
    queue = slot.queue
    order = []
    for number in range(10_000):
        for name in "ab":
            key = name, number
            (rank,) = queue.add(name, [QueuedKey(key, len(order) + 1, 0.1)]).values()
            order.append((rank, len(order), name))
    assert "".join(name for *_, name in sorted(order)) == "ab" * 10_000


@pytest.mark.parametrize("seed", range(20))
def test_a_block_is_not_behind_one_of_a_later_tag(seed: int) -> None:
    source = random.Random(seed)
    queue = FairQueue()
    ranks: dict[Hashable, Rank] = {}
    waiting: list[Hashable] = []
    for generation in range(1, 60):
        name = source.choice("abcd")
        some = [
            QueuedKey((name, generation, number), generation, source.choice([0.0, 0.1, 0.3]))
            for number in range(source.randint(1, 8))
        ]
        added = queue.add(name, some)
        # Of equal or older generation than all blocks with the same or a later tag of others.
        for key, rank in added.items():
            for other in waiting:
                if other[0] != name and ranks[other].tag >= rank.tag:  # type: ignore[index]
                    assert rank.generation <= ranks[other].generation, (key, other)
        ranks |= added
        waiting += added
        for _ in range(source.randint(0, 6)):
            if waiting:
                first = min(waiting, key=ranks.__getitem__)
                waiting.remove(first)
                queue.end(first, ran=True)


def test_nothing_is_kept(slot: Slot) -> None:
    slot.add("a", keys("a", 10, 1))
    slot.add("b", keys("b", 10, 2))
    slot.serve()
    queue = slot.queue
    assert not queue._keys
    assert not queue._flows

"""Equal keys are one key: over types, over shards, and over processes whose hashes differ."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ddicts
from support.ddicts import GROUPS
from support.paths import TESTS

from daskbatch import Batch, DDict


@pytest.fixture(scope="module")
def shared_d(shared_batch: Batch) -> Iterator[DDict]:
    with shared_batch.ddict(shards=7, name="keys") as made:
        yield made


@pytest.fixture
def d(shared_d: DDict) -> DDict:
    """An empty dictionary with more shards than workers, so that keys are spread widely."""
    shared_d.clear()
    return shared_d


def test_the_groups_are_as_they_say() -> None:
    """The groups are also right for a dict."""
    assert len({key for keys in GROUPS.values() for key in keys}) == len(GROUPS)
    for keys in GROUPS.values():
        assert len(set(keys)) == 1


@pytest.mark.parametrize("group", GROUPS)
def test_equal_keys_are_one_key(d: DDict, group: str) -> None:
    keys = GROUPS[group]
    for one, other in itertools.product(keys, keys):
        d[one] = "first"
        assert d[other] == "first"
        assert other in d
        d[other] = "second"
        assert (len(d), d.pop(one)) == (1, "second")
        assert other not in d
    d.put_many((key, number) for number, key in enumerate(keys))
    assert len(d) == 1
    for key in keys:
        assert d.get_many([key]) == {key: len(keys) - 1}
    if isinstance(keys[0], (int, float)):
        assert d.fetch_add(keys[-1]) == len(keys) - 1


def test_of_equal_keys_the_first_one_stays(d: DDict) -> None:
    """As in a dict: a write with an equal key changes only the value."""
    for keys in GROUPS.values():
        for key in keys:
            d[key] = "one by one"
        d.put_many((key, "many") for key in reversed(keys))
    kept = {d_key: type(d_key) for d_key in d}
    assert kept == {keys[0]: type(keys[0]) for keys in GROUPS.values()}


def test_other_keys_are_other_keys(d: DDict) -> None:
    ddicts.write_first(d)
    assert len(d) == len(GROUPS)
    assert ddicts.misread(d) == []
    for key in ("1", b"1", (1,), ("text",), Path("text"), frozenset(), "None", "read "):
        assert key not in d


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_in_a_task(batch: Batch, d: DDict, isolation: str) -> None:
    make = batch.options(isolation=isolation, reads=[batch.read(d)]).function
    ddicts.write_first(d)
    tasks = [make(ddicts.misread, d), make(ddicts.write_last, d), make(ddicts.misread, d)]
    tasks[1].write(d)
    batch.compile(tasks).run(timeout=60)
    assert tasks[0].get() == []
    assert tasks[2].get() == []
    assert ddicts.misread(d) == []
    assert len(d) == len(GROUPS)


OTHER = """
import sys
from support import ddicts
from daskbatch import DDict

d = DDict(sys.argv[1], name="keys")
print(*ddicts.misread(d), sep="\\n")
ddicts.write_last(d)
"""


@pytest.mark.parametrize("seed", ["0", "1", "12345"])
def test_in_a_process_with_other_hashes(batch: Batch, d: DDict, seed: str) -> None:
    ddicts.write_first(d)
    done = subprocess.run(
        [sys.executable, "-c", OTHER, batch.client.scheduler.address],
        env={
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert ddicts.misread(d) == []
    assert len(d) == len(GROUPS)


MAIN = """
import enum
from dataclasses import dataclass
from daskbatch import Batch

@dataclass(frozen=True)
class Point:
    x: float
    name: str

class Colour(enum.Enum):
    RED = "red"

class Folded:
    def __init__(self, text):
        self.text = text
    def __eq__(self, other):
        return isinstance(other, Folded) and self.text.lower() == other.text.lower()
    def __hash__(self):
        return hash(self.text.lower())

KEYS = [
    (Point(1, "p"), Point(1.0, "p")),
    (Colour.RED, Colour.RED),
    (Folded("Key"), Folded("KEY")),
    ((Point(2, "q"), Folded("x")), (Point(2, "q"), Folded("X"))),
]

def use(d):
    for number, (one, other) in enumerate(KEYS):
        assert d[one] == d[other] == number, (one, d.get(one), d.get(other))
        d[other] = number + 10
    return sorted(map(repr, d.values()))

with Batch(num_workers=2) as batch:
    d = batch.ddict(shards=5)
    for number, (one, other) in enumerate(KEYS):
        d[one] = number
        assert d[other] == number
    assert len(d) == len(KEYS)
    for isolation in ("thread", "process"):
        task = batch.options(isolation=isolation).function(use, d)
        task.run(timeout=60)
        print(*task.get())
        assert [d[one] for one, _ in KEYS] == [10, 11, 12, 13]
        for number, (one, other) in enumerate(KEYS):
            d[one] = number
    assert len(d) == len(KEYS)
    assert {type(key).__name__ for key in d} == {"Point", "Colour", "Folded", "tuple"}
"""


def test_classes_of_main(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(MAIN, "utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["10 11 12 13"] * 2 + [""]


@pytest.mark.parametrize(
    "make",
    [ddicts.Plain, lambda: float("nan"), object],
    ids=["own class", "not a number", "object"],
)
def test_what_is_equal_to_nothing_else(d: DDict, make: Any) -> None:
    """A copy of a key that equals nothing else is another key; iteration still finds it."""
    d[make()] = 1
    d[make()] = 2
    d["a"] = 3
    assert len(d) == len(list(d)) == 3
    assert make() not in d
    assert sorted(d.values()) == [1, 2, 3]
    assert sorted(value for _, value in d.items()) == [1, 2, 3]
    assert sorted(d.popitem()[1] for _ in range(3)) == [1, 2, 3]
    assert len(d) == 0


def test_long_keys(d: DDict) -> None:
    keys = ["x" * 1_000_000, b"y" * 1_000_000, tuple(range(50_000))]
    d.put_many((key, len(key)) for key in keys)
    assert [d[key] for key in keys] == [1_000_000, 1_000_000, 50_000]
    assert set(d) == set(keys)

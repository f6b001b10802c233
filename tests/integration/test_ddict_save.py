"""A saved dictionary is loaded unchanged, is a consistent snapshot, and complete or absent."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import ddicts
from support.ddicts import GROUPS
from support.saved_keys import ARRAY, CONTENTS, SAVED, Colour, Point

from daskbatch import Batch, DDict, LifecycleError, SpecError


@pytest.fixture
def d(batch: Batch) -> Iterator[DDict]:
    with batch.ddict(shards=3) as made:
        yield made


@pytest.mark.parametrize("name", ["state", "a name with spaces", "Straße 🚲.snapshot", "-"])
@pytest.mark.parametrize("kind", [str, Path])
def test_what_is_saved_comes_back(
    batch: Batch, d: DDict, tmp_path: Path, name: str, kind: type
) -> None:
    values = {"a": [1, {"b": None}], 2: "text" * 1000, (3, "c"): b"bytes", None: 1.5}
    d.update(values)
    d.save(kind(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name], "and nothing else"
    d.clear()
    with DDict.load(kind(tmp_path / name), batch.client) as loaded:
        assert loaded == values
        loaded["new"] = 1
        assert len(d) == 0, "it is another dictionary"


def test_a_path_of_this_directory(
    batch: Batch, d: DDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    d["a"] = 1
    d.save("state")
    with DDict.load("state", batch.client) as loaded:
        assert loaded == {"a": 1}


def test_nothing_is_something(batch: Batch, d: DDict, tmp_path: Path) -> None:
    d.save(tmp_path / "empty")
    with DDict.load(tmp_path / "empty", batch.client) as loaded:
        assert loaded == {}


@pytest.mark.parametrize("options", [{"shards": 1}, {"shards": 5}, {"shards": 2, "replicas": 2}])
def test_all_kinds_of_keys_in_other_shards(
    batch: Batch, d: DDict, tmp_path: Path, options: dict[str, int]
) -> None:
    ddicts.write_first(d)
    d.save(tmp_path / "state")
    with DDict.load(tmp_path / "state", batch.client, name="loaded", **options) as loaded:
        assert ddicts.misread(loaded) == []
        assert len(loaded) == len(GROUPS)
        assert loaded.name == "loaded"


def test_arrays_and_what_is_on_disk(batch: Batch, tmp_path: Path) -> None:
    arrays = {number: np.random.default_rng(number).random(100_000) for number in range(20)}
    with batch.ddict(shards=2, memory_limit="1 MiB") as d:
        d.put_many(arrays)
        d.save(tmp_path / "state")
        d.clear()
    with DDict.load(tmp_path / "state", batch.client, memory_limit="1 MiB") as loaded:
        assert len(loaded) == 20
        for number, array in arrays.items():
            np.testing.assert_array_equal(loaded[number], array)
            loaded[number] += 1


def test_many_keys(batch: Batch, d: DDict, tmp_path: Path) -> None:
    d.put_many((f"key {number}", number) for number in range(50_000))
    d.save(tmp_path / "state")
    with DDict.load(tmp_path / "state", batch.client) as loaded:
        assert loaded == d


def test_it_goes_on_where_it_was(batch: Batch, d: DDict, tmp_path: Path) -> None:
    for number in range(3):
        d.fetch_add("n")
        d.save(tmp_path / "state")
        with DDict.load(tmp_path / "state", batch.client) as loaded:
            assert loaded == {"n": number + 1}


def test_a_frozen_one_is_saved(batch: Batch, d: DDict, tmp_path: Path) -> None:
    d["a"] = 1
    d.freeze()
    d.save(tmp_path / "state")
    assert d.frozen
    with DDict.load(tmp_path / "state", batch.client) as loaded:
        loaded["a"] += 1
        assert loaded["a"] == 2


def test_in_a_task(batch: Batch, d: DDict, tmp_path: Path) -> None:
    for isolation in ("thread", "process"):
        path = tmp_path / isolation
        d["a"] = isolation
        make = batch.options(isolation=isolation).function
        make(d.save, path).run(timeout=60)
        task = make(_load_there, path)
        task.run(timeout=60)
        assert task.get() == {"a": isolation}


def _load_there(path: Path) -> dict[str, str]:
    with DDict.load(path) as loaded:
        return dict(loaded)


# -- one moment ---------------------------------------------------------------------------


def test_it_is_of_one_moment(batch: Batch, d: DDict, tmp_path: Path) -> None:
    """A snapshot never has a newer value of the key that is written second."""
    pairs = [(("a", number), ("b", number)) for number in range(4)]
    d.update((key, 0) for pair in pairs for key in pair)
    d.put_many((number, bytes(1000)) for number in range(2000))
    stop = tmp_path / "stop"
    tasks = [
        batch.options(isolation=isolation).function(ddicts.write_in_order, d, *pair, stop)
        for pair, isolation in zip(pairs, ("thread", "process"), strict=False)
    ]
    for task in tasks:
        task.start()
    threads = [
        threading.Thread(target=ddicts.write_in_order, args=(d, *pair, stop)) for pair in pairs[2:]
    ]
    for thread in threads:
        thread.start()
    try:
        for task, (first, _) in zip(tasks, pairs, strict=False):
            while not d[first]:
                assert task.state in ("waiting", "running")
        before = {first: 0 for first, _ in pairs}
        for number in range(10):
            d.save(tmp_path / f"{number}")
            with DDict.load(tmp_path / f"{number}", batch.client) as loaded:
                assert len(loaded) == 2008
                for first, then in pairs:
                    assert 0 <= loaded[first] - loaded[then] <= 1
                    assert loaded[first] >= before[first], "what was saved before is older"
                    before[first] = d[first]
    finally:
        stop.touch()
        for thread in threads:
            thread.join()
    written = [task.get(timeout=60) for task in tasks]
    assert min(written) > 10, "others could write meanwhile"
    for (first, then), count in zip(pairs, written, strict=False):
        assert d[first] == d[then] == count, "none was lost over it"


# -- what goes wrong ----------------------------------------------------------------------


def saved(d: DDict, path: Path) -> bytes:
    d.update((number, np.full(500, number)) for number in range(10))
    d["text"] = "Straße" * 1000
    d.save(path)
    return path.read_bytes()


def test_a_file_that_was_cut_off(batch: Batch, d: DDict, tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole = saved(d, path)
    dice = random.Random(1)
    for size in {0, 1, 8, 16, len(whole) - 1, *(dice.randrange(len(whole)) for _ in range(10))}:
        path.write_bytes(whole[:size])
        with pytest.raises(SpecError, match="state"):
            DDict.load(path, batch.client)


def test_a_file_that_was_damaged(batch: Batch, d: DDict, tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole = saved(d, path)
    dice = random.Random(2)
    for place in {0, 5, len(whole) - 1, *(dice.randrange(len(whole)) for _ in range(20))}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(SpecError, match="state"):
            DDict.load(path, batch.client)


def test_a_file_with_more_at_its_end(batch: Batch, d: DDict, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(saved(d, path) * 2)
    with pytest.raises(SpecError, match="state"):
        DDict.load(path, batch.client)


@pytest.mark.parametrize("content", [b"", b"text\n" * 1000, b"\x80\x05K\x01.", bytes(10_000)])
def test_a_file_of_another_kind(batch: Batch, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(SpecError, match="state"):
        DDict.load(tmp_path / "state", batch.client)


def test_after_a_file_that_was_damaged_the_name_is_free(
    batch: Batch, d: DDict, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    whole = saved(d, path)
    path.write_bytes(whole[:-1])
    with pytest.raises(SpecError):
        DDict.load(path, batch.client, name="loaded once")
    path.write_bytes(whole)
    with DDict.load(path, batch.client, name="loaded once", shards=2) as loaded:
        assert len(loaded) == 11


def test_one_that_is_there_already_stays_as_it_is(batch: Batch, d: DDict, tmp_path: Path) -> None:
    good, cut, other = tmp_path / "good", tmp_path / "cut", tmp_path / "other"
    cut.write_bytes(saved(d, good)[:-1])
    other.write_text("no snapshot")
    with batch.ddict(name="there already") as there:
        there["a"] = 1
        for path in (tmp_path / "nowhere", tmp_path, other, cut, good):
            with pytest.raises((OSError, SpecError)) as caught:
                DDict.load(path, batch, name="there already")
            assert there == {"a": 1}
        assert "there already" in str(caught.value)
        assert isinstance(caught.value, SpecError)
    with DDict.load(good, batch, name="there already") as loaded:
        assert set(loaded) == set(d)


@pytest.mark.parametrize("content", [None, b"no snapshot"], ids=["missing", "another"])
def test_a_file_is_looked_at_before_anything_is_made(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileNotFoundError if content is None else SpecError, match="state"):
        DDict.load(path, "tcp://127.0.0.1:9")  # where nobody is


def test_it_is_loaded_as_what_it_is_asked_for(batch: Batch, d: DDict, tmp_path: Path) -> None:
    d["a"] = 2
    d.save(tmp_path / "state")
    with ddicts.Doubled.load(tmp_path / "state", batch) as loaded:
        assert isinstance(loaded, ddicts.Doubled)
        assert loaded.twice("a") == "4"


# -- another program ----------------------------------------------------------------------

CLASSES = """
import enum, sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from daskbatch import Batch, DDict

@dataclass(frozen=True)
class Point:
    x: int

class Colour(enum.Enum):
    RED = 1

class Outer:
    class Place(NamedTuple):
        row: int

directory = Path(sys.argv[1])
keys = [Point(1), Colour.RED, Outer.Place(1), (Point(2), frozenset([Colour.RED])), Point]
"""

SAVES = """
replaced = Point(3)

@dataclass(frozen=True)
class Point:
    x: int

keys[0], keys[3], keys[4] = Point(1), (Point(2), frozenset([Colour.RED])), Point

with Batch(num_workers=1) as batch:
    d = batch.ddict()
    d.put_many((key, number) for number, key in enumerate(keys))
    d[replaced] = "replaced"
    assert [d[key] for key in keys] == list(range(5))
    assert d[replaced] == "replaced"
    d.save(directory / "client")
    for isolation in ("thread", "process"):
        batch.options(isolation=isolation).function(d.save, directory / isolation).run()
"""

LOADS = """
with Batch(num_workers=1) as batch:
    for path in sorted(directory.iterdir()):
        with DDict.load(path, batch) as d:
            print(path.name, [d.get(key) for key in keys], len(d))
            assert {*d} >= {*keys}
"""

LOADS_WITHOUT = """
import sys
from pathlib import Path
from daskbatch import Batch, DDict

with Batch(num_workers=1) as batch, DDict.load(Path(sys.argv[1]) / "client", batch) as d:
    print(*sorted(map(repr, d)))
"""


def test_another_program_finds_its_own_classes(tmp_path: Path) -> None:
    directory = tmp_path / "saved"
    directory.mkdir()

    def run(name: str, *parts: str) -> str:
        script = tmp_path / f"{name}.py"
        script.write_text("".join(parts), "utf-8")
        done = subprocess.run(
            [sys.executable, script, directory], capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("saves", CLASSES, SAVES)
    found = "[0, 1, 2, 3, 4] 6"
    assert run("loads", CLASSES, LOADS) == (f"client {found}\nprocess {found}\nthread {found}\n")
    assert run("without", LOADS_WITHOUT) == (
        "(Point(x=2), frozenset({<Colour.RED: 1>})) <Colour.RED: 1> <class '__main__.Point'> "
        "Place(row=1) Point(x=1) Point(x=3)\n"
    )


def test_a_file_of_an_earlier_version(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names a module that has moved since."""
    for each in (Point, Colour):
        monkeypatch.setattr(sys.modules["__main__"], each.__name__, each, raising=False)
    with DDict.load(SAVED, batch) as loaded:
        assert np.array_equal(loaded.pop("array"), ARRAY)
        assert len(loaded) == len(CONTENTS)
        assert {key: loaded[key] for key in CONTENTS} == CONTENTS


# -- files that are not there -------------------------------------------------------------


def test_files_that_are_not_there(batch: Batch, d: DDict, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DDict.load(tmp_path / "nowhere", batch.client)
    with pytest.raises(OSError):
        DDict.load(tmp_path, batch.client)
    with pytest.raises(FileNotFoundError):
        d.save(tmp_path / "no" / "directory")
    with pytest.raises(OSError):
        d.save(tmp_path)
    d["a"] = 1
    assert d == {"a": 1}, "it is not held"


def test_what_was_there_stays_if_it_cannot_be_saved(batch: Batch, d: DDict, tmp_path: Path) -> None:
    path = tmp_path / "state"
    before = saved(d, path)
    d.close()
    with pytest.raises(LifecycleError):
        d.save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_what_does_not_unpickle_is_saved_as_it_is(batch: Batch, d: DDict, tmp_path: Path) -> None:
    d.update(a=1, b=ddicts.Unloadable())
    d.save(tmp_path / "state")
    with DDict.load(tmp_path / "state", batch.client) as loaded:
        assert (loaded["a"], len(loaded)) == (1, 2)

"""Tasks that declare accesses to a dictionary run in order, also those in the background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ddicts

from daskbatch import Batch, DDict
from daskbatch.batch.task import Task


@pytest.fixture
def d(batch: Batch) -> Iterator[DDict]:
    with batch.ddict(shards=2) as made:
        yield made


# -- order --------------------------------------------------------------------------------


def test_a_chain_by_keys(batch: Batch, d: DDict) -> None:
    d[0] = 0
    tasks = [
        batch.function(
            ddicts.add_one, d, number, number + 1,
            reads=[batch.read(d, number)], writes=[batch.write(d, number + 1)],
        )
        for number in range(20)
    ]  # fmt: skip
    program = batch.compile(tasks)
    program.run(timeout=60)
    assert program.get() == list(range(1, 21))


def test_equal_keys_are_one_channel(batch: Batch, d: DDict) -> None:
    write, read = batch.function(len, ""), batch.function(len, "")
    write.write(d, (1, "a"))
    read.read(d, (1.0, "a"))
    assert "write" in batch.compile([write, read]).explain(write, read)
    other = batch.function(len, "")
    other.read(d, (2, "a"))
    again = batch.function(len, "")
    again.write(d, (1, "a"))
    assert "need not" in batch.compile([again, other]).explain(again, other)


@pytest.mark.parametrize(
    ("first", "then"),
    [(("a",), ("a",)), ((), ("a",)), (("a",), ()), (("b", "a"), ("a", "c"))],
    ids=["key", "all before key", "key before all", "keys"],
)
@pytest.mark.parametrize("later", ["read", "write"])
def test_what_is_written_is_written_before_it_is_used(
    batch: Batch, d: DDict, tmp_path: Path, first: tuple[str], then: tuple[str], later: str
) -> None:
    d["a"] = 0
    before = batch.function(ddicts.write_after, d, "a", 1, tmp_path / "go")
    before.write(d, *first)
    after = batch.function(ddicts.add_one, d, "a", "a")
    getattr(after, later)(d, *then)
    program = batch.compile([before, after])
    program.start()
    try:
        # Another one runs meanwhile: there is a slot for what is ready.
        batch.function(ddicts.write, d, "other", 1).run(timeout=60)
        assert d["a"] == 0
        assert after.state == "waiting"
    finally:
        (tmp_path / "go").touch()
    program.wait(timeout=60)
    assert after.get() == 2


def test_what_is_read_is_read_before_it_is_written(batch: Batch, d: DDict, tmp_path: Path) -> None:
    d["a"] = 0
    read = batch.function(ddicts.read_after, d, "a", tmp_path / "go", reads=[batch.read(d, "a")])
    write = batch.function(ddicts.write, d, "a", 1, writes=[batch.write(d)])
    program = batch.compile([read, write])
    program.start()
    try:
        batch.function(ddicts.write, d, "other", 1).run(timeout=60)
        assert d["a"] == 0
        assert write.state == "waiting"
    finally:
        (tmp_path / "go").touch()
    program.wait(timeout=60)
    assert (read.get(), d["a"]) == (0, 1)


def test_another_handle_is_the_same_channel(batch: Batch) -> None:
    with batch.ddict(name="twice") as one, batch.ddict(name="twice") as other:
        write, read = batch.function(len, ""), batch.function(len, "")
        write.write(one, "a")
        read.read(other, "a")
        assert "write" in batch.compile([write, read]).explain(write, read)


# -- in the background --------------------------------------------------------------------

TEMPLATE = """
import_args: [target]
args: [d, key, value]
type: function
executables: [{target: target, args: [d, key, value]}]
writes: [{ddict: d, keys: [key]}]
"""

#: What reads or writes the key "a".
TOUCHES: dict[str, Callable[[DDict], object]] = {
    "d[k]": lambda d: d["a"],
    "d[k] = v": lambda d: d.__setitem__("a", 2),
    "del d[k]": lambda d: d.__delitem__("a"),
    "get": lambda d: d.get("a"),
    "in": lambda d: "a" in d,
    "len": len,
    "iter": list,
    "next": lambda d: next(iter(d)),
    "keys": lambda d: list(d.keys()),
    "values": lambda d: list(d.values()),
    "items": lambda d: list(d.items()),
    "in values": lambda d: 1 in d.values(),
    "in items": lambda d: ("a", 1) in d.items(),
    "==": lambda d: d == {"a": 1},
    "bool": bool,
    "pop": lambda d: d.pop("a"),
    "popitem": lambda d: d.popitem(),
    "setdefault": lambda d: d.setdefault("a", 2),
    "update": lambda d: d.update(a=2),
    "put_many": lambda d: d.put_many({"b": 1, "a": 2}),
    "get_many": lambda d: d.get_many(["a"]),
    "fetch_add": lambda d: d.fetch_add("a"),
    "clear": lambda d: d.clear(),
    "freeze": lambda d: d.freeze(),
    "an equal key": lambda d: d[ddicts.Text("a")],
}


@pytest.fixture
def lazy(batch: Batch, tmp_path: Path) -> Callable[..., Task]:
    path = tmp_path / "write.yml"
    path.write_text(TEMPLATE)
    return lambda d, key, value, target=ddicts.write: batch.import_func(path, target)(d, key, value)


@pytest.mark.parametrize("touch", TOUCHES)
def test_what_waits_in_the_background_is_done_when_it_is_touched(
    d: DDict, lazy: Callable[..., Task], touch: str
) -> None:
    task = lazy(d, "a", 1)
    assert task.state == "queued"
    TOUCHES[touch](d)
    assert task.state == "done"


def test_what_is_touched_first_is_seen_first(d: DDict, lazy: Callable[..., Task]) -> None:
    for number in range(10):
        lazy(d, "a", number)
    assert d["a"] == 9
    lazy(d, "a", 10)
    d["a"] = 11
    lazy(d, "b", 12)
    assert (d["a"], d["b"]) == (11, 12)


def test_other_keys_are_not_waited_for(
    batch: Batch, d: DDict, lazy: Callable[..., Task], tmp_path: Path
) -> None:
    task = lazy(d, "a", tmp_path / "go", target=_write_when_told)
    lazy(d, "b", 2)
    assert d["b"] == 2
    assert "c" not in d
    assert task.state in ("waiting", "running")
    (tmp_path / "go").touch()
    assert d["a"] == "told"


def _write_when_told(d: DDict, key: str, path: Path) -> None:
    ddicts.write_after(d, key, "told", path)


def test_what_fails_in_the_background_does_not_fail_here(
    d: DDict, lazy: Callable[..., Task]
) -> None:
    d["a"] = 1
    task = lazy(d, "a", 2, target=_fail)
    assert d["a"] == 1
    with pytest.raises(ArithmeticError, match="on purpose"):
        task.get(timeout=60)


def _fail(d: DDict, key: str, value: int) -> None:
    raise ArithmeticError("on purpose")


def test_a_task_does_not_wait_for_itself(d: DDict, lazy: Callable[..., Task]) -> None:
    task = lazy(d, "a", 1, target=_write_and_read)
    assert d["a"] == 2
    assert task.state == "done"


def _write_and_read(d: DDict, key: str, value: int) -> None:
    d[key] = value
    d[key] = d[key] + 1

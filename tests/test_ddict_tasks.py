"""A dictionary that tasks share: waiting for keys, counting, order by reads and writes, places."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ddicts
import numpy as np
import pytest
from ddicts import outcome

from daskbatch import Batch, DDict
from daskbatch.task import Task

ISOLATION = pytest.mark.parametrize("isolation", ["thread", "process"])


@pytest.fixture
def d(batch: Batch) -> Iterator[DDict]:
    with batch.ddict(shards=2) as made:
        yield made


@pytest.fixture
def patient(batch: Batch) -> Iterator[DDict]:
    """A dictionary that waits for keys."""
    with batch.ddict(shards=2, wait_for_keys=True, timeout=60) as made:
        yield made


# -- waiting for a key --------------------------------------------------------------------


def test_a_client_waits_for_a_key(batch: Batch, patient: DDict) -> None:
    with ThreadPoolExecutor(3) as threads:
        one = threads.submit(patient.__getitem__, "a")
        many = threads.submit(patient.get_many, ["a", "b", "c"])
        popped = threads.submit(patient.pop, "d")
        batch.function(patient.put_many, {"a": 1, "b": 2}).run(timeout=60)
        assert one.result(60) == 1
        assert not many.done()
        patient["c"] = 3
        assert many.result(60) == {"a": 1, "b": 2, "c": 3}
        assert patient.setdefault("d", 4) == 4
        assert popped.result(60) == 4
    assert "d" not in patient


@ISOLATION
def test_a_task_waits_for_a_key(
    batch: Batch, patient: DDict, isolation: str, tmp_path: Path
) -> None:
    make = batch.options(isolation=isolation).function
    task = make(ddicts.read_late, patient, "a", tmp_path / "begun")
    task.start()
    ddicts.wait_for(tmp_path / "begun")
    assert task.state in ("waiting", "running")
    patient["a"] = np.arange(100_000)
    assert int(task.get(timeout=60)[-1]) == 99_999


@ISOLATION
def test_each_way_to_write_ends_the_waiting(batch: Batch, patient: DDict, isolation: str) -> None:
    ways: dict[str, Callable[[str], object]] = {
        "put": lambda key: patient.__setitem__(key, 0),
        "put_many": lambda key: patient.put_many({key: 0, "other": 0}),
        "update": lambda key: patient.update({key: 0}),
        "setdefault": lambda key: patient.setdefault(key, 0),
        "fetch_add": lambda key: patient.fetch_add(key, 0),
    }
    tasks = [batch.options(isolation=isolation).function(ddicts.read, patient, key) for key in ways]
    for task in tasks:
        task.start()
    for key, way in ways.items():
        way(key)
    assert [task.get(timeout=60) for task in tasks] == [0] * 5


def test_nothing_else_waits(patient: DDict) -> None:
    assert "a" not in patient
    assert patient.get("a") is None
    assert patient.get("a", 1) == 1
    assert patient.pop("a", 2) == 2
    assert len(patient) == 0
    assert list(patient.items()) == []
    with pytest.raises(KeyError):
        del patient["a"]
    with pytest.raises(KeyError):
        patient.popitem()


@pytest.fixture
def hasty(batch: Batch) -> Iterator[DDict]:
    """One that does not wait for long."""
    with batch.ddict(shards=2, wait_for_keys=True, timeout=0.05) as made:
        yield made


def test_the_time_is_up_in_a_client(hasty: DDict) -> None:
    assert ddicts.read_in_vain(hasty, "a") == "late late late"
    with pytest.raises(TimeoutError, match="'a'"):
        hasty["a"]


@ISOLATION
def test_the_time_is_up_in_a_task(batch: Batch, hasty: DDict, isolation: str) -> None:
    task = batch.options(isolation=isolation).function(ddicts.read_in_vain, hasty, "a")
    task.run(timeout=60)
    assert task.get() == "late late late"
    task = batch.options(isolation=isolation).function(ddicts.read, hasty, "a")
    task.run(timeout=60)
    with pytest.raises(TimeoutError, match="'a'"):
        task.get()


@ISOLATION
def test_more_wait_than_there_are_slots(batch: Batch, patient: DDict, isolation: str) -> None:
    """The last one of a chain is the first to run, and each waits for the one behind it."""
    count = 12 if isolation == "thread" else 5
    make = batch.options(isolation=isolation).function
    tasks = [make(ddicts.add_one, patient, number + 1, number) for number in range(count)]
    for task in tasks:
        task.start()
    batch.function(ddicts.write, patient, count, 0).start()
    assert [task.get(timeout=60) for task in tasks] == list(range(count, 0, -1))


def test_readers_and_writers_of_one_program(batch: Batch, patient: DDict) -> None:
    """They are one block of tasks, that a worker runs one after the other."""
    readers = [batch.function(ddicts.read, patient, number) for number in range(30)]
    writers = [batch.function(ddicts.write, patient, number, -number) for number in range(30)]
    batch.compile([*readers, *writers]).run(timeout=60)
    assert [task.get() for task in readers] == [-number for number in range(30)]


def test_each_value_is_popped_once(batch: Batch, patient: DDict) -> None:
    poppers = [batch.function(patient.pop, "ticket") for _ in range(6)]
    for task in poppers:
        task.start()
    for number in range(6):
        while patient.setdefault("ticket", number) != number:
            threading.Event().wait(0.002)
    assert sorted(task.get(timeout=60) for task in poppers) == list(range(6))


@ISOLATION
def test_who_waits_is_told_of_the_end(
    batch: Batch, patient: DDict, isolation: str, tmp_path: Path
) -> None:
    task = batch.options(isolation=isolation).function(
        outcome, ddicts.read_late, patient, "a", tmp_path / "begun"
    )
    task.start()
    ddicts.wait_for(tmp_path / "begun")
    with ThreadPoolExecutor(1) as threads:
        here = threads.submit(outcome, ddicts.read_late, patient, "a", tmp_path / "here")
        ddicts.wait_for(tmp_path / "here")
        patient.close()
        assert here.result(60) == "LifecycleError"
    assert task.get(timeout=60) == "LifecycleError"


def test_who_waits_can_be_cancelled(batch: Batch, patient: DDict, tmp_path: Path) -> None:
    for isolation in ("thread", "process"):
        task = batch.options(isolation=isolation).function(
            ddicts.read_late, patient, "a", tmp_path / isolation
        )
        task.start()
        ddicts.wait_for(tmp_path / isolation)
        assert task.cancel()
        task.wait(timeout=60)
        assert task.state == "cancelled"
    patient["a"] = 1
    assert patient["a"] == 1


def test_a_key_that_is_removed_is_waited_for_again(batch: Batch, patient: DDict) -> None:
    patient["a"] = 1
    del patient["a"]
    task = batch.function(ddicts.read, patient, "a")
    task.start()
    patient["a"] = 2
    assert task.get(timeout=60) == 2


# -- at once ------------------------------------------------------------------------------


@ISOLATION
def test_many_tasks_count(batch: Batch, d: DDict, isolation: str) -> None:
    make = batch.options(isolation=isolation).function
    program = batch.compile([make(ddicts.count_up, d, "n", 50) for _ in range(20)])
    program.start()
    mine = ddicts.count_up(d, "n", 100)
    counted = [number for task in program.get(timeout=60) for number in task]
    assert sorted(counted + mine) == list(range(1100))
    assert d["n"] == 1100


def test_one_of_many_sets_the_default(batch: Batch, d: DDict) -> None:
    program = batch.compile([batch.function(d.setdefault, "first", number) for number in range(40)])
    program.run(timeout=60)
    assert set(program.get()) == {d["first"]}


def test_one_of_many_gets_an_item(batch: Batch, d: DDict) -> None:
    d.update((number, number) for number in range(40))
    program = batch.compile([batch.function(d.popitem) for _ in range(40)])
    program.run(timeout=60)
    assert sorted(program.get()) == [(number, number) for number in range(40)]
    assert len(d) == 0


@ISOLATION
def test_frozen_and_closed_is_so_for_all(batch: Batch, d: DDict, isolation: str) -> None:
    make = batch.options(isolation=isolation).function

    def told(*call: Any) -> str:
        task = make(outcome, *call)
        task.run(timeout=60)
        return str(task.get())

    assert told(ddicts.write, d, "a", 1) == "nothing"
    d.freeze()
    assert told(ddicts.write, d, "a", 2) == "LifecycleError"
    assert told(ddicts.read, d, "a") == "nothing"
    assert told(DDict.unfreeze, d) == "nothing"
    d["a"] = 3
    assert told(DDict.close, d) == "nothing"
    assert told(ddicts.read, d, "a") == "LifecycleError"
    assert outcome(ddicts.read, d, "a") == "LifecycleError"


# -- how it comes to tasks ----------------------------------------------------------------


def test_wherever_it_is_among_arguments(batch: Batch, d: DDict) -> None:
    d["a"] = 1

    def deep(given: Any, *, key: str) -> int:
        return int(given["x"][0][1][key]) + int(d[key])

    task = batch.function(deep, {"x": [(None, d)]}, key="a")
    task.run(timeout=60)
    assert task.get() == 2


def test_as_a_result_and_as_a_value(batch: Batch, d: DDict) -> None:
    with batch.ddict() as other:
        other["d"] = d
        task = batch.function(ddicts.read, other, "d")
        task.run(timeout=60)
        task.get()["a"] = 1
        assert d == {"a": 1}
        assert other["d"] == d


def test_as_an_argument_it_makes_no_dependency(batch: Batch, d: DDict, tmp_path: Path) -> None:
    first = batch.function(ddicts.write_after, d, "a", 1, tmp_path / "go")
    second = batch.function(ddicts.write, d, "b", 2)
    program = batch.compile([first, second])
    program.start()
    second.wait(timeout=60)
    assert d == {"b": 2}
    (tmp_path / "go").touch()
    program.wait(timeout=60)
    assert d == {"a": 1, "b": 2}


def test_one_that_a_task_makes(batch: Batch) -> None:
    """It finds the cluster that it runs on, and what has a name there."""
    with batch.ddict(name="known") as d:
        for isolation in ("thread", "process"):
            d["a"] = isolation
            task = batch.options(isolation=isolation).function(ddicts.by_name, "known", "a")
            task.run(timeout=60)
            assert (task.get(), d["a"]) == (isolation, "changed")


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


# -- places -------------------------------------------------------------------------------


def test_tasks_run_beside_their_data(batch: Batch, d: DDict) -> None:
    keys = [f"key {number}" for number in range(20)]
    d.put_many((key, key) for key in keys)
    for key in keys:
        task = batch.options(workers=d.workers_for([key])).function(ddicts.here, d)
        task.run(timeout=60)
        worker, there = task.get()
        assert [worker] == d.workers_for([key])
        assert key in there


def test_local_keys(batch: Batch, d: DDict) -> None:
    d.update((number, 0) for number in range(100))
    assert d.local_keys() == []
    found = []
    workers = d.workers_for(range(100))
    assert len(workers) == len(set(workers)) == 2
    for worker in workers:
        task = batch.options(workers=[worker]).function(ddicts.here, d)
        task.run(timeout=60)
        assert task.get()[0] == worker
        found += task.get()[1]
    assert sorted(found) == list(range(100))
    isolated = batch.options(isolation="process").function(ddicts.keys_here, d)
    isolated.run(timeout=60)
    assert isolated.get() == []


def test_workers_of_keys_that_are_not_there_yet(batch: Batch, d: DDict) -> None:
    there = d.workers_for(["new"])
    d["new"] = 1
    assert d.workers_for(["new"]) == there
    assert d.workers_for([]) == []
    (mine,) = there
    others = [key for key in map(str, range(100)) if d.workers_for([key]) != there][:2]
    assert d.workers_for([others[0], "new", others[1]])[1:] == [mine], "first who has most"


def test_two_copies_are_on_two_workers(batch: Batch) -> None:
    with batch.ddict(shards=1, replicas=2) as d:
        d["a"] = 1
        assert set(d.workers_for(["a"])) <= set(batch.client.scheduler_info()["workers"])

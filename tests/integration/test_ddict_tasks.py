"""Tasks share a dictionary: they wait for keys, count, and ask where keys are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ddicts
from support.cluster_info import workers_of
from support.ddicts import outcome
from support.waiting import wait_for_file

from daskbatch import Batch, DDict, SpecError

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
    wait_for_file(tmp_path / "begun")
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
    """A dictionary that waits for keys, but not for long."""
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
    """The last task of a chain runs first, and each task waits for the next one."""
    count = 12 if isolation == "thread" else 5
    make = batch.options(isolation=isolation).function
    tasks = [make(ddicts.add_one, patient, number + 1, number) for number in range(count)]
    for task in tasks:
        task.start()
    batch.function(ddicts.write, patient, count, 0).start()
    assert [task.get(timeout=60) for task in tasks] == list(range(count, 0, -1))


def test_readers_and_writers_of_one_program(batch: Batch, patient: DDict) -> None:
    """The tasks are one block, so that a worker runs one after the other."""
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
    wait_for_file(tmp_path / "begun")
    with ThreadPoolExecutor(1) as threads:
        here = threads.submit(outcome, ddicts.read_late, patient, "a", tmp_path / "here")
        wait_for_file(tmp_path / "here")
        patient.close()
        assert here.result(60) == "LifecycleError"
    assert task.get(timeout=60) == "LifecycleError"


def test_who_waits_can_be_cancelled(batch: Batch, patient: DDict, tmp_path: Path) -> None:
    for isolation in ("thread", "process"):
        task = batch.options(isolation=isolation).function(
            ddicts.read_late, patient, "a", tmp_path / isolation
        )
        task.start()
        wait_for_file(tmp_path / isolation)
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


# -- how it is sent to tasks --------------------------------------------------------------


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
    """A task finds the cluster that it runs on, and the named objects there."""
    with batch.ddict(name="known") as d:
        for isolation in ("thread", "process"):
            d["a"] = isolation
            task = batch.options(isolation=isolation).function(ddicts.by_name, "known", "a")
            task.run(timeout=60)
            assert (task.get(), d["a"]) == (isolation, "changed")


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
        assert set(d.workers_for(["a"])) <= set(workers_of(batch.client))


def test_it_is_no_access_by_itself_empty_or_not(batch: Batch, d: DDict) -> None:
    for content in ({}, {"a": 1}):
        d.update(content)
        said = r"writes= is <DDict \w+>: give batch.write\(d\) or batch.write\(d, key\)"
        with pytest.raises(SpecError, match=said):
            batch.function(len, "", writes=d)  # type: ignore[arg-type]
        with pytest.raises(SpecError, match=r"reads= is <DDict \w+>: give batch.read\(d\)"):
            batch.options(reads=d)  # type: ignore[arg-type]


def test_a_queue_is_no_access_by_itself(batch: Batch) -> None:
    with pytest.raises(SpecError, match=r"writes= is <Queue \w+>: give batch.write\(queue\)"):
        batch.function(len, "", writes=batch.queue())  # type: ignore[arg-type]

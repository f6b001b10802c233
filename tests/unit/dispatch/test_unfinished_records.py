"""Tasks are listed until they are over or gone, and threads may add some meanwhile."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest

from daskbatch.describe.spec import function_call
from daskbatch.dispatch import unfinished_records
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.dispatch.unfinished_records import UnfinishedRecords


def record(number: int) -> TaskRecord:
    return TaskRecord("client", number, "f", function_call(len, ("",), {}))


def test_those_that_are_over_or_gone_are_left_out() -> None:
    unfinished = UnfinishedRecords()
    assert not unfinished
    kept = [record(n) for n in range(4)]
    for each in (kept[0], record(9), *kept[1:]):
        unfinished.add(each)
    gc.collect()
    assert unfinished.records() == kept
    kept[1].phase = Phase.DONE
    assert unfinished.records() == [kept[0], *kept[2:]]
    for each in kept:
        each.phase = Phase.FAILED
    assert unfinished.records() == []
    assert not unfinished


def test_threads_add_while_others_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished_records, "_MIN_ENTRIES_TO_PRUNE", 3)
    unfinished = UnfinishedRecords()
    kept = [record(n) for n in range(2000)]

    def add(part: int) -> None:
        for each in kept[part::4]:
            unfinished.add(each)
            unfinished.add(record(-1))
            if not each.number % 16:
                assert each in unfinished.records()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert {each.number for each in unfinished.records()} == set(range(2000))
    assert len(unfinished.records()) == 2000


def test_a_finalizer_may_add_a_task() -> None:
    unfinished = UnfinishedRecords()
    late = record(1)

    class AddsAtItsEnd:
        def __del__(self) -> None:
            unfinished.add(late)
            assert unfinished.records() == [late]
            ended.append(True)

    class Entry:
        """Stands for a weak reference to a task that another thread drops while it is looked at."""

        def __call__(self) -> None:
            if not calls:
                calls.append(True)
                AddsAtItsEnd()

    calls: list[bool] = []
    ended: list[bool] = []
    unfinished._references.append(Entry())  # type: ignore[arg-type]
    assert unfinished.records() == [late]
    assert ended

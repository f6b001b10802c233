"""How many slots the unfinished tasks of a client could use."""

from __future__ import annotations

import pytest

from daskbatch.describe.gang import Gang
from daskbatch.describe.spec import DEFAULT_OPTIONS, Options, function_call
from daskbatch.dispatch.demand import TaskDemand, measure_demand
from daskbatch.dispatch.recovery import rerun_refusal
from daskbatch.dispatch.task_record import Phase, TaskRecord


def record(options: Options = DEFAULT_OPTIONS, *waits: TaskRecord) -> TaskRecord:
    made = TaskRecord("client", 0, "task", function_call(len, ("",), {}), options)
    made.waits = tuple((before, 1) for before in waits)
    return made


def measure(*records: TaskRecord, unfinished: int | None = None) -> TaskDemand:
    count = len(records) if unfinished is None else unfinished
    return measure_demand(records, count, lambda record: None, 0.5)


def test_tasks_that_wait_for_others_want_nothing() -> None:
    first = record()
    second = record(DEFAULT_OPTIONS, first)
    assert measure(first, second) == (1, 0.5)
    first.phase = Phase.DONE
    assert measure(second) == (1, 0.5)
    assert measure() == (0, 0.0)


def test_a_gang_wants_all_its_slots() -> None:
    assert measure(record(Options(gang=Gang(2, 3))), record()) == (7, 3.5)


def test_known_durations_count() -> None:
    found = measure_demand([record(), record()], 2, lambda record: 60.0, 0.5)
    assert found == (2, 120.0)


def test_of_many_tasks_the_first_ones_stand_for_all() -> None:
    assert measure(record(), record(), unfinished=10) == (10, 5.0)


@pytest.mark.parametrize("restartable", [False, True])
def test_a_restartable_task_may_run_again_though_it_reads_what_it_writes(
    restartable: bool,
) -> None:
    task = record(Options(restartable=restartable))
    task.reads = task.writes = (("file", "a"),)  # type: ignore[assignment]
    refusal = rerun_refusal(task, 1, ())
    assert (refusal is None) is restartable
    assert rerun_refusal(task, 3, ()) is not None

"""Failures are kept until the program has looked at them, or until they are told."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest

from daskbatch.describe.spec import DEFAULT_OPTIONS, function_call
from daskbatch.dispatch import failure_log
from daskbatch.dispatch.failure_log import FailureLog, TaskWarning
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord


def record(number: int, phase: Phase = Phase.FAILED, root: TaskRecord | None = None) -> TaskRecord:
    made = TaskRecord("client", number, "f", function_call(len, ("",), {}))
    made.phase, made.root_failure = phase, root
    return made


def told(log: FailureLog) -> tuple[Any, ...] | None:
    found = log.take_failures()
    return None if found is None else ([*found.records], found.failed, found.skipped)


def test_each_is_told_once_with_those_that_were_skipped() -> None:
    log, first, second = FailureLog(), record(0), record(1)
    for each in (first, second, *(record(n, Phase.SKIPPED, first) for n in range(2, 5))):
        log.add(each)
    assert told(log) == ([first, second], 2, 3)
    assert told(log) is None


def test_what_was_looked_at_is_not_told() -> None:
    log, first, second = FailureLog(), record(0), record(1)
    skipped = record(2, Phase.SKIPPED, first)
    for each in (first, second, skipped):
        log.add(each)
    log.look_at(skipped)  # by its exception, which names the first one
    assert told(log) == ([second], 1, 0)


def test_cancelled_tasks_barriers_and_what_is_delivered_elsewhere() -> None:
    log = FailureLog()
    barrier, of_executor, of_job = record(0), record(1), record(2)
    barrier.call = None
    of_executor.group = Group("executor", 0)
    of_job.options = replace(DEFAULT_OPTIONS, apart="lane")
    for each in (barrier, of_executor, of_job, record(3, Phase.CANCELLED)):
        log.add(each)
    assert told(log) is None
    member = record(4)
    member.group = Group("program", 1, is_program=True)
    log.add(member)
    assert told(log) == ([member], 1, 0)


def test_very_many_are_counted_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_log, "_MAX_KEPT_RECORDS", 2)
    log = FailureLog()
    kept = [record(n) for n in range(4)]
    for each in kept:
        log.add(each)
    log.add(record(9, Phase.SKIPPED, kept[3]))
    log.look_at(kept[2])
    del kept[2:], each
    gc.collect()
    assert told(log) == (kept, 3, 1)


def test_warnings_are_told_once_and_stay_known() -> None:
    log, task = FailureLog(), record(0, Phase.DONE)
    warning = TaskWarning("output", ("/a",))
    log.warn(task, warning)
    log.warn(task, warning)  # the task was tried twice
    assert log.take_warnings() == [(task, warning)]
    assert log.take_warnings() == []
    assert log.warnings_of(task) == (warning,)

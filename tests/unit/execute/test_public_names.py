"""The names of `daskbatch.execute` and their parameters are as the seed gives them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import daskbatch.execute
from daskbatch.execute import (
    CpuProfiling,
    DependenciesFailed,
    ExecutionContext,
    FailedDependency,
    Job,
    MemoryProfiling,
    RmiTask,
    Scheduler,
    Task,
)

NAMES = {
    *("ExecutionContext", "Job", "Task", "RmiTask", "Scheduler", "Worker"),
    *("TaskCancelled", "DependenciesFailed", "FailedDependency"),
    *("CpuProfiling", "MemoryProfiling"),
}

LABELS = "priority=None, name=None, desc=None, group=None"
SHOWN = "per_worker=False, strip_dirs=True, include=(), exclude=(), file=None"


def shape(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(plain))


def test_the_names_are_exactly_these() -> None:
    assert set(daskbatch.execute.__all__) == NAMES
    for name in NAMES:
        assert getattr(daskbatch.execute, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = daskbatch.execute.nothing
    assert set(dir(daskbatch.execute)) >= NAMES


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (ExecutionContext, "(cluster=None, config=None)"),
        (
            ExecutionContext.execute,
            "(job, workers=None, order_results=True, concurrency=None, attempts=None)",
        ),
        (
            ExecutionContext.await_workers,
            "(worker_count=None, connect_timeout=5, stable_timeout=60)",
        ),
        (Job, "(ctx, tasks, name=None, desc=None)"),
        (Task, f"(ctx, task_id, *, {LABELS})"),
        (Task.execute, "(scheduler, worker)"),
        (Task.locality, "(workers)"),
        (Task.set_executing, "(worker)"),
        (Task.mark_done, "(result=None)"),
        (Task.mark_failed, "(exc)"),
        (Task.add_listener, "(started, stopped=None)"),
        (RmiTask, f"(ctx, task_id, method, args=(), kwargs=None, *, {LABELS})"),
        (Scheduler, "(tasks, done, workers, concurrency=1, attempts=1)"),
        (FailedDependency, "(worker_failed=None)"),
        (DependenciesFailed, "(failures)"),
        (CpuProfiling, "(ctx)"),
        (
            CpuProfiling.print_stats,
            "(max_rows=100, sort_by=None, sort_dir=None, columns=(('name', 84), ('ncall', 12), "
            f"('tsub', 8), ('ttot', 8), ('tavg', 8)), {SHOWN})",
        ),
        (MemoryProfiling, "(ctx)"),
        (
            MemoryProfiling.print_top,
            f"(group_by='lineno', limit=30, compare_to=None, {SHOWN})",
        ),
    ],
)
def test_parameters(function: Callable[..., Any], parameters: str) -> None:
    assert shape(function) == parameters


def test_what_tasks_offer() -> None:
    own = {name for name in dir(Task(None, 0)) if not name.startswith("_")}
    assert own == {
        *("ctx", "id", "priority", "name", "desc", "group", "dependencies", "dependents"),
        *("execute", "locality", "set_executing", "mark_done", "mark_failed", "cancel", "release"),
        *("started", "pending", "done", "succeeded", "failed", "cancelled", "result", "exception"),
        *("executed_on", "executed_on_last", "attempts", "started_on", "stopped_on", "duration"),
        *("running", "stopped", "add_listener", "remove_listener", "signal_start", "signal_stop"),
    }


def test_what_runs_on_workers_needs_no_profiler_nor_driver() -> None:
    program = (
        "import sys, daskbatch.execute, daskbatch.execute.jobs.exceptions; print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    loaded = run.stdout.split()
    assert "daskbatch.execute.jobs.exceptions" in loaded
    assert not {"yappi", "distributed", "daskbatch.execute.context"} & set(loaded)

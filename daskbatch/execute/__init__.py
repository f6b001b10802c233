"""Jobs of tasks that form a graph, run on the workers of a Dask cluster.

An `ExecutionContext` executes a `Job`; its tasks run in the order of their dependencies, on the
workers that they prefer. A task is executed again if it fails or its result is lost.
docs/execute.md is the guide.

Each name is imported at its first use: code that runs on a worker must not import everything
that a driver needs.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskbatch.execute.context import ExecutionContext
    from daskbatch.execute.jobs.exceptions import (
        DependenciesFailed,
        FailedDependency,
        TaskCancelled,
    )
    from daskbatch.execute.jobs.job import Job
    from daskbatch.execute.jobs.rmi_task import RmiTask
    from daskbatch.execute.jobs.task import Task
    from daskbatch.execute.profiling.cpu_profiling import CpuProfiling
    from daskbatch.execute.profiling.memory_profiling import MemoryProfiling
    from daskbatch.execute.running.scheduler import Scheduler
    from daskbatch.execute.workers.worker import Worker

__all__ = [
    "CpuProfiling",
    "DependenciesFailed",
    "ExecutionContext",
    "FailedDependency",
    "Job",
    "MemoryProfiling",
    "RmiTask",
    "Scheduler",
    "Task",
    "TaskCancelled",
    "Worker",
]

_MODULES = {
    "CpuProfiling": "profiling.cpu_profiling",
    "DependenciesFailed": "jobs.exceptions",
    "ExecutionContext": "context",
    "FailedDependency": "jobs.exceptions",
    "Job": "jobs.job",
    "MemoryProfiling": "profiling.memory_profiling",
    "RmiTask": "jobs.rmi_task",
    "Scheduler": "running.scheduler",
    "Task": "jobs.task",
    "TaskCancelled": "jobs.exceptions",
    "Worker": "workers.worker",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))

"""Sequential programs of tasks, run in parallel on Dask.

A public name is imported when it is first used. A child process that runs functions imports this
package, too; it starts much faster without Dask.
"""

import sys as _sys
from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from daskbatch._version import __version__

if TYPE_CHECKING:
    from daskbatch.batch.batch import Batch
    from daskbatch.batch.compiled import CompiledTask
    from daskbatch.batch.futures import as_completed
    from daskbatch.batch.info import TaskInfo
    from daskbatch.batch.task import Task
    from daskbatch.describe.access import CommunicationDomain, CommunicationObject
    from daskbatch.describe.job_call import ProcessTemplate
    from daskbatch.errors import (
        BatchError,
        BatchWarning,
        DependencyFailed,
        GraphError,
        LifecycleError,
        MissingInput,
        MissingInputWarning,
        MissingOutput,
        MissingOutputWarning,
        ProcessFailed,
        ProgramWarning,
        SerializationError,
        ServiceLost,
        SpecError,
        SubmitAfterCloseError,
        TaskCancelled,
        TaskCrashed,
        TaskError,
        TasksFailed,
        TasksFailedWarning,
        TaskTimeout,
        TemplateError,
        UndeclaredAccess,
        WorkerLost,
    )
    from daskbatch.executor.executor import BatchPoolExecutor, as_executor
    from daskbatch.shared.ddict import DDict
    from daskbatch.shared.queue import Queue

__all__ = [
    "Batch",
    "BatchError",
    "BatchPoolExecutor",
    "BatchWarning",
    "CommunicationDomain",
    "CommunicationObject",
    "CompiledTask",
    "DDict",
    "DependencyFailed",
    "GraphError",
    "LifecycleError",
    "MissingInput",
    "MissingInputWarning",
    "MissingOutput",
    "MissingOutputWarning",
    "ProcessFailed",
    "ProcessTemplate",
    "ProgramWarning",
    "Queue",
    "SerializationError",
    "ServiceLost",
    "SpecError",
    "SubmitAfterCloseError",
    "Task",
    "TaskCancelled",
    "TaskCrashed",
    "TaskError",
    "TaskInfo",
    "TaskTimeout",
    "TasksFailed",
    "TasksFailedWarning",
    "TemplateError",
    "UndeclaredAccess",
    "WorkerLost",
    "__version__",
    "as_completed",
    "as_executor",
]

#: The modules of the public names that are not in `errors`.
_ELSEWHERE = {
    "Batch": "batch.batch",
    "BatchPoolExecutor": "executor.executor",
    "CompiledTask": "batch.compiled",
    "Task": "batch.task",
    "TaskInfo": "batch.info",
    "as_completed": "batch.futures",
    "as_executor": "executor.executor",
    "CommunicationDomain": "describe.access",
    "CommunicationObject": "describe.access",
    "DDict": "shared.ddict",
    "ProcessTemplate": "describe.job_call",
    "Queue": "shared.queue",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _import_module(f"{__name__}.{_ELSEWHERE.get(name, 'errors')}")
    found = globals()[name] = getattr(module, name)
    return found


def __dir__() -> list[str]:
    # Without the names that are imported for this file only.
    return sorted((globals().keys() - {"TYPE_CHECKING", "Any"}) | set(__all__))


if "dask" in _sys.modules:
    # A program that has imported Dask may look for the settings of daskbatch in its configuration.
    from daskbatch import config as _config  # noqa: F401

"""Sequential programs of tasks, run in parallel on Dask."""

from daskbatch import config as _config
from daskbatch._version import __version__
from daskbatch.batch import Batch
from daskbatch.describe.access import CommunicationDomain, CommunicationObject
from daskbatch.errors import (
    BatchError,
    DependencyFailed,
    GraphError,
    LifecycleError,
    ProcessFailed,
    SerializationError,
    ServiceLost,
    SpecError,
    SubmitAfterCloseError,
    TaskCancelled,
    TaskCrashed,
    TaskError,
    TaskTimeout,
    TemplateError,
    WorkerLost,
)

_config.load_defaults()


__all__ = [
    "Batch",
    "BatchError",
    "CommunicationDomain",
    "CommunicationObject",
    "DependencyFailed",
    "GraphError",
    "LifecycleError",
    "ProcessFailed",
    "SerializationError",
    "ServiceLost",
    "SpecError",
    "SubmitAfterCloseError",
    "TaskCancelled",
    "TaskCrashed",
    "TaskError",
    "TaskTimeout",
    "TemplateError",
    "WorkerLost",
    "__version__",
]

"""The public interface: its names, their parameters, and the modules that an import loads."""

from __future__ import annotations

import importlib.resources
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, MutableMapping
from concurrent.futures import BrokenExecutor, CancelledError
from pickle import PicklingError
from typing import Any

import pytest

import daskbatch
from daskbatch import Batch, DDict, Queue

#: All that `daskbatch` offers so far.
NAMES = {
    "Batch",
    "BatchPoolExecutor",
    "as_executor",
    "DDict",
    "Queue",
    "CommunicationDomain",
    "CommunicationObject",
    "ProcessTemplate",
    "BatchError",
    "SpecError",
    "TemplateError",
    "GraphError",
    "LifecycleError",
    "SubmitAfterCloseError",
    "TaskError",
    "ProcessFailed",
    "TaskTimeout",
    "DependencyFailed",
    "WorkerLost",
    "TaskCrashed",
    "SerializationError",
    "TaskCancelled",
    "ServiceLost",
    "MissingInput",
    "MissingOutput",
    "UndeclaredAccess",
    "TasksFailed",
    "BatchWarning",
    "TasksFailedWarning",
    "ProgramWarning",
    "MissingInputWarning",
    "MissingOutputWarning",
    "Task",
    "CompiledTask",
    "TaskInfo",
    "as_completed",
    "__version__",
}

#: The bases of each exception; a name is one of daskbatch's own.
BASES: dict[str, tuple[str | type, ...]] = {
    "BatchError": (Exception,),
    "SpecError": ("BatchError", ValueError),
    "TemplateError": ("SpecError",),
    "GraphError": ("SpecError",),
    "LifecycleError": ("BatchError", RuntimeError),
    "SubmitAfterCloseError": ("LifecycleError",),
    "TaskError": ("BatchError",),
    "ProcessFailed": ("TaskError",),
    "TaskTimeout": ("TaskError", TimeoutError),
    "DependencyFailed": ("TaskError",),
    "WorkerLost": ("TaskError", BrokenExecutor),
    "TaskCrashed": ("TaskError",),
    "SerializationError": ("TaskError", PicklingError),
    "TaskCancelled": ("TaskError", CancelledError),
    "ServiceLost": ("BatchError", BrokenExecutor),
    "MissingInput": ("TaskError",),
    "MissingOutput": ("TaskError",),
    "UndeclaredAccess": ("TaskError",),
    "TasksFailed": ("BatchError", ExceptionGroup),
    "BatchWarning": (UserWarning,),
    "TasksFailedWarning": ("BatchWarning",),
    "ProgramWarning": ("BatchWarning",),
    "MissingInputWarning": ("BatchWarning",),
    "MissingOutputWarning": ("BatchWarning",),
}

TASK = {"start", "wait", "run", "get", "cancel", "read", "write", "name", "uid", "state"}
TASK |= {"result", "stdout", "stderr", "info", "why", "again", "debug", "as_future"}


def own(thing: object) -> set[str]:
    """Return the public names of a class or module."""
    return {name for name in dir(thing) if not name.startswith("_")}


# -- names --------------------------------------------------------------------------------


def test_the_names_are_exactly_these() -> None:
    assert set(daskbatch.__all__) == NAMES
    assert len(daskbatch.__all__) == len(NAMES), "one is there twice"


def test_each_name_is_there_and_says_where_it_is_from() -> None:
    for name in NAMES - {"__version__"}:
        found = getattr(daskbatch, name)
        assert found.__name__ == name
        assert found.__module__.split(".")[0] == "daskbatch"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", daskbatch.__version__)


def test_nothing_else_is_there_by_accident() -> None:
    modules = {name for name, thing in vars(daskbatch).items() if inspect.ismodule(thing)}
    assert own(daskbatch) - modules == NAMES - {"__version__"}


def test_a_star_brings_the_same_names() -> None:
    brought: dict[str, Any] = {}
    exec("from daskbatch import *", brought)
    assert set(brought) - {"__builtins__"} == NAMES


def test_annotations_are_for_type_checkers_of_users_too() -> None:
    assert importlib.resources.files("daskbatch").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", BASES)
def test_the_bases_of_exceptions(name: str) -> None:
    bases = tuple(
        getattr(daskbatch, base) if isinstance(base, str) else base for base in BASES[name]
    )
    assert getattr(daskbatch, name).__bases__ == bases


def test_every_exception_is_in_the_tree() -> None:
    exceptions = {
        name
        for name in NAMES
        if inspect.isclass(found := getattr(daskbatch, name)) and issubclass(found, BaseException)
    }
    assert exceptions == set(BASES)


# -- parameters ---------------------------------------------------------------------------


def shape(function: Callable[..., Any]) -> str:
    """Return the parameters of a function with their defaults, without their types."""
    signature = inspect.signature(function)
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(plain))


def test_parameters_of_a_batch() -> None:
    assert (
        shape(Batch) == "(cluster=None, *, num_workers=None, name=None, background_batching=True, "
        "strict=False, log_dir=None, initializer=None, initargs=())"
    )


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (
            "function",
            "(target, *args, reads=None, writes=None, name=None, timeout=None, **kwargs)",
        ),
        (
            "process",
            "(target, *args, cwd=None, env=None, stdin=None, check=True, reads=None, "
            "writes=None, name=None, timeout=None)",
        ),
        (
            "job",
            "(target, *args, num_procs=None, cwd=None, env=None, stdin=None, check=True, "
            "reads=None, writes=None, name=None, timeout=None, **kwargs)",
        ),
        (
            "options",
            "(*, reads=None, writes=None, removes=None, name=None, timeout=None, retries=0, "
            "resources=None, "
            "workers=None, priority=0, isolation=None, cores=None, cwd=None, env=None, "
            "restartable=False, walltime=None)",
        ),
        ("compile", "(tasks, name=None, check='warn')"),
        ("import_func", "(ptd_file, *import_args, **import_kwargs)"),
        ("read", "(obj, *channels)"),
        ("write", "(obj, *channels)"),
        ("open", "(path, mode='r', *args, **kwargs)"),
        (
            "ddict",
            "(*, shards=None, replicas=1, wait_for_keys=False, timeout=None, memory_limit=None, "
            "name=None)",
        ),
        ("queue", "(maxsize=0, *, replicas=1, name=None)"),
        ("fence", "(timeout=None)"),
        ("close", "()"),
        ("join", "(timeout=None)"),
        ("terminate", "()"),
    ],
)
def test_parameters_of_its_methods(method: str, parameters: str) -> None:
    assert shape(getattr(Batch, method)) == parameters


def test_what_a_batch_offers() -> None:
    methods = {"function", "process", "options", "compile", "read", "write", "import_func"}
    methods |= {"ddict", "queue", "job"}
    life = {"report", "open", "fence", "close", "join", "terminate"}
    attributes = {"client", "client_id", "dashboard_link", "num_workers", "closed", "tasks"}
    assert own(Batch) == methods | life | attributes


def test_what_dictionaries_and_queues_offer() -> None:
    assert shape(DDict) == (
        "(cluster=None, *, shards=None, replicas=1, wait_for_keys=False, timeout=None, "
        "memory_limit=None, name=None)"
    )
    assert shape(Queue) == "(cluster=None, maxsize=0, *, replicas=1, name=None)"
    many = {"put_many", "get_many", "fetch_add", "freeze", "unfreeze", "frozen"}
    places = {"local_keys", "workers_for", "stats", "save", "load", "close", "name"}
    assert own(DDict) == own(MutableMapping) | many | places
    items = {"put", "get", "put_nowait", "get_nowait", "qsize", "empty", "full"}
    items |= {"task_done", "join", "stats", "save", "load", "close", "name"}
    assert own(Queue) == items


def test_what_tasks_offer(batch: Batch) -> None:
    function, process = batch.function(len, ""), batch.process("true")
    program = batch.compile([function, process])
    assert own(function) == own(process) == TASK
    assert own(program) == TASK | {
        *("tasks", "graph", "explain", "to_dot", "visualize", "failures", "skipped"),
        *("critical_path", "report", "trace"),
    }
    assert shape(program.visualize) == "(filename='graph.svg', *, collapse=None, files=False)"
    assert shape(program.report) == "(filename='report.html')"
    assert shape(program.trace) == "(filename='trace.json')"
    for task in (function, process, program):
        for part in (task.result, task.stdout, task.stderr):
            assert own(part) == {"get", "rank", "tail", "follow"}
            assert shape(part.tail) == "(n=20)"
            assert shape(part.follow) == "()"
            assert shape(part.get) == "(timeout=None)"
            assert shape(part.rank) == "(index, timeout=None)"
        for method in (task.wait, task.run):
            assert shape(method) == "(timeout=None, *, check=False, progress=False)"
        assert shape(task.get) == "(timeout=None)"
        assert inspect.isawaitable(task)


def test_what_options_return_makes_the_same_tasks(batch: Batch) -> None:
    configured = batch.options(retries=1)
    assert own(configured) == {"function", "process", "job"}
    assert own(configured.function(len, "")) == own(configured.process("true")) == TASK
    assert own(configured.job("true", num_procs=1)) == TASK


# -- importing ----------------------------------------------------------------------------

IMPORT = """
import json, sys, threading
import cloudpickle, distributed, psutil, yaml, zict
before = set(sys.modules)
threads = threading.active_count()
import daskbatch
brought = {name.split(".")[0] for name in set(sys.modules) - before}
process = psutil.Process()
print(json.dumps({
    "packages": sorted(brought - {"dask", "distributed"} - set(sys.stdlib_module_names)),
    "dashboard": [name for name in ("bokeh", "pandas", "IPython") if name in sys.modules],
    "threads": threading.active_count() - threads,
    "children": len(process.children()),
    "connections": len(process.net_connections()),
}))
"""


def test_importing_brings_dask_and_nothing_more_and_takes_no_cluster() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "packages": ["daskbatch"],
        "dashboard": [],
        "threads": 0,
        "children": 0,
        "connections": 0,
    }

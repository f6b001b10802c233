"""The private names of Dask, CPython, yappi and cloudpickle that daskbatch uses still exist.

An upgrade of a dependency that removes or changes one of them fails here by its name. To use
another private name, add a line to `NAMES`: the name, the file that uses it, and what the file
relies on, if that can be checked cheaply.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.paths import PROJECT

PACKAGE = PROJECT / "daskbatch"


class Use(NamedTuple):
    """A private name and a file that uses it."""

    #: The module or class that has the name, and the name, as `package.module:Class.name`.
    name: str
    #: Below daskbatch/.
    file: str
    #: What the file relies on; a name alone must exist.
    check: Callable[[Any], object] | None = None
    #: What the file writes, if this is not the last part of the name.
    word: str = ""

    @property
    def written(self) -> str:
        return self.word or re.split(r"[:.]", self.name)[-1]


def parameters(*names: str) -> Callable[[Any], bool]:
    """Check that a function has these parameters first, after `self`."""

    def check(function: Any) -> bool:
        found = [name for name in inspect.signature(function).parameters if name != "self"]
        return found[: len(names)] == list(names)

    return check


def keyword(name: str) -> Callable[[Any], bool]:
    """Check that a function has a parameter of this name."""
    return lambda function: name in inspect.signature(function).parameters


def callable_with(count: int) -> Callable[[Any], object]:
    """Check that a function can be called with this number of positional arguments."""
    return lambda function: inspect.signature(function).bind(*range(count))


def of_dispatching_method(name: str) -> Callable[[Any], object]:
    """Check that a method of a `singledispatchmethod` has a name, if it is not a function."""

    def check(kind: Any) -> bool:
        method = kind(len).__get__(None, object)
        return inspect.isfunction(method) or hasattr(method, name)

    return check


_FUTURES = "concurrent.futures._base"
_POOL = "distributed.threadpoolexecutor:ThreadPoolExecutor"
_CLOUDPICKLE = "cloudpickle.cloudpickle"
_TRACKING = "serialization/tracking.py"
_NAMED = "serialization/named_objects.py"

NAMES = [
    # -- Dask and distributed ---------------------------------------------------------------
    Use(
        "distributed.client:_maybe_call_security_loader", "cluster/connection.py", callable_with(1)
    ),
    Use(
        "distributed.utils:_offload_executor",
        "cluster/connection.py",
        lambda executor: isinstance(executor, Executor),
    ),
    Use("distributed.client:Client._event_handlers", "cluster/membership.py"),
    Use("distributed.client:Client._send_to_scheduler", "cluster/growth/demand_report.py"),
    # A nanny has it once a cluster object has started the nanny: without it, nothing changes.
    Use("distributed.deploy.spec:SpecCluster", "cluster/nanny_plugin.py", word="_cluster"),
    Use("distributed.client:Client._event_handlers", "cluster/shared_connection.py"),
    Use(
        "distributed.client:Client._reconnect", "cluster/connection.py", inspect.iscoroutinefunction
    ),
    # The attribute exists once a client is made; how long `_reconnect` tries.
    Use("distributed.client:Client", "cluster/connection.py", word="_timeout"),
    Use(
        "distributed.client:Client._reconnect",
        "cluster/process_client.py",
        inspect.iscoroutinefunction,
    ),
    Use("distributed.client:Future._state", "cluster/dask_backend.py"),
    Use("distributed.client:Client._scheduler_identity", "cluster/futures/future_arguments.py"),
    Use(
        "distributed.client:Client._graph_to_futures",
        "cluster/dask_backend.py",
        lambda method: (
            {"expr", "keys", "span_metadata", "internal_priority", "fifo_timeout"}
            <= set(inspect.signature(method).parameters)
        ),
    ),
    Use("dask._expr:HLGExpr", "cluster/dask_backend.py", word="_expr"),
    Use(
        "distributed.client:FutureState.wait",
        "cluster/dask_backend.py",
        inspect.iscoroutinefunction,
    ),
    Use(
        "distributed.nanny:Nanny._on_worker_exit_sync",
        "cluster/nanny_plugin.py",
        parameters("exitcode"),
    ),
    Use("distributed.nanny:WorkerProcess.on_exit", "cluster/nanny_plugin.py"),
    Use("distributed.scheduler:TaskState.run_spec", "cluster/worker_loss.py"),
    Use("distributed.scheduler:TaskState.suspicious", "cluster/worker_loss.py"),
    Use("distributed.worker_state_machine:WorkerState.nthreads", "shared/actor_admission.py"),
    Use(
        "dask._task_spec:Task.__init__",
        "dispatch/lower.py",
        keyword("_data_producer"),
        word="_data_producer",
    ),
    Use("dask._task_spec:Task.func", "cluster/worker_loss.py"),
    Use(
        "dask.config:config_lock",
        "cluster/dask_backend.py",
        lambda lock: lock._at_fork_reinit,
        word="_at_fork_reinit",
    ),
    Use(f"{_POOL}._adjust_thread_count", "worker/execution/slot.py", callable_with(1)),
    Use(f"{_POOL}._threads", "worker/execution/slot.py"),
    Use(f"{_POOL}._rejoin_list", "worker/execution/slot.py"),
    Use(f"{_POOL}._rejoin_lock", "worker/execution/slot.py"),
    Use(f"{_POOL}._rejoin_list", "worker/plugin.py"),
    # -- CPython ----------------------------------------------------------------------------
    Use("concurrent.futures:_base", "executor/future.py"),
    Use(f"{_FUTURES}:CANCELLED", "executor/future.py", lambda state: state == "CANCELLED"),
    Use(f"{_FUTURES}:CANCELLED_AND_NOTIFIED", "executor/future.py"),
    Use(f"{_FUTURES}:FINISHED", "executor/future.py", lambda state: state == "FINISHED"),
    Use(f"{_FUTURES}:Future._state", "executor/future.py"),
    Use(f"{_FUTURES}:Future._condition", "executor/future.py"),
    Use(f"{_FUTURES}:Future._waiters", "executor/future.py"),
    Use(f"{_FUTURES}:Future._result", "executor/future.py"),
    Use(f"{_FUTURES}:Future._exception", "executor/future.py"),
    Use(
        "concurrent.futures.process:_RemoteTraceback",
        "executor/future.py",
        lambda kind: kind("text").tb == "text",
    ),
    Use("threading:_register_atexit", "executor/pool.py", parameters("func")),
    Use("threading:_limbo", "worker/execution/interrupt.py", lambda limbo: isinstance(limbo, dict)),
    Use(
        "subprocess:_args_from_interpreter_flags",
        "worker/processes/interpreter.py",
        lambda flags: isinstance(flags(), list),
    ),
    Use(
        "subprocess:_args_from_interpreter_flags",
        "worker/mpi/rank_set.py",
        lambda flags: isinstance(flags(), list),
    ),
    Use(
        "os:environ._data",
        "worker/isolation/process_state.py",
        lambda data: {os.fsencode(name) for name in os.environ} == set(data),
    ),
    Use(
        "os:environ._data",
        "worker/execution/surroundings.py",
        lambda data: {os.fsencode(name) for name in os.environ} == set(data),
    ),
    Use("enum:Flag._inverted_", "serialization/enums.py"),
    Use("abc:_get_dump", "serialization/classes.py", callable_with(1)),
    Use(
        "sys:_xoptions",
        "worker/processes/interpreter.py",
        lambda options: isinstance(options, dict),
    ),
    Use(
        "os:__spec__",
        "serialization/pickling.py",
        lambda spec: spec._initializing is False,
        word="_initializing",
    ),
    Use("os:_exit", "cluster/embedded.py", callable_with(1)),
    Use("os:_exit", "cluster/fork_server.py", callable_with(1)),
    *(
        Use("functools:singledispatchmethod", _NAMED, of_dispatching_method(word), word)
        for word in ("_unbound", "_obj", "_cls")
    ),
    Use("multiprocessing.resource_tracker:_resource_tracker._pid", "cluster/embedded.py"),
    Use("multiprocessing.resource_tracker:_resource_tracker", "cluster/embedded.py"),
    Use("multiprocessing.resource_tracker:_resource_tracker", "cluster/fork_server.py"),
    Use("multiprocessing.forkserver:_forkserver", "cluster/fork_server.py"),
    Use("multiprocessing.util:spawnv_passfds", "cluster/fork_server.py", callable_with(3)),
    Use("multiprocessing.util:_run_finalizers", "cluster/embedded.py", callable_with(1)),
    Use("os:_exit", "forking.py", callable_with(1)),
    Use("sys:_getframe", "batch/registration.py", callable_with(1)),
    Use("sys:_getframe", "user_code.py", callable_with(1)),
    Use("sys:_getframe", "worker/execution/strict_access.py", callable_with(0)),
    Use("os:_exit", "worker/isolation/child_main.py", callable_with(1)),
    Use("os:_exit", "worker/mpi/rank_main.py", callable_with(1)),
    Use("os:_exit", "worker/mpi/rank_server.py", callable_with(1)),
    Use("os:_exit", "worker/mpi/rank_supervisor.py", callable_with(1)),
    Use("os:_exit", "worker/processes/parent_death.py", callable_with(1)),
    Use(
        "threading:Lock",
        "forking.py",
        lambda make: make()._at_fork_reinit,
        word="_at_fork_reinit",
    ),
    Use(
        "threading:RLock",
        "forking.py",
        lambda make: make()._at_fork_reinit,
        word="_at_fork_reinit",
    ),
    Use(
        "tracemalloc:Snapshot.traces",
        "execute/profiling/memory_profiling.py",
        lambda _: tracemalloc.Snapshot(((0, 1, (("file", 1),), 1),), 1).traces._traces,  # type: ignore[attr-defined, arg-type]
        word="_traces",
    ),
    Use("_signal:getsignal", "worker/isolation/process_settings.py", word="_signal"),
    Use("_signal:set_wakeup_fd", "worker/mpi/rank_supervisor.py", word="_signal"),
    Use("_socket:socket.sendall", "worker/mpi/rank_supervisor.py", word="_socket"),
    Use("_blake2:blake2b", "worker/mpi/rank_supervisor.py", keyword("key"), word="_blake2"),
    # -- yappi ------------------------------------------------------------------------------
    Use("yappi:YFuncStats._clock_type", "worker/profiling/profilers.py"),
    # -- cloudpickle ------------------------------------------------------------------------
    Use(
        f"{_CLOUDPICKLE}:_DYNAMIC_CLASS_TRACKER_BY_ID",
        _TRACKING,
        lambda trackers: isinstance(trackers, weakref.WeakValueDictionary),
    ),
    Use(
        f"{_CLOUDPICKLE}:_DYNAMIC_CLASS_TRACKER_BY_CLASS",
        _TRACKING,
        lambda trackers: isinstance(trackers, weakref.WeakKeyDictionary),
    ),
    Use(f"{_CLOUDPICKLE}:_get_or_create_tracker_id", _TRACKING, parameters("class_def")),
    Use(f"{_CLOUDPICKLE}:_BUILTIN_TYPE_NAMES", "serialization/by_value.py"),
    Use(f"{_CLOUDPICKLE}:_class_reduce", "serialization/by_value.py", parameters("obj")),
    Use(f"{_CLOUDPICKLE}:_lookup_module_and_qualname", _NAMED, parameters("obj", "name")),
    Use(f"{_CLOUDPICKLE}:_is_registered_pickle_by_value", _NAMED, parameters("module")),
    # -- NumPy: the table that extensions take its C functions from ------------------------------
    Use(
        "numpy._core._multiarray_umath:_ARRAY_API",
        "memory/array_allocator.py",
        lambda table: type(table).__name__ == "PyCapsule",
    ),
]

#: What the documentation of CPython names, though it begins with an underscore.
DOCUMENTED = {
    *("_replace", "_asdict", "_fields", "_make"),  # of named tuples
    *("_name_", "_value_"),  # of members of an enum
    "_is_gil_enabled",  # of sys
}


def find(name: str) -> Any:
    """Return what a name means; of an attribute that only objects have, a mark that it exists."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        if hasattr(found, part):
            found = getattr(found, part)
        else:
            assert inspect.isclass(found), f"{name} does not exist"
            assert is_set(found, part), f"no code of {found.__name__} sets self.{part}"
            return ...
    return found


def is_set(kind: type, name: str) -> bool:
    """Return whether the methods of a class, or of its bases, set an attribute of their object."""
    for each in kind.__mro__[:-1]:
        if name in getattr(each, "__annotations__", {}):
            return True
        if re.search(rf"\bself\.{name}\b\s*(:[^=]+)?=[^=]", inspect.getsource(each)):
            return True
    return False


@pytest.mark.parametrize("use", NAMES, ids=lambda use: f"{use.name} in {use.file}")
def test_the_name_exists_and_the_file_uses_it(use: Use) -> None:
    found = find(use.name)
    if use.check is not None:
        assert use.check(found) not in (False, None), f"{use.name} is not what {use.file} relies on"
    assert (PACKAGE / use.file).exists(), f"daskbatch/{use.file} does not exist: was it moved?"
    assert use.written in names_in(PACKAGE / use.file), (
        f"{use.file} does not use it: drop this line"
    )


# -- no other name is used --------------------------------------------------------------------


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def names_in(path: Path) -> set[str]:
    """Return all names of attributes, imports, keywords and texts of a file."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            found.update((node.module or "").split("."))
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and name != "_" and not name.endswith("__")


def own_names() -> set[str]:
    """Return the names that daskbatch itself defines: functions, classes, variables, attributes."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("self", "cls")
            ):
                found.add(node.attr)
    return found


def root(node: ast.expr) -> str:
    """Return the variable that an expression of attributes, calls and indices begins with."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def foreign(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the names that a file imports from others, as it calls them, and in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [(each.asname or each.name.split(".")[0], each.name) for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [
                (each.asname or each.name, f"{node.module}.{each.name}") for each in node.names
            ]
        else:
            continue
        yield from (each for each in named if each[1].split(".")[0] != "daskbatch")


def private_uses(path: Path, own: set[str]) -> Iterator[str]:
    """Yield the private names of others that a file uses, as far as the text tells.

    An attribute counts if its object comes from an import, or if daskbatch defines no such name.
    """
    tree = parsed(path)
    imported = dict(foreign(tree))
    for name in imported.values():
        yield from filter(is_private, name.split("."))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used = [(root(node.value), node.attr)]
        elif isinstance(node, ast.Call):
            used = [("", each.arg or "") for each in node.keywords]
            match node:
                case ast.Call(
                    ast.Name("getattr" | "setattr" | "hasattr" | "delattr"),
                    [of, ast.Constant(str(name)), *_],
                ):
                    used.append((root(of), name))
        else:
            continue
        for origin, name in used:
            if is_private(name) and (origin in imported or name not in own):
                yield name


def test_no_other_private_name_is_used() -> None:
    own = own_names()
    table = {(use.written, use.file) for use in NAMES}
    found = {
        (name, path.relative_to(PACKAGE).as_posix())
        for path in PACKAGE.rglob("*.py")
        for name in private_uses(path, own)
        if name not in DOCUMENTED
    }
    assert found <= table, "add lines to NAMES, or do without these"
    # Otherwise the search itself would be broken.
    assert len(found) > 20

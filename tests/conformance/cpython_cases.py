"""Runs CPython's own tests of executors with a `BatchPoolExecutor`.

Workers import this module, because functions of test cases are pickled by name; so it is not a
test file itself. The tests are those of the running Python or, if it has none, the copies in
`cpython/`. No test is changed. Three names in their modules are replaced: `BrokenProcessPool` is
its base `BrokenExecutor`; programs find our executor among those of `concurrent.futures`; and
`FutureTests` uses our futures.
"""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
import unittest
from concurrent.futures import BrokenExecutor
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, RUNNING
from pathlib import Path
from typing import Any
from unittest import mock

from conformance.cpython_path import HERE

from daskbatch import BatchPoolExecutor
from daskbatch.dispatch.task_record import Phase
from daskbatch.executor.future import BatchPoolFuture

from test.test_concurrent_futures import (  # isort: skip - after cpython_path
    executor,
    test_as_completed,
    test_deadlock,
    test_future,
    test_init,
    test_process_pool,
    test_shutdown,
    test_wait,
    util,
)

COPY = HERE / "cpython" / "test" / "test_concurrent_futures"

#: What is read for tests, to know that none is forgotten.
MODULES = [
    executor,
    test_as_completed,
    test_deadlock,
    test_future,
    test_init,
    test_process_pool,
    test_shutdown,
    test_wait,
]

#: Where they are.
DIRECTORY = Path(util.__file__).parent

#: Modules with tests of other executors alone.
OTHER_MODULES = {"test_thread_pool", "test_interpreter_pool", "test_pool"}

_PROCESSES = "looks at the processes, queues and threads that a ProcessPoolExecutor has"
_THREADS = "looks at the threads of a ThreadPoolExecutor"
_PER_CHILD = "max_tasks_per_child: workers here do not end after so many calls"

#: Every test that is not run, and why.
NOT_RUN = {
    "ProcessPoolExecutorTest.test_max_workers_too_large": "a limit of Windows",
    "ProcessPoolExecutorTest.test_killed_child": _PROCESSES,
    "ProcessPoolExecutorTest.test_ressources_gced_in_workers": (
        "passes a proxy of a multiprocessing Manager, which only the Manager's children can use"
    ),
    "ProcessPoolExecutorTest.test_saturation": _PROCESSES,
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": _PROCESSES,
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": _PROCESSES,
    "ProcessPoolExecutorTest.test_max_tasks_per_child": _PER_CHILD,
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": _PER_CHILD,
    "ProcessPoolExecutorTest.test_max_tasks_early_shutdown": _PER_CHILD,
    "ProcessPoolExecutorTest.test_python_finalization_error": _PROCESSES,
    "ThreadPoolWaitTests.test_pending_calls_race": "the calls share an Event of this process",
    "ThreadPoolShutdownTest.test_threads_terminate": _THREADS,
    "ThreadPoolShutdownTest.test_context_manager_shutdown": _THREADS,
    "ThreadPoolShutdownTest.test_del_shutdown": _THREADS,
    "ThreadPoolShutdownTest.test_shutdown_no_wait": _THREADS,
    "ThreadPoolShutdownTest.test_thread_names_assigned": _THREADS,
    "ThreadPoolShutdownTest.test_thread_names_default": _THREADS,
    "ThreadPoolShutdownTest.test_cancel_futures_wait_false": (
        "makes a ThreadPoolExecutor by name; test_executor_exit.py has the same of ours"
    ),
    "ProcessPoolShutdownTest.test_processes_terminate": _PROCESSES,
    "ProcessPoolShutdownTest.test_context_manager_shutdown": _PROCESSES,
    "ProcessPoolShutdownTest.test_del_shutdown": _PROCESSES,
    "ProcessPoolShutdownTest.test_shutdown_no_wait": _PROCESSES,
    "FailingInitializerResourcesTest.test_spawn": "the resource tracker of multiprocessing",
    "FailingInitializerResourcesTest.test_forkserver": "the resource tracker of multiprocessing",
    "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": _PROCESSES,
    "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _PROCESSES,
}

#: The same for tests of these classes that another version of Python may add.
NOT_RUN_OF = {
    "ProcessPoolExecutorTest": _PROCESSES,
    "ProcessPoolShutdownTest": _PROCESSES,
    "ThreadPoolWaitTests": _THREADS,
    "ThreadPoolShutdownTest": _THREADS,
    "FailingInitializerResourcesTest": _PROCESSES,
}

#: Of a class that is about a ProcessPoolExecutor, what is about any executor.
OF_PROCESS_POOL = {"test_map_chunksize", "test_traceback"}


class SharedExecutor(BatchPoolExecutor):
    """An executor on the cluster that the tests share, unless a test needs workers for itself."""

    cluster: str | None = None

    def __init__(
        self, max_workers: int | None = None, mp_context: None = None, **options: Any
    ) -> None:
        shared = None if "initializer" in options else self.cluster
        super().__init__(cluster=shared, max_workers=max_workers, **options)


class EchoingExecutor(SharedExecutor):
    """Prints what its calls print, as a pool of child processes does."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(_echo)
        return future


def _echo(future: Any) -> None:
    sys.stdout.write(future.task.stdout.get())
    sys.stdout.flush()


_ONE_OF_OURS = """\
import concurrent.futures
from conformance import cpython_cases
concurrent.futures.SharedExecutor = cpython_cases.EchoingExecutor
del concurrent, cpython_cases
"""


def assert_python_ok(option: str, program: str) -> tuple[int, bytes, bytes]:
    """Run a program with our executor; return its exit code and its output."""
    path = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    assert SharedExecutor.cluster is not None
    run = subprocess.run(
        [sys.executable, option, _ONE_OF_OURS + program],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "DASKBATCH_CLUSTER": SharedExecutor.cluster,
        },
        capture_output=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.returncode, run.stdout, run.stderr


for module in (test_deadlock, test_process_pool):
    module.BrokenProcessPool = BrokenExecutor
test_shutdown.assert_python_ok = assert_python_ok


class Shared(util.ExecutorMixin):
    """Makes a new executor for each test."""

    executor_type = SharedExecutor

    def get_context(self) -> None:
        """Return the start method of processes: our executor has only one."""


class ExecutorTest(Shared, executor.ExecutorTest, unittest.TestCase):
    pass


class ProcessPoolExecutorTest(Shared, test_process_pool.ProcessPoolExecutorTest, unittest.TestCase):
    pass


class WaitTest(Shared, test_wait.WaitTests, unittest.TestCase):
    pass


class AsCompletedTest(Shared, test_as_completed.AsCompletedTests, unittest.TestCase):
    pass


class ShutdownTest(Shared, test_shutdown.ExecutorShutdownTest, unittest.TestCase):
    pass


class InitializerTest(test_init.InitializerMixin, Shared, unittest.TestCase):
    pass


class FailingInitializerTest(test_init.FailingInitializerMixin, Shared, unittest.TestCase):
    pass


class DeadlockTest(Shared, test_deadlock.ExecutorDeadlockTest, unittest.TestCase):
    TIMEOUT = 60


class Future(BatchPoolFuture):
    """A future of a call that no worker has; the call's phase follows the future's state."""

    def __init__(self) -> None:
        # An owner that can cancel the call, and accepts all other calls.
        super().__init__(owner=mock.Mock(cancel=lambda records: records), record=self)

    @property
    def phase(self) -> Phase:
        return Phase.RUNNING if self._state == RUNNING else Phase.WAITING


class FutureTest(test_future.FutureTests):
    """CPython's tests of futures, with futures of our executor."""

    def setUp(self) -> None:
        # What no logger's handler hears goes to stderr, where it is looked for; pytest hears all.
        self.enterContext(mock.patch.object(logging.getLogger(), "handlers", []))
        self.enterContext(mock.patch.object(util, "Future", Future))
        self.enterContext(mock.patch.object(test_future, "Future", Future))
        for name, state in {
            "PENDING": {},
            "RUNNING": {"state": RUNNING},
            "CANCELLED": {"state": CANCELLED},
            "CANCELLED_AND_NOTIFIED": {"state": CANCELLED_AND_NOTIFIED},
            "EXCEPTION": {"state": FINISHED, "exception": OSError()},
            "SUCCESSFUL": {"state": FINISHED, "result": 42},
        }.items():
            future = util.create_future(**state)
            self.enterContext(mock.patch.object(test_future, f"{name}_FUTURE", future))

    def tearDown(self) -> None:
        """Do not wait for the threads and child processes of this process."""


CASES = [
    ExecutorTest,
    ProcessPoolExecutorTest,
    WaitTest,
    AsCompletedTest,
    ShutdownTest,
    InitializerTest,
    FailingInitializerTest,
    DeadlockTest,
    FutureTest,
]


def _home(case: type, name: str) -> str:
    """Return the name of the class that defines a test."""
    return next(f"{each.__name__}.{name}" for each in case.__mro__ if name in vars(each))


def why_not(test: str) -> str | None:
    """Return why a test, `Class.name`, is not run; None if it is run."""
    kind, name = test.split(".")
    if kind == "ProcessPoolExecutorTest" and name in OF_PROCESS_POOL:
        return None
    return NOT_RUN.get(test, NOT_RUN_OF.get(kind))


def written(directory: Path) -> set[str]:
    """Return all tests that CPython's modules define, as `Class.name`."""
    return {
        f"{each.name}.{part.name}"
        for module in MODULES
        for each in ast.parse((directory / Path(module.__file__).name).read_text("utf-8")).body
        if isinstance(each, ast.ClassDef)
        for part in each.body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")
    }


def run() -> list[str]:
    """Return the tests that pytest finds in our cases, with the classes that define them."""
    loader = unittest.TestLoader()
    return [_home(case, name) for case in CASES for name in loader.getTestCaseNames(case)]


# What is not to run must not be found.
for case in CASES:
    for name in unittest.TestLoader().getTestCaseNames(case):
        if why_not(_home(case, name)) is not None or (
            # ... nor run a second time.
            case is ProcessPoolExecutorTest and name not in OF_PROCESS_POOL
        ):
            setattr(case, name, None)

"""Calls an initializer once in each process, before the first function of a Batch or executor.

What the initializer sets for its thread alone, as the context of `decimal` or NumPy's error
handling, holds in all threads and contexts that call the functions.

Safe for any number of threads: the first one calls the initializer, and the others wait. If it
has raised, each call raises `InitializerFailed`.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable
from typing import Any

from daskbatch.errors import ServiceLost
from daskbatch.serialization import mirror, namespaces, pickling
from daskbatch.serialization.safe_text import summary
from daskbatch.worker.execution.interrupt import Stopped


class InitializerFailed(ServiceLost):
    """An initializer has raised: no function of its Batch or executor can be called."""


class _Initialization:
    """Whether this process has been initialized for the functions of one Batch or executor.

    Safe for any number of threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done = False
        self._failure: BaseException | None = None
        #: The context variables that the initializer has set.
        self._variables: list[tuple[contextvars.ContextVar[Any], Any]] = []

    def ensure(self, setup: bytes) -> None:
        """Call the initializer, unless it has been called."""
        with self._lock:
            if not self.done and self._failure is None:
                try:
                    initializer, initargs = pickling.loads(setup)
                    before = contextvars.copy_context()
                    context = _separate(before)
                    context.run(initializer, *initargs)
                    self._variables = [
                        (variable, value)
                        for variable, value in context.items()
                        if before.get(variable) is not value
                    ]
                    self.done = True
                    for function in after_initializer:
                        function()
                except Stopped:
                    raise  # the task was stopped; the initializer has not failed
                except BaseException as error:
                    self._failure = error
        if self._failure is not None:
            failed = InitializerFailed(f"the initializer failed: {summary(self._failure)}")
            raise failed from self._failure

    def enter_thread(self) -> None:
        """Set in this thread what the initializer has set in its own."""
        if self._variables and _entered.get() is not self:
            for variable, value in self._variables:
                # The context of `decimal` may be changed in place, so each thread has its own.
                variable.set(value.copy() if _is_decimal_context(value) else value)
            _entered.set(self)


def _is_decimal_context(value: object) -> bool:
    decimal = sys.modules.get("decimal")  # few tasks need it
    return decimal is not None and isinstance(value, decimal.Context)


def _separate(context: contextvars.Context) -> contextvars.Context:
    """Return a copy of a context in which nothing can be changed that the context has."""
    made = contextvars.Context()
    for variable, value in context.items():
        if not _is_decimal_context(value):
            made.run(variable.set, value)
    return made


#: What has set its variables in the current context. Dask calls each task in a new context.
_entered: contextvars.ContextVar[_Initialization | None] = contextvars.ContextVar(
    "daskbatch-initialized", default=None
)

#: Called when an initializer has set what later tasks are to find.
after_initializer: list[Callable[[], object]] = []

#: By Batch or executor.
_initializations: dict[str, _Initialization] = {}


class InitializedFunction:
    """A function that calls an initializer before its first call in a process.

    Safe for any number of threads: the first calls the initializer, and the others wait.

    Parameters
    ----------
    executor : str
        The executor whose function it is; also the namespace of its functions, see
        `daskbatch.serialization.namespaces`.
    setup : bytes
        The initializer and the tuple of its arguments, pickled.
    function : callable
        The function itself.
    """

    def __init__(self, executor: str, setup: bytes, function: Callable[..., Any]) -> None:
        self._initialization = _initializations.setdefault(executor, _Initialization())
        self._setup = setup
        self.function = function

    def initialize(self) -> None:
        """Call the initializer, unless it has been called."""
        if not self._initialization.done:
            self._initialization.ensure(self._setup)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.initialize()
        self._initialization.enter_thread()
        return self.function(*args, **kwargs)


def forget(executor: str) -> None:
    """Release what a client has in this process, since the client has ended."""
    _initializations.pop(executor, None)
    namespaces.forget(executor)
    mirror.forget(executor)

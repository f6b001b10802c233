"""Calls an executor's initializer once in each process, before the executor's first function.

Safe for any number of threads: the first one calls the initializer, and the others wait. If it
has raised, each call raises `InitializerFailed`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from daskbatch.errors import ServiceLost
from daskbatch.serialization import namespaces, pickling
from daskbatch.serialization.safe_text import summary
from daskbatch.worker.execution.interrupt import Stopped


class InitializerFailed(ServiceLost):
    """An executor's initializer has raised: none of its calls can be run."""


class _Initialization:
    """Whether this process has been initialized for the functions of one executor.

    Safe for any number of threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done = False
        self._failure: BaseException | None = None

    def ensure(self, setup: bytes) -> None:
        """Call the initializer, unless it has been called."""
        with self._lock:
            if not self.done and self._failure is None:
                try:
                    initializer, initargs = pickling.loads(setup)
                    initializer(*initargs)
                    self.done = True
                    for function in after_initializer:
                        function()
                except Stopped:
                    raise  # the task was stopped; the initializer has not failed
                except BaseException as error:
                    self._failure = error
        if self._failure is not None:
            cause = summary(self._failure)
            failed = InitializerFailed(f"the executor's initializer failed: {cause}")
            raise failed from self._failure


#: Called when an initializer has set what later tasks are to find.
after_initializer: list[Callable[[], object]] = []

#: By executor.
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._initialization.done:
            self._initialization.ensure(self._setup)
        return self.function(*args, **kwargs)


def forget(executor: str) -> None:
    """Release the state that an executor has in this process, since the executor has ended."""
    _initializations.pop(executor, None)
    namespaces.forget(executor)

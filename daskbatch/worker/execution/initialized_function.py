"""Prepares a process for the calls of an executor: its initializer, once in each process.

Does not know executors, nor Dask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from daskbatch.errors import ServiceLost
from daskbatch.serialization import namespaces, pickling
from daskbatch.serialization.exceptions import safe_str
from daskbatch.worker.execution.interrupt import Stopped


class InitializerFailed(ServiceLost):
    """An executor's initializer has raised: no call can be run."""


class _Process:
    """Whether this process has been prepared for the calls of one executor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ready = False
        self._failure: BaseException | None = None

    def prepare(self, setup: bytes) -> None:
        """Call the initializer, if that has not been done."""
        with self._lock:
            if not self.ready and self._failure is None:
                try:
                    initializer, initargs = pickling.loads(setup)
                    initializer(*initargs)
                    self.ready = True
                except Stopped:
                    raise  # the call was, for which it was to be
                except BaseException as error:
                    self._failure = error
        if self._failure is not None:
            said = f"{type(self._failure).__name__}: {safe_str(self._failure)}"
            failed = InitializerFailed(f"the executor's initializer failed: {said}")
            raise failed from self._failure


#: By the executor.
_prepared: dict[str, _Process] = {}


class InitializedFunction:
    """A function before whose first call in a process an initializer is called.

    Parameters
    ----------
    executor : str
        Whose function it is: its initializer runs once in each process. The space of its
        functions, see `daskbatch.serialization.namespaces`.
    setup : bytes
        The initializer and the tuple of its arguments, pickled.
    function : callable
        The function itself.
    """

    def __init__(self, executor: str, setup: bytes, function: Callable[..., Any]) -> None:
        self._process = _prepared.setdefault(executor, _Process())
        self._setup = setup
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._process.ready:
            self._process.prepare(self._setup)
        return self.function(*args, **kwargs)


def forget(executor: str) -> None:
    """Let go of what an executor has in this process: it has ended."""
    _prepared.pop(executor, None)
    namespaces.forget(executor)

"""Prepares a process for the calls of an executor: its initializer, once in each process.

Does not know executors, nor Dask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from daskbatch.errors import ServiceLost
from daskbatch.worker.outcome import safe_str


class InitializerFailed(ServiceLost):
    """An executor's initializer has raised: no call can be run."""


#: Executors whose initializer has run in this process, and how it failed, if it did.
_prepared: dict[str, BaseException | None] = {}
_preparing = threading.Lock()


class Prepared:
    """A function before whose first call in a process an initializer is called.

    Parameters
    ----------
    key : str
        The executor: its initializer runs once in each process.
    initializer : callable
        What prepares a process.
    initargs : tuple
        Its arguments.
    function : callable
        The function itself.
    """

    def __init__(
        self,
        key: str,
        initializer: Callable[..., Any],
        initargs: tuple[Any, ...],
        function: Callable[..., Any],
    ) -> None:
        self.key = key
        self.initializer = initializer
        self.initargs = initargs
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._prepare()
        return self.function(*args, **kwargs)

    def _prepare(self) -> None:
        with _preparing:
            if self.key not in _prepared:
                _prepared[self.key] = None
                try:
                    self.initializer(*self.initargs)
                except BaseException as error:
                    _prepared[self.key] = error
        failure = _prepared[self.key]
        if failure is not None:
            said = f"{type(failure).__name__}: {safe_str(failure)}"
            raise InitializerFailed(f"the executor's initializer failed: {said}") from failure

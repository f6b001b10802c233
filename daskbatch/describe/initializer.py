"""What each process does before the first call of an executor: its initializer.

Does not know how its arguments get there, nor when it is called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from daskbatch.serialization import pickling


class Initializer:
    """An initializer and its arguments, pickled once.

    Parameters
    ----------
    space : str
        Where the functions of the executor have their globals; see `serialization.namespaces`.
    initializer : callable
        What prepares a process.
    initargs : tuple
        Its arguments.
    """

    def __init__(
        self, space: str, initializer: Callable[..., Any], initargs: tuple[Any, ...]
    ) -> None:
        self.space = space
        #: What keeps it on the cluster, if it is large: it is sent once.
        self.held: Any = None
        self._call = initializer, initargs
        self._packed: bytes | pickling.Buffer | None = None
        self._packing = threading.Lock()

    def packed(self) -> bytes | pickling.Buffer:
        """Give both, pickled; as a buffer, if they are large."""
        with self._packing:
            if self._packed is None:
                with pickling.within(self.space):
                    data = pickling.dumps(self._call)
                large = len(data) >= pickling.SHARED_BUFFER
                self._packed = pickling.make_buffer(data) if large else data
            return self._packed

    def dumps(self, function: Callable[..., Any]) -> bytes:
        """Pickle a function of the executor."""
        self.packed()  # what cannot be prepared for cannot be called
        with pickling.within(self.space):
            return pickling.dumps(function)

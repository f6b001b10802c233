"""The initializer of a Batch or executor: each process calls it once, before the first function.

Any number of threads may use an `Initializer`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from daskbatch.serialization import pickling
from daskbatch.serialization.buffers import Buffer, make_buffer


class Initializer:
    """An initializer and its arguments, pickled once.

    Parameters
    ----------
    namespace : str
        The name of the namespace that holds the globals of the Batch's functions in each
        process; see `daskbatch.serialization.namespaces`.
    initializer : callable
        The function that each process calls once.
    initargs : tuple
        The arguments of `initializer`.
    """

    def __init__(
        self, namespace: str, initializer: Callable[..., Any], initargs: tuple[Any, ...]
    ) -> None:
        self.namespace = namespace
        #: If the pickle is large, the client sends it to the cluster once; this reference keeps
        #: it there. The placer sets it.
        self.held: Any = None
        #: The function and its arguments.
        self.call = initializer, initargs
        self._packed: bytes | Buffer | None = None
        self._packing = threading.Lock()

    def packed(self) -> bytes | Buffer:
        """Return the pickled pair of function and arguments, as a buffer if it is large."""
        with self._packing:
            if self._packed is None:
                with pickling.within(self.namespace):
                    data = pickling.dumps(self.call)
                large = len(data) >= pickling.MIN_SHARED_BUFFER_BYTES
                self._packed = make_buffer(data) if large else data
            return self._packed

    def dumps(self, function: Callable[..., Any]) -> bytes:
        """Pickle a function of the Batch; raises if the initializer cannot be pickled."""
        self.packed()  # a function cannot run in a process without the initializer
        with pickling.within(self.namespace):
            return pickling.dumps(function)

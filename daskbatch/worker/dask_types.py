"""Tells Dask how large a stored value is, and how it goes to another worker or to disk.

A `StoredValue` is a subclass of `bytes`. Dask would measure, send and spill its bytes alone, and
these are only a reference: nothing would hold the memory that it refers to, and a worker of another
host could not read it. The results of blocks are pickled; so is a large argument now, which is the
value of a Dask key where workers do not map the client's memory. Any thread may call.
"""

from __future__ import annotations

from typing import NoReturn

from dask.sizeof import sizeof
from distributed.protocol import dask_serialize

from daskbatch.serialization.stored_value import StoredValue


def register_stored_values() -> None:
    """Have Dask pickle stored values in this process, and count the memory that they take.

    Examples
    --------
    >>> from distributed.protocol import serialize
    >>> register_stored_values()
    >>> serialize(StoredValue(b""))[0]["serializer"]
    'pickle'
    """
    sizeof.register(StoredValue, StoredValue.__sizeof__)
    dask_serialize.register(StoredValue, _leave_to_pickle)


def _leave_to_pickle(value: StoredValue) -> NoReturn:
    raise NotImplementedError  # Dask tries its next way, which is pickle

"""Pickles by value, as cloudpickle does, but code keeps its file name and its source lines.

From version 3.1.3 on, cloudpickle writes ``<dynamic-code>`` in place of the file name of every code
object, so that equal functions make equal pickles. Then a traceback on a worker cannot show the
lines of the user's script. The picklers of this package put the file name back.

Any number of threads may use this module, each with its own `Pickler`.
"""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any

import cloudpickle

from daskbatch.serialization.sources import make_code, source_of

_reduce_without_file: Callable[[CodeType], Any] = cloudpickle.Pickler.dispatch_table[CodeType]


def _find_file_name_position() -> int | None:
    """Return the position of the argument that cloudpickle replaces by ``<dynamic-code>``."""
    _, arguments, *_ = _reduce_without_file(compile("", "<a file>", "exec"))
    return arguments.index("<dynamic-code>") if "<dynamic-code>" in arguments else None


#: The position of the file name among the arguments of a reduced code object; None if cloudpickle
#: keeps the file name, as up to 3.1.2.
_FILE_NAME_POSITION = _find_file_name_position()


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    make, arguments, *more = _reduce_without_file(code)
    if _FILE_NAME_POSITION is not None:
        before, after = arguments[:_FILE_NAME_POSITION], arguments[_FILE_NAME_POSITION + 1 :]
        arguments = (*before, code.co_filename, *after)
    source = source_of(code)
    if source is None:
        return make, arguments, *more
    return make_code, (make, arguments, *source), *more


def _make_dispatch_table() -> ChainMap[Any, Any]:
    own, *others = cloudpickle.Pickler.dispatch_table.maps
    # A copy, not one more table in the chain: a lookup that fails in each table of the chain is
    # the larger part of the time to pickle a small object.
    return ChainMap({**own, CodeType: _reduce_code}, *others)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what other processes cannot import; see `pickle.Pickler`.

    Reducers that are registered with `copyreg` are used; reducers that are added to cloudpickle's
    own table after the import of this module are not.
    """

    dispatch_table = _make_dispatch_table()


def dumps(
    obj: object,
    protocol: int,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
) -> bytes:
    """Pickle an object by value where necessary; see `pickle.dumps`."""
    with io.BytesIO() as file:
        Pickler(file, protocol, buffer_callback).dump(obj)
        return file.getvalue()

"""Has NumPy place the large arrays that a thread makes in the arena of this process.

NumPy lets a program choose the functions by which it allocates the memory of arrays, for each
context (https://numpy.org/doc/stable/reference/c-api/data_memory.html, NEP 49). Each array keeps
the ones that it was made with, and is freed by them. These ones take memory from a *pool* that was
filled before (`array_functions`), and all else from NumPy's own functions. Any thread may call.
"""

from __future__ import annotations

import contextvars
import ctypes
import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from daskbatch.forking import after_fork
from daskbatch.memory import array_functions, array_ranges
from daskbatch.memory.array_functions import MAX_SLOTS, Pool
from daskbatch.memory.array_ranges import ArrayRange
from daskbatch.memory.kept_mappings import MIN_KEPT_BYTES

#: Where NumPy's table of C functions has the two that are needed here (`numpy_api.py` in its
#: source). It does not change them within a major version.
_SET_HANDLER, _GET_HANDLER = 304, 305


class _Interface(NamedTuple):
    """What chooses the functions of a thread."""

    set_handler: Callable[[Any], Any]
    get_handler: Callable[[], Any]
    default: Any


class Placing(NamedTuple):
    """A call of `begin` that has not ended.

    Parameters
    ----------
    pool : Pool
        The slots that this thread may use.
    handler : object
        What NumPy has been given.
    ranges : list of ArrayRange
        The memory of the slots.
    """

    pool: Pool
    handler: Any
    ranges: list[ArrayRange]


class Placed(NamedTuple):
    """What arrays have needed.

    Parameters
    ----------
    used : tuple of bool
        Which of the expected arrays were made; those at the end are missing if there was no memory.
    missed : tuple of int
        The sizes of arrays that were not expected, in bytes.
    """

    used: tuple[bool, ...]
    missed: tuple[int, ...]


#: Pools that no thread uses now, and all that were made. Using them needs no lock.
_unused: list[tuple[Pool, Any]] = []
_pools: list[Pool] = []


def begin(sizes: Sequence[int]) -> Placing | None:
    """Place the large arrays that this thread makes in the arena, until it calls `end`.

    Parameters
    ----------
    sizes : sequence of int
        The sizes of the arrays that are expected, in bytes.

    Returns
    -------
    Placing or None
        None if that is not possible here, or if the thread has chosen functions of its own.
    """
    interface = _interface()
    if interface is None or interface.get_handler() is not interface.default:
        return None
    try:
        pool, handler = _unused.pop()
    except IndexError:
        pool, handler = _new_pool(interface)
    array_ranges.collect()
    ranges: list[ArrayRange] = []
    for size in sizes[:MAX_SLOTS]:
        found = array_ranges.reserve(size)
        if found is None:
            break
        pool.slots[len(ranges)] = ctypes.addressof(found.slot)
        ranges.append(found)
    pool.missed_count = 0
    pool.count = len(ranges)
    interface.set_handler(handler)
    return Placing(pool, handler, ranges)


def end(placing: Placing) -> Placed:
    """Have this thread allocate all arrays as usual; return what they have needed."""
    interface = _interface()
    pool, handler, ranges = placing
    if interface is not None and interface.get_handler() is handler:
        interface.set_handler(interface.default)
    pool.count = 0
    placed = Placed(
        tuple(bool(each.slot.was_used) for each in ranges),
        tuple(pool.missed[: pool.missed_count]),
    )
    array_ranges.leave_pool(ranges)
    _unused.append((pool, handler))
    return placed


def _new_pool(interface: _Interface) -> tuple[Pool, Any]:
    pool, handler = array_functions.own_handler(interface.default, MIN_KEPT_BYTES)
    _pools.append(pool)
    return pool, handler


@lru_cache(maxsize=1)
def _interface() -> _Interface | None:
    """Return what chooses the functions of a thread; None if NumPy cannot use these here."""
    try:
        # The module that every extension takes the table from; it has no public name.
        module: Any = importlib.import_module("numpy._core._multiarray_umath")
        places = (_SET_HANDLER, _GET_HANDLER)
        set_handler, get_handler = array_functions.handler_functions(module._ARRAY_API, places)
        default = contextvars.Context().run(get_handler)
        interface = _Interface(set_handler, get_handler, default)
        contextvars.Context().run(_try, interface)
    except Exception:
        return None  # another machine, or a NumPy that is made in another way
    return interface


def _try(interface: _Interface) -> None:
    """Make an array; raise an exception unless NumPy has called the functions."""
    import numpy as np

    pool, handler = _new_pool(interface)
    interface.set_handler(handler)
    np.empty(MIN_KEPT_BYTES, np.uint8)
    if pool.missed_count != 1 or pool.missed[0] != MIN_KEPT_BYTES:
        raise OSError("NumPy calls other functions")
    _unused.append((pool, handler))


@after_fork
def _empty_pools() -> None:
    """Have the child make its arrays as usual: it does not have the memory of the slots."""
    for pool in _pools:
        pool.count = 0

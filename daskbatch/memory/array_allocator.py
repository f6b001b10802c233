"""Has NumPy place the large arrays that a thread makes in the arena of this process.

NumPy lets a program choose the functions by which it allocates the memory of arrays, for each
context (https://numpy.org/doc/stable/reference/c-api/data_memory.html, NEP 49). Each array keeps
the ones that it was made with, and is freed by them. Here they are functions in Python, which take
about a microsecond for each array. So a thread uses them for one call at a time, and only until it
has made a certain number of small arrays. Any thread may call.
"""

from __future__ import annotations

import contextvars
import ctypes
import importlib
import sys
from collections.abc import Callable
from functools import lru_cache
from threading import get_ident
from typing import Any, NamedTuple

from daskbatch.memory import array_ranges
from daskbatch.memory.kept_mappings import MIN_KEPT_BYTES
from daskbatch.memory.libc import libc

#: The name that NumPy shows for these functions.
NAME = "daskbatch"

#: How many smaller arrays a call may make until it goes on with NumPy's own functions.
_MAX_SMALL_ARRAYS = 200

#: Where NumPy's table of C functions has the two that are needed here (`numpy_api.py` in its
#: source). It does not change them within a major version.
_SET_HANDLER, _GET_HANDLER = 304, 305

#: What NumPy calls the objects that hold such functions.
_CAPSULE_NAME = b"mem_handler"

_Pointer, _Size = ctypes.c_void_p, ctypes.c_size_t
_Allocate = ctypes.PYFUNCTYPE(_Pointer, _Pointer, _Size)
_AllocateZeros = ctypes.PYFUNCTYPE(_Pointer, _Pointer, _Size, _Size)
_Reallocate = ctypes.PYFUNCTYPE(_Pointer, _Pointer, _Pointer, _Size)
_Free = ctypes.PYFUNCTYPE(None, _Pointer, _Pointer, _Size)


class _Handler(ctypes.Structure):
    """`PyDataMem_Handler` of NumPy's C interface."""

    _fields_ = [
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", _Pointer),
        ("allocate", _Allocate),
        ("allocate_zeros", _AllocateZeros),
        ("reallocate", _Reallocate),
        ("free", _Free),
    ]


class _Installed(NamedTuple):
    """What is needed to choose the functions of a thread."""

    set_handler: Callable[[Any], Any]
    get_handler: Callable[[], Any]
    own: Any
    default: Any


class _Allowance:
    """What the running call of a thread may do."""

    __slots__ = ("largest", "small")

    def __init__(self, largest: int) -> None:
        #: The largest array that is placed in the arena. Bytes.
        self.largest = largest
        #: How many more small arrays it may make.
        self.small = _MAX_SMALL_ARRAYS


#: By thread. Using it needs no lock.
_allowances: dict[int, _Allowance] = {}


def begin(largest: int) -> bool:
    """Place the large arrays that this thread makes in the arena, until it calls `end`.

    Parameters
    ----------
    largest : int
        The size of the largest of them, in bytes.

    Returns
    -------
    bool
        False if that is not possible here, or if the thread has chosen functions of its own.
    """
    installed = _install()
    if installed is None or installed.get_handler() is not installed.default:
        return False
    _allowances[get_ident()] = _Allowance(largest)
    installed.set_handler(installed.own)
    return True


def end() -> None:
    """Have this thread allocate all arrays as usual."""
    _allowances.pop(get_ident(), None)
    installed = _install()
    if installed is not None and installed.get_handler() is installed.own:
        installed.set_handler(installed.default)


def _function(kind: Any, name: str) -> Any:
    """Return a function of the C library that is called without releasing the interpreter."""
    return kind((name, ctypes.CDLL(None)))


@lru_cache(maxsize=1)
def _install() -> _Installed | None:
    """Make the functions; None if NumPy cannot use them."""
    try:
        installed = _make()
        if contextvars.Context().run(_works, installed):
            return installed
    except Exception:
        pass  # a NumPy that is made in another way
    return None


def _make() -> _Installed:
    # The module that every extension takes the table from; it has no public name.
    interface: Any = importlib.import_module("numpy._core._multiarray_umath")
    get_pointer = ctypes.PYFUNCTYPE(_Pointer, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    make_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, _Pointer, ctypes.c_char_p, _Pointer)(
        ("PyCapsule_New", ctypes.pythonapi)
    )
    table = ctypes.cast(get_pointer(interface._ARRAY_API, None), ctypes.POINTER(_Pointer))
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[_SET_HANDLER])
    get_handler = ctypes.PYFUNCTYPE(ctypes.py_object)(table[_GET_HANDLER])
    default = contextvars.Context().run(get_handler)
    handler = _make_handler(lambda: set_handler(default))
    own = make_capsule(ctypes.addressof(handler), _CAPSULE_NAME, None)
    # Arrays may exist as long as the process does, and are freed by these functions.
    for each in (handler, own):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
    return _Installed(set_handler, get_handler, own, default)


def _works(installed: _Installed) -> bool:
    """Make an array; return whether NumPy has called the functions."""
    import numpy as np

    thread = get_ident()
    _allowances[thread] = allowance = _Allowance(0)
    try:
        installed.set_handler(installed.own)
        np.empty(3)
    finally:
        del _allowances[thread]
    return allowance.small < _MAX_SMALL_ARRAYS


def _make_handler(use_default: Callable[[], object]) -> _Handler:
    """Make the functions that NumPy calls.

    What they use is bound here: arrays may be freed when the modules are empty already. An
    exception must not leave them.
    """
    malloc = _function(ctypes.PYFUNCTYPE(_Pointer, _Size), "malloc")
    calloc = _function(ctypes.PYFUNCTYPE(_Pointer, _Size, _Size), "calloc")
    realloc = _function(ctypes.PYFUNCTYPE(_Pointer, _Pointer, _Size), "realloc")
    release = _function(ctypes.PYFUNCTYPE(None, _Pointer), "free")
    allowances, thread_number, ends = _allowances, get_ident, sys.is_finalizing
    in_range, free_range, capacity = array_ranges.allocate, array_ranges.free, array_ranges.capacity
    smallest = MIN_KEPT_BYTES

    def find(size: int) -> int | None:
        allowed = allowances.get(thread_number())
        if allowed is None:
            return None
        if size < smallest:
            allowed.small -= 1
            if allowed.small <= 0:
                use_default()
            return None
        return in_range(size) if size <= allowed.largest else None

    def allocate(_: int | None, size: int) -> int | None:
        try:
            found = find(size)
        except Exception:
            found = None
        return malloc(size) if found is None else found

    def allocate_zeros(_: int | None, count: int, size: int) -> int | None:
        try:
            found = find(count * size)
            if found is not None:
                libc().memset(found, 0, count * size)
                return found
        except Exception:
            pass
        return calloc(count, size)  # type: ignore[no-any-return]

    def reallocate(_: int | None, address: int | None, size: int) -> int | None:
        most = None if address is None else capacity(address)
        if address is None or most is None:
            return realloc(address, size)  # type: ignore[no-any-return]
        if size <= most:
            return address
        moved: int | None = malloc(size)
        if moved is not None:
            ctypes.memmove(moved, address, most)
            free_range(address)
        return moved

    def free(_: int | None, address: int | None, _size: int) -> None:
        if ends():
            return
        if address is None or not free_range(address):
            release(address)

    return _Handler(
        NAME.encode(),
        1,
        None,
        _Allocate(allocate),
        _AllocateZeros(allocate_zeros),
        _Reallocate(reallocate),
        _Free(free),
    )

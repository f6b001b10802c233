"""Machine code by which NumPy allocates large arrays; its source is `array_functions.c`.

They must be machine code, and not functions in Python: NumPy frees arrays while an exception is
set, which a call of Python would lose, and no signal handler may run there. A package with a
compiler, or one for each kind of machine, would be a lot for 400 bytes. Where these bytes cannot
run, arrays are made as usual, and copied.

Call all functions while holding the interpreter's lock; NumPy calls the code from any thread.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from daskbatch.memory import machine_code

#: Made by the commands in `array_functions.c`, for x86-64 as Linux calls functions.
_CODE = bytes.fromhex(
    "31c9483b7738726848394f407e41488b54cf48488b42084839f0722e4989c049c1e8024c29c04839c6721fb8"
    "0100000041b802000000f04c0fb14210750c48c7421801000000488b02c348ffc1ebb9488b8748080000483d"
    "ff0000007f124889b4c75008000048ffc04889874808000031c0c34150e886ffffff4885c0750a488b470848"
    "8b3f59ffe05ac34989d34889f04989f249f7e37033564889c64989c1e85bffffff4889c24885c07510488b47"
    "104c89da488b3f4c89d659eb194889c74c89c931c0f3aa4889d05ac3488b4710488b3f4c89daffe04889f025"
    "ff0f00004883f8407526488b4728483946d8751c488b4730483946e07512488b46e84885c0740948c7401001"
    "000000c3488b4720488b3fffe04889f041544989f825ff0f000055534889f34883f840751d488b4728483946"
    "d87513488b4730483946e075094c8b66e84d85e475104889de498b40185b498b385d415cffe0498b6c240848"
    "89f04839d57323488b3f4889d641ff50084885c074144889c74889de4889e9f3a449c7442410010000005b5d"
    "415cc3"
)

#: Where the functions begin in it, in the order of NumPy's structure.
_STARTS = (115, 139, 277, 216)

#: The states of a slot.
READY, USED = 1, 2

#: As in the source.
MAX_SLOTS = 256
MARK_OFFSET, MARK_BYTES = 24, 16

#: The name that NumPy shows for these functions.
NAME = "daskbatch"

_CAPSULE_NAME = b"mem_handler"

_Word, _Number = ctypes.c_size_t, ctypes.c_long


class Slot(ctypes.Structure):
    """Memory for one array. It must exist as long as that memory is mapped."""

    address: int
    capacity: int
    state: int
    was_used: int

    _fields_ = [
        ("address", _Word),
        ("capacity", _Word),
        ("state", _Number),
        ("was_used", _Number),
    ]


class Pool(ctypes.Structure):
    """The slots that arrays may take, and the sizes of those for which there was none."""

    mark: Any
    smallest: int
    count: int
    slots: Any
    missed_count: int
    missed: Any

    _fields_ = [
        ("numpy", _Word * 5),
        ("mark", ctypes.c_char * MARK_BYTES),
        ("smallest", _Word),
        ("count", _Number),
        ("slots", _Word * MAX_SLOTS),
        ("missed_count", _Number),
        ("missed", _Word * MAX_SLOTS),
    ]


class _Handler(ctypes.Structure):
    """`PyDataMem_Handler` of NumPy's C interface."""

    context: int
    functions: Any

    _fields_ = [
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", _Word),
        ("functions", _Word * 4),
    ]


#: The first bytes before each array that has a slot: no other memory has them.
MARK = os.urandom(MARK_BYTES - 1) + b"\1"


@lru_cache(maxsize=1)
def _code_address() -> int:
    """Return where the code is. Raises OSError if this machine or system does not run it."""
    return machine_code.load(_CODE)


def _function(kind: Any, name: str) -> Any:
    return kind((name, ctypes.pythonapi))


def _pointer_in(capsule: Any, name: bytes | None) -> int:
    """Return the address that a capsule holds."""
    kind = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    address: int = _function(kind, "PyCapsule_GetPointer")(capsule, name)
    return address


def own_handler(default: Any, smallest: int) -> tuple[Pool, Any]:
    """Make a pool, and the object by which NumPy takes the memory of arrays from it.

    Neither is ever freed: arrays of it may exist as long as the process does.

    Parameters
    ----------
    default : object
        NumPy's own object of this kind.
    smallest : int
        Smaller arrays are made by NumPy's own functions. Bytes.

    Raises
    ------
    OSError
        The code cannot run here.
    """
    code = _code_address()
    make_capsule = _function(
        ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
        "PyCapsule_New",
    )
    given = _Handler.from_address(_pointer_in(default, _CAPSULE_NAME))
    pool = Pool()
    pool.numpy[:] = [given.context or 0, *given.functions]
    ctypes.memmove(ctypes.addressof(pool) + Pool.mark.offset, MARK, MARK_BYTES)
    pool.smallest = smallest
    handler = _Handler(name=NAME.encode(), version=1, context=ctypes.addressof(pool))
    handler.functions[:] = [code + start for start in _STARTS]
    capsule = make_capsule(ctypes.addressof(handler), _CAPSULE_NAME, None)
    for each in (pool, handler, capsule):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
    return pool, capsule


def handler_functions(table: Any, places: tuple[int, int]) -> tuple[Callable[..., Any], ...]:
    """Return NumPy's functions that set and get the object of this thread.

    Parameters
    ----------
    table : object
        The capsule with NumPy's C functions.
    places : (int, int)
        Where the two are in it.
    """
    functions = ctypes.cast(_pointer_in(table, None), ctypes.POINTER(ctypes.c_void_p))
    setter, getter = (functions[place] for place in places)
    return (
        ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(setter),
        ctypes.PYFUNCTYPE(ctypes.py_object)(getter),
    )

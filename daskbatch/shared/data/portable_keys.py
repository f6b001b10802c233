"""Pickles keys for programs that come later, which find their own classes of `__main__` in them.

Does not know where such a pickle is kept. By value, as keys travel, such a class is another one
in each program, and nothing that has it is equal to what a later program makes. So there are
two pickles: one says what the class is called in `__main__`, and is for programs that have one
of that name; the other is for all others.
"""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

from daskbatch.serialization import pickling


def dumps_for_later(key: object) -> bytes:
    """Pickle a key so that `pickle.loads` gives one that is equal to it in a later program.

    Raises
    ------
    Exception
        It cannot be pickled.
    """
    data = pickling.dumps(key)
    if type(key) in pickling.PLAIN or b"__main__" not in data:
        return data
    named = io.BytesIO()
    try:
        _Pickler(named, pickling.PROTOCOL).dump(key)
    except Exception:
        return data  # what is defined in a function has no name
    return pickling.dumps_plain(_Twofold(named.getvalue(), data))


class _Twofold:
    def __init__(self, named: bytes, data: bytes) -> None:
        self._both = named, data

    def __reduce__(self) -> tuple[Any, ...]:
        return _either, self._both


def _either(named: bytes, data: bytes) -> Any:
    """Make what a twofold pickle becomes."""
    try:
        return pickle.loads(named)
    except Exception:
        return pickle.loads(data)


class _Pickler(pickle.Pickler):
    """Has classes of `__main__` by their names."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, type) or obj.__module__ != "__main__":
            return NotImplemented
        name = obj.__qualname__
        # Here there may be none: it may be the program of another process, which this one works
        # for. But a notebook may have another one by now.
        found = _find(name)
        if "<" in name or not (found is None or found is obj):
            raise pickle.PicklingError(f"{obj!r} has no name in __main__")
        return _named, (name,)


def _named(name: str) -> Any:
    """Give what `__main__` has of a name."""
    found = _find(name)
    if found is None:
        raise AttributeError(f"__main__ has no {name}")
    return found


def _find(name: str) -> Any:
    found: Any = sys.modules["__main__"]
    for part in name.split("."):
        found = getattr(found, part, None)
    # Where a process was spawned, a copy of the program goes by its name.
    return found if getattr(found, "__module__", None) == "__main__" else None

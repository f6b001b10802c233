"""Pickles keys so that another program can find them.

A class of `__main__` that is pickled by value becomes a different class in each program, and its
instances compare unequal. Such a key is therefore stored twice: with its class by name, used where
`__main__` has that class, and by value, used elsewhere.

Saved files name `_either` and `_named` by this module's path. So the path and the two names must
never change, and `shared.byname` stays for the files of earlier versions. Any thread may call all
functions.
"""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import safe_repr


def dumps_for_later(key: object) -> bytes:
    """Pickle a key so that `pickle.loads` returns an equal one in a later program.

    Raises
    ------
    Exception
        The key cannot be pickled.
    """
    data = pickling.dumps(key)
    if type(key) in pickling.PLAIN or b"__main__" not in data:
        return data
    named = io.BytesIO()
    try:
        _Pickler(named, pickling.PROTOCOL).dump(key)
    except Exception:
        return data  # a class that was defined in a function has no name
    return pickling.dumps_plain(_StoredTwice(named.getvalue(), data))


class _StoredTwice:
    """A key that was pickled in both ways; it is pickled as a call of `_either`."""

    def __init__(self, named: bytes, data: bytes) -> None:
        self._both = named, data

    def __reduce__(self) -> tuple[Any, ...]:
        return _either, self._both


def _either(named: bytes, data: bytes) -> Any:
    """Return the key that was stored twice. Saved files name this function."""
    try:
        return pickle.loads(named)
    except Exception:
        return pickle.loads(data)


class _Pickler(pickle.Pickler):
    """Pickles classes of `__main__` by their names."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, type) or obj.__module__ != "__main__":
            return NotImplemented
        name = obj.__qualname__
        # This process's `__main__` may have no class of that name, if the class is that of another
        # process's program. In a notebook, the name may stand for another class now.
        found = _find(name)
        if "<" in name or not (found is None or found is obj):
            raise pickle.PicklingError(f"{safe_repr(obj)} has no name in __main__")
        return _named, (name,)


def _named(name: str) -> Any:
    """Return what `__main__` has under a name. Saved files name this function."""
    found = _find(name)
    if found is None:
        raise AttributeError(f"__main__ has no {name}")
    return found


def _find(name: str) -> Any:
    found: Any = sys.modules["__main__"]
    for part in name.split("."):
        found = getattr(found, part, None)
    # In a spawned process, `__main__` may be a copy of the program under its own module name.
    return found if getattr(found, "__module__", None) == "__main__" else None

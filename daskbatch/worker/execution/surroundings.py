"""Follows changes that the script makes to `sys.path` and `os.environ` after a cluster has started.

The client's `Surroundings` notices changes when it submits tasks; the blocks carry them, and
`apply` makes them in the processes that run the blocks. Any number of threads may use both.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from typing import Any


class Surroundings:
    """The search path and the environment of this process, compared with those at the start.

    Any number of threads may use it.
    """

    def __init__(self) -> None:
        self._path = list(sys.path)
        self._raw = _read_raw()
        self._environment = dict(os.environ)
        #: The names of variables that have changed at any time.
        self._changed: set[str] = set()
        self._found: bytes | None = None

    def changes(self) -> bytes | None:
        """Return what has changed since the start, for `apply`; None if nothing has."""
        raw = _read_raw()
        if raw == self._raw and sys.path == self._path:
            return self._found
        path, environment = list(sys.path), dict(os.environ)
        names = environment.keys() | self._environment.keys()
        before = self._environment
        self._changed |= {each for each in names if environment.get(each) != before.get(each)}
        self._path, self._raw, self._environment = path, raw, environment
        values = {name: environment.get(name) for name in sorted(self._changed)}
        entries = [os.fspath(each) for each in path if isinstance(each, (str, os.PathLike))]
        self._found = pickle.dumps((entries, values))
        return self._found


def _read_raw() -> dict[Any, Any]:
    # The encoded form: to compare it takes a fraction of the time that decoding takes.
    return dict(getattr(os.environ, "_data", os.environ))


#: What this process has applied last.
_applied: bytes | None = None


def apply(changes: bytes | None) -> bool:
    """Change the search path and the environment of this process as the script has changed its own.

    Parameters
    ----------
    changes : bytes, optional
        What `Surroundings.changes` has returned.

    Returns
    -------
    bool
        Whether something was applied that was not applied before.
    """
    global _applied
    if changes is None or changes == _applied:
        return False
    path, environment = pickle.loads(changes)
    sys.path[:] = [*path, *(each for each in sys.path if each not in path)]
    importlib.invalidate_caches()
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _applied = changes
    return True

"""Gives the processes that a task spawns by `multiprocessing` what the script's ``__main__`` has.

`multiprocessing` pickles functions and classes by name, and a process that is not forked would not
find there what a script defines. `install` has `multiprocessing` send it along. In the new process
the definitions become attributes of ``__main__``, and share its globals, so that the initializer of
a pool can set a global. Any thread may call `install`.
"""

from __future__ import annotations

import pickle
import sys
from types import ModuleType
from typing import Any

from daskbatch.serialization import mirror, namespaces, pickling

#: The namespace of the definitions in the new process.
_NAMESPACE = "__main__"

#: The program that loads them, before `multiprocessing` has set the new process's `sys.path`.
_PROGRAM = """\
import sys
sys.path[:] = {path!r}
from daskbatch.serialization.spawned import restore
restore({data!r})
"""


class _Definitions:
    """What a new process unpickles first; unpickling it loads the definitions."""

    def __init__(self, program: str) -> None:
        self._program = program

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self._program, {})


def install() -> None:
    """Have `multiprocessing` send what the running task was sent, once it is imported."""
    if "multiprocessing" not in sys.modules:
        return
    from multiprocessing import spawn  # few tasks need it

    prepare = spawn.get_preparation_data
    if getattr(prepare, "__module__", None) == __name__:
        return

    def get_preparation_data(name: str) -> dict[str, Any]:
        found: dict[str, Any] = prepare(name)
        data = _pack(mirror.visible_names())
        if data is not None:
            program = _PROGRAM.format(path=list(sys.path), data=data)
            found["daskbatch"] = _Definitions(program)
        return found

    spawn.get_preparation_data = get_preparation_data


def _pack(names: dict[str, Any]) -> bytes | None:
    """Pickle what can be pickled; None if there is nothing."""
    names = {name: value for name, value in names.items() if not name.startswith("__")}
    if not names:
        return None
    try:
        return _dumps(names)
    except Exception:  # leave out what cannot be pickled
        return _dumps({n: each for n, each in names.items() if pickling.can_be_pickled(each)})


def _dumps(names: dict[str, Any]) -> bytes:
    with pickling.within(_NAMESPACE):
        return pickling.dumps(names)


def restore(data: bytes) -> None:
    """Make definitions the attributes of this process's ``__main__``."""
    main = sys.modules["__main__"]
    if type(main) is not ModuleType:
        return
    own = vars(main)
    namespaces.get_namespace(_NAMESPACE).set_globals(_NAMESPACE, own)
    try:
        found = pickle.loads(data)
    except Exception:
        # The process may do without them; and a pool starts others in place of one that ends.
        sys.excepthook(*sys.exc_info())
        return
    for name, value in found.items():
        own.setdefault(name, value)

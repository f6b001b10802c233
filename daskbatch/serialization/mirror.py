"""Finds by name, in tasks, what the script's ``__main__`` has.

In a process that runs tasks, the module ``__main__`` is not the script. `install` replaces it by a
`MainModule`, which finds a name where the running task was sent it: first among the globals of
the task's function, then among the definitions that came with its arguments, then among those
that came from the same script with earlier tasks, and last in the process's own ``__main__``. So
``import __main__``, `pickle`, `multiprocessing` and `typing.get_type_hints` work in a task as
they do in the script.

A thread that a task has started belongs to no task: there, the definitions of the task that began
last are found. Any number of threads may use this module.
"""

from __future__ import annotations

import builtins
import pickle
import sys
from types import ModuleType
from typing import Any

from daskbatch.forking import make_lock
from daskbatch.serialization import loading, tracking
from daskbatch.serialization.code_names import MAIN_MODULES
from daskbatch.serialization.loading import Definitions, TaskScope

#: The definitions of this many clients are kept, those of the last ones.
_MAX_CLIENTS = 32

#: By client: the definitions that its script has sent last, by name.
_by_client: dict[str, dict[str, Any]] = {}
_keeping = make_lock()

#: The scope whose task began last.
_latest: TaskScope | None = None

#: Attributes that say how ``__main__`` was started: those of the process itself.
_OWN_NAMES = frozenset(
    ("__name__", "__spec__", "__file__", "__loader__", "__package__", "__path__", "__cached__")
)


class MainModule(ModuleType):
    """The module ``__main__`` of a process that runs tasks.

    Parameters
    ----------
    own : module
        The process's own ``__main__``.
    """

    def __init__(self, own: ModuleType) -> None:
        super().__init__("__main__")
        found = own.__dict__
        for name in _OWN_NAMES & found.keys():
            super().__setattr__(name, found[name])
        super().__setattr__("_own", own)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN_NAMES:
            raise AttributeError(f"module '__main__' has no attribute {name!r}")
        for names in _places(_scope()):
            if name in names:
                return names[name]
        for definitions in _definitions(_scope()):
            if name in definitions.pickled_names:
                found = definitions.names[name] = pickle.loads(definitions.pickled_names[name])
                return found
        return getattr(super().__getattribute__("_own"), name)

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            return _View.of(_scope())
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        _globals(_scope())[name] = value

    def __delattr__(self, name: str) -> None:
        if _globals(_scope()).pop(name, loading) is loading:
            raise AttributeError(f"module '__main__' has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted(visible_names())


#: The globals of tasks whose function came by name, by script.
_other_globals: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins.__dict__}


class _View(dict[str, Any]):
    """The namespace of ``__main__`` in a task; what is set in it is set in the task's globals."""

    _own: dict[str, Any]

    @staticmethod
    def of(scope: TaskScope | None) -> dict[str, Any]:
        """Return the namespace; the globals of the task's function, if nothing else is in it."""
        own = _globals(scope)
        found = _visible(scope)
        if found.keys() <= own.keys():
            return own
        view = _View(found)
        view._own = own
        return view

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._own[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._own.pop(name, None)


def visible_names() -> dict[str, Any]:
    """Return what the running task finds in ``__main__``, by name."""
    return _visible(_scope())


def _visible(scope: TaskScope | None) -> dict[str, Any]:
    """Return what a task finds in ``__main__``, by name."""
    found: dict[str, Any] = {}
    for names in reversed(_places(scope)):
        found.update(names)
    return found


def _scope() -> TaskScope | None:
    found = loading.current_scope()
    return _latest if found is None else found


def _definitions(scope: TaskScope | None) -> tuple[Definitions, ...]:
    if scope is None:
        return ()
    is_own = loading.current_scope() is scope
    return scope.function, scope.arguments if is_own else scope.last_arguments


def _places(scope: TaskScope | None) -> list[dict[str, Any]]:
    """Return where a name is looked up, in order."""
    found = []
    definitions = _definitions(scope)
    for each in definitions:
        if each.globals is not None and _is_main(each.globals):
            found.append(each.globals)
    found += [each.names for each in definitions]
    if scope is not None:
        found.append(_by_client.get(scope.client, {}))
    found.append(_other_globals)
    return found


def _is_main(found: dict[str, Any]) -> bool:
    return found.get("__name__") in MAIN_MODULES


def _globals(scope: TaskScope | None) -> dict[str, Any]:
    """Return the dictionary that stands for the namespace of ``__main__``."""
    for each in _definitions(scope):
        if each.globals is not None and _is_main(each.globals):
            return each.globals
    return _other_globals


def begin(scope: TaskScope, function: Definitions) -> None:
    """Have a thread's tasks call a function that came with these definitions."""
    global _latest
    _keep(scope.client, scope.last_arguments)
    scope.function = function
    _latest = scope
    _keep(scope.client, function)


def end(scope: TaskScope) -> None:
    """Have a thread run no more tasks of a scope; what came with them is still found."""
    _keep(scope.client, scope.last_arguments)
    scope.leave()


def _keep(client: str, definitions: Definitions) -> None:
    if definitions.names:
        with _keeping:
            found = _by_client.pop(client, {})
            found.update(definitions.names)
            _by_client[client] = found
            while len(_by_client) > _MAX_CLIENTS:
                del _by_client[next(iter(_by_client))]


def forget(client: str) -> None:
    """Release what the script of a client has sent, since the client has ended."""
    global _latest
    _by_client.pop(client, None)
    if _latest is not None and _latest.client == client:
        _latest = None


def install() -> None:
    """Have this process find in ``__main__`` what its tasks were sent."""
    own = sys.modules.get("__main__")
    if isinstance(own, MainModule) or tracking.sends_script():
        return  # a script may run tasks itself, with a cluster in its own process
    if isinstance(own, ModuleType):
        sys.modules["__main__"] = sys.modules["__mp_main__"] = MainModule(own)

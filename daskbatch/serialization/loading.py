"""Collects the definitions that are loaded for a task, and says which of them a task uses.

A function that is sent by value is loaded with a snapshot of the globals that it uses, and is
cached. The definitions that came with it are its `Definitions`. A class is one class in the whole
process, and its state is that of the pickle that was loaded last. So before a cached function is
called, `Definitions.apply` gives the classes the state that they were sent with.

A `TaskScope` belongs to a thread that runs tasks. It finds what the running task was sent: the
same function among its arguments and its globals is one function, and `mirror` finds definitions
by name. Each thread uses its own scope; other functions may be called by any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import get_ident
from typing import Any, Protocol

from daskbatch.serialization.thread_values import ThreadValues


class Definitions:
    """The definitions that were loaded from one pickle, or for the arguments of one task."""

    __slots__ = ("by_tracker", "classes", "globals", "names", "pickled_names")

    def __init__(self) -> None:
        #: Functions and what else each task has a copy of, by id.
        self.by_tracker: dict[str, Any] = {}
        #: By the id of a class: the class, and the function that gives it the state that was sent.
        self.classes: dict[int, tuple[type, int, Callable[[], None]]] = {}
        #: What the script's ``__main__`` had under these names.
        self.names: dict[str, Any] = {}
        #: More of that, as pickles, which `mirror` loads when they are looked up.
        self.pickled_names: dict[str, bytes] = {}
        #: The globals of the first function; None if there is none.
        self.globals: dict[str, Any] | None = None

    def apply(self, serial_of: Callable[[type], int]) -> None:
        """Give the classes the state that they were sent with, unless they have it."""
        for kind, serial, give_state in self.classes.values():
            if serial_of(kind) != serial:
                give_state()


class RunsTasks(Protocol):
    """Runs tasks one after another in one thread."""

    @property
    def running(self) -> int:
        """The number of the task that runs now."""

    @property
    def loading(self) -> bool:
        """Whether the arguments of the task are being loaded, and not used yet."""


class _Idle:
    running = -1
    loading = False


class TaskScope:
    """The definitions of the task that a thread runs.

    Only this thread uses it, but for `last_arguments`, which any thread may read.

    Parameters
    ----------
    client : str
        The client whose tasks they are.
    run : RunsTasks
        What the thread runs.
    """

    __slots__ = ("_member", "_run", "client", "function", "last_arguments")

    def __init__(self, client: str, run: RunsTasks) -> None:
        self.client = client
        self._run = run
        self._member = -1
        #: The definitions of the running task's function.
        self.function = NO_DEFINITIONS
        #: The definitions that were loaded for the last task, apart from its function's.
        self.last_arguments = Definitions()

    @property
    def is_loading(self) -> bool:
        """Whether arguments are being loaded for a task that has not begun."""
        return self._run.loading

    @property
    def arguments(self) -> Definitions:
        """The definitions that were loaded for the running task, apart from its function's."""
        member = self._run.running
        if member != self._member:
            self._member = member
            self.last_arguments = Definitions()
        return self.last_arguments

    def leave(self) -> None:
        """Release what the thread runs; the last definitions stay."""
        self._run = _Idle()
        self._member = -1


#: The definitions of a function that was sent by reference. It stays empty.
NO_DEFINITIONS = Definitions()

#: By thread: the definitions that are loaded with a function.
_function: ThreadValues[Definitions] = ThreadValues()
#: By thread: its scope.
_scopes: ThreadValues[TaskScope] = ThreadValues()


def collect(definitions: Definitions) -> AbstractContextManager[None]:
    """Return a context manager in which this thread collects what it loads with a function."""
    return _function.set(definitions)


def enter(scope: TaskScope) -> AbstractContextManager[None]:
    """Return a context manager in which this thread runs the tasks of a scope."""
    return _scopes.set(scope)


def current_scope() -> TaskScope | None:
    """Return the scope of this thread; None if it runs no task."""
    return _scopes.get(get_ident())


def current() -> Definitions | None:
    """Return where this thread collects definitions; None if it loads for no task."""
    thread = get_ident()
    found = _function.get(thread)
    if found is None:
        scope = _scopes.get(thread)
        if scope is not None:
            return scope.arguments
    return found


def makes_copies() -> bool:
    """Return whether this thread loads what a task is sent, of which the task has copies."""
    thread = get_ident()
    if thread in _function:
        return True
    scope = _scopes.get(thread)
    return scope is not None and scope.is_loading


def find(tracker: str) -> Any:
    """Return what the running task has under an id; None if there is nothing."""
    thread = get_ident()
    definitions = _function.get(thread)
    if definitions is not None:
        return definitions.by_tracker.get(tracker)
    scope = _scopes.get(thread)
    if scope is None:
        return None
    found = scope.function.by_tracker.get(tracker)
    return scope.arguments.by_tracker.get(tracker) if found is None else found

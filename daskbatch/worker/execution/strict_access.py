"""Watches what the tasks of a strict Batch access, and compares it with what they declare.

Python calls an audit hook before it opens, renames, removes or makes a file. A process gets the
hook with its first strict task, and keeps it. In a thread that runs a strict task, and in the
threads that the task starts, the hook compares each access with the declarations of that task;
everywhere else it returns at once. Dictionaries and queues call `check_shared`.

Any number of threads may run strict tasks at the same time.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from threading import get_ident
from types import CoroutineType, FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from daskbatch.errors import UndeclaredAccess
from daskbatch.forking import after_fork
from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import DeclaredFiles
from daskbatch.worker.execution.initialized_function import InitializedFunction

#: The flags of `os.open` with which a file may be written.
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

#: How the names of queues begin, in accesses.
_QUEUE = "queue-"

#: Where the system keeps devices and the like.
_SYSTEM = ("/dev/", "/proc/", "/sys/")

#: Where the system says which directory a descriptor is of, on Linux.
_FILES_OPEN = "/proc/self/fd/%d"

#: The innermost frame while Python imports a module or looks for a source line.
_INTERPRETER = (
    "<frozen importlib._bootstrap",
    "<frozen zipimport>",
    os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "linecache.py"),
    os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "tokenize.py"),
)


class Rules(NamedTuple):
    """Which paths matter for the tasks of a program.

    Parameters
    ----------
    directory : str
        The directory of the Batch: all that is below it matters.
    elsewhere : frozenset of str
        The paths outside of it that tasks of the program declare.
    objects : frozenset of str
        The names of the dictionaries and queues that tasks of the program declare.
    """

    directory: str
    elsewhere: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()


@lru_cache(maxsize=64)
def load_rules(data: bytes) -> Rules:
    """Unpickle rules; the last ones are cached."""
    return Rules(*pickling.loads(data))


class Watch:
    """The accesses of one strict task while it runs. Its threads use it at the same time.

    Parameters
    ----------
    name : str
        The name of the task.
    declared : DeclaredFiles
        What it declares.
    rules : Rules
        Which paths matter.
    """

    def __init__(self, name: str, declared: DeclaredFiles, rules: Rules) -> None:
        self._name = name
        self._reads = frozenset(declared.reads)
        self._writes = frozenset(declared.writes)
        #: The directories above its outputs: the task may make them.
        self._above_writes = frozenset(
            above for path in self._writes for above in _with_parents(os.path.dirname(path))
        )
        self._keys = declared.keys
        self._rules = rules
        self._below = rules.directory.rstrip(os.sep) + os.sep
        self._ignored = _ignored_directories(rules.directory)
        #: What the task has made without a declaration: it may do so for a while.
        self._made: set[str] = set()
        #: The first undeclared access.
        self.violation: UndeclaredAccess | None = None
        #: Whether the task runs.
        self.active = True

    # -- files ----------------------------------------------------------------------------

    def read(self, given: Any, directory: Any = -1) -> None:
        """Check that the task may read a path; see `write` for the parameters."""
        path = _absolute(given, directory)
        if path is None or path in self._reads or path in self._writes:
            return
        if self._may_read(path) or not self._matters(path) or not os.path.lexists(path):
            return
        real = os.path.realpath(path)
        if real == path or not self._may_read(real):
            self._refuse(path, "read")

    def write(self, given: Any, makes: bool = True, directory: Any = -1) -> None:
        """Check that the task may write, make, remove or replace a path.

        Parameters
        ----------
        given : path
            The path.
        makes : bool
            Whether the path exists afterwards.
        directory : int
            The descriptor of the directory that a relative path is relative to; -1 for the working
            directory.
        """
        path = _absolute(given, directory)
        if path is None or path in self._writes or not self._matters(path):
            return
        if _is_covered(path, self._writes) or _is_covered(path, self._made):
            return
        if not os.path.lexists(path):
            if makes:
                self._made.add(path)
            return
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if real == path or not _is_covered(real, self._writes):
            self._refuse(path, "write")

    def make_directory(self, given: Any, directory: Any = -1) -> None:
        """Check that the task may make a directory: also one in which its outputs will be."""
        path = _absolute(given, directory)
        if path is not None and path not in self._above_writes and not os.path.isdir(path):
            self.write(path)

    def _may_read(self, path: str) -> bool:
        return (
            _is_covered(path, self._reads)
            or _is_covered(path, self._writes)
            or _is_covered(path, self._made)
        )

    def _matters(self, path: str) -> bool:
        """Return whether a path is one that the task must declare."""
        if path.startswith(self._ignored) or f"{os.sep}__pycache__{os.sep}" in f"{path}{os.sep}":
            return False
        if path.startswith(self._below):
            return True
        elsewhere = self._rules.elsewhere
        return _is_covered(path, elsewhere) or path in self._reads or path in self._writes

    def _refuse(self, path: str, mode: str) -> None:
        """Record and raise that an access is not declared, unless the interpreter has made it."""
        if not _is_by_interpreter(sys._getframe()):
            verb, argument = ("read", "reads") if mode == "read" else ("written", "writes")
            raise self._undeclared(
                path,
                mode,
                f"has {verb} {path}, and does not declare that: add "
                f"{argument}=[batch.{mode}({path!r})]",
            )

    def _undeclared(self, path: str, mode: str, text: str) -> UndeclaredAccess:
        error = UndeclaredAccess(
            f"task {self._name!r} {text}", task=self._name, path=path, mode=mode
        )
        if self.violation is None:
            self.violation = error
        return error

    # -- dictionaries and queues ----------------------------------------------------------

    def access_shared(self, mode: str, name: str, keys: tuple[Any, ...], what: str) -> None:
        """Check that the task may access keys of a dictionary, or a queue; see `check_shared`.

        A queue matters only if a task of the program declares it: tasks that wait for each other
        by a queue run at the same time, and must not be ordered by it.
        """
        if name.startswith(_QUEUE) and name not in self._rules.objects:
            return
        for declared_mode, declared_name, declared_keys in self._keys:
            if declared_name == name and (declared_mode == mode or declared_mode == "write"):
                if not declared_keys:
                    return
                known = set(pickling.loads(declared_keys))
                remaining = tuple(key for key in keys if key not in known)
                if keys and not remaining:
                    return
                keys = remaining
        key = repr(keys[0]) if keys else ""
        path = f"{what}[{key}]" if keys else what
        verb, argument = ("read", "reads") if mode == "read" else ("written", "writes")
        raise self._undeclared(
            path,
            mode,
            f"has {verb} {path}, and does not declare that: add "
            f"{argument}=[batch.{mode}(...{', ' + key if keys else ''})]",
        )

    # -- the end --------------------------------------------------------------------------

    def finish(self) -> None:
        """Check what is left of what the task has made; raises the first undeclared access."""
        self.active = False
        if self.violation is None:
            for path in sorted(self._made):
                if not _is_covered(path, self._writes) and os.path.lexists(path):
                    self._undeclared(
                        path,
                        "write",
                        f"has made {path}, and does not declare that: add "
                        f"writes=[batch.write({path!r})], or remove it at the end of the task",
                    )
                    break
        if self.violation is not None:
            raise self.violation


class WatchedFunction:
    """A task's function, called while its accesses are watched.

    Parameters
    ----------
    function : callable
        The function.
    watch : Watch
        Watches the call.
    whole_process : bool
        Whether all threads of this process belong to the task.
    """

    def __init__(
        self, function: Callable[..., Any], watch: Watch, whole_process: bool = False
    ) -> None:
        self._function = function
        self._watch = watch
        self._whole_process = whole_process

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        global _process_watch
        if isinstance(self._function, InitializedFunction):
            self._function.initialize()  # what it accesses is not the task's affair
        _add_hook()
        watch, thread = self._watch, get_ident()
        _watches[thread] = watch
        if self._whole_process:
            _process_watch = watch
        try:
            value = self._function(*args, **kwargs)
            if type(value) is CoroutineType:
                value = asyncio.run(value)
        except Exception as error:
            self._end(thread)
            if watch.violation is not None and error is not watch.violation:
                raise watch.violation from error
            raise
        except BaseException:
            self._end(thread)
            raise
        self._end(thread)
        watch.finish()
        return value

    def _end(self, thread: int) -> None:
        global _process_watch
        self._watch.active = False
        _watches.pop(thread, None)
        _process_watch = None


#: The watches of running tasks, by the thread that runs the task or was started by it.
_watches: dict[int, Watch] = {}

#: The watches of tasks that have started threads, by the thread.
_started: WeakKeyDictionary[threading.Thread, Watch] = WeakKeyDictionary()

#: The watch for all threads of a process that runs one task at a time.
_process_watch: Watch | None = None

_hook_lock = threading.Lock()
_has_hook = False


@after_fork
def _forget_watches() -> None:
    """Forget all watches: a process that a task has forked is not watched."""
    global _process_watch, _hook_lock
    _hook_lock = threading.Lock()
    _watches.clear()
    _started.clear()
    _process_watch = None


def current_watch() -> Watch | None:
    """Return the watch of the strict task that this thread belongs to; None outside of them."""
    if not _watches:
        return None
    watch = _watches.get(get_ident())
    if watch is None:
        watch = _process_watch
        if watch is None and _started:
            watch = _started.get(threading.current_thread())
    return watch if watch is not None and watch.active else None


def check_shared(mode: str, name: str, keys: tuple[Any, ...], what: str) -> None:
    """Check that the running task may access keys of a dictionary, or a queue.

    Parameters
    ----------
    mode : str
        ``"read"`` or ``"write"``.
    name : str
        The name of the object, as accesses have it.
    keys : tuple
        The keys; none mean the whole object.
    what : str
        The object in messages.

    Raises
    ------
    UndeclaredAccess
        The task has not declared it.
    """
    watch = current_watch()
    if watch is not None:
        watch.access_shared(mode, name, keys, what)


# -- the hook ----------------------------------------------------------------------------------


def _add_hook() -> None:
    global _has_hook
    with _hook_lock:
        if not _has_hook:
            sys.addaudithook(_audit)
            if sys.version_info < (3, 12):
                _follow_threads()
            _has_hook = True


def _follow_threads() -> None:
    """Record which task starts a thread: before Python 3.12 no audit event says so."""
    start = threading.Thread.start

    @wraps(start)
    def start_followed(self: threading.Thread) -> None:
        watch = current_watch()
        if watch is not None:
            _started[self] = watch
        start(self)

    threading.Thread.start = start_followed  # type: ignore[method-assign]


def _audit(event: str, args: tuple[Any, ...]) -> None:
    """Check an access; Python calls this for each event, in the thread that causes it."""
    if not _watches or event not in _HANDLERS:
        return
    watch = current_watch()
    if watch is not None:
        _HANDLERS[event](watch, args)


def _opened(watch: Watch, args: tuple[Any, ...]) -> None:
    path, _, flags = args
    if type(flags) is int and flags & _WRITING:
        watch.write(path, bool(flags & os.O_CREAT))
    else:
        watch.read(path)


def _renamed(watch: Watch, args: tuple[Any, ...]) -> None:
    source, target, source_directory, target_directory = args
    watch.write(source, False, source_directory)
    watch.write(target, True, target_directory)


def _linked(watch: Watch, args: tuple[Any, ...]) -> None:
    source, target, source_directory, target_directory = args
    watch.read(source, source_directory)
    watch.write(target, True, target_directory)


def _thread_started(watch: Watch, args: tuple[Any, ...]) -> None:
    thread = getattr(args[0], "__self__", None)
    if isinstance(thread, threading.Thread):
        _started[thread] = watch


_HANDLERS: dict[str, Callable[[Watch, tuple[Any, ...]], None]] = {
    "open": _opened,
    "os.rename": _renamed,
    "os.link": _linked,
    "os.symlink": lambda watch, args: watch.write(args[1], True, args[2]),
    "os.remove": lambda watch, args: watch.write(args[0], False, args[1]),
    "os.rmdir": lambda watch, args: watch.write(args[0], False, args[1]),
    "os.truncate": lambda watch, args: watch.write(args[0], makes=False),
    "os.mkdir": lambda watch, args: watch.make_directory(args[0], args[2]),
    "_thread.start_new_thread": _thread_started,
    "_thread.start_joinable_thread": _thread_started,
}


def _absolute(given: Any, directory: Any = -1) -> str | None:
    """Return a path as accesses have it; None for what is not a path, such as a descriptor."""
    if type(given) is not str:
        if isinstance(given, int) or given is None:
            return None
        try:
            given = os.fsdecode(given)
        except TypeError:
            return None
    if given.startswith(_SYSTEM):
        return None
    if given[:1] != os.sep:
        try:
            # A relative path may be relative to an open directory: `shutil.rmtree` works so.
            base = os.getcwd() if directory in (-1, None) else os.readlink(_FILES_OPEN % directory)
        except (OSError, TypeError):
            return None
        given = os.path.join(base, given)
    return str(os.path.normpath(given))


def _is_covered(path: str, by: frozenset[str] | set[str]) -> bool:
    """Return whether a path, or a directory above it, is among some paths."""
    while by and len(path) > 1:
        if path in by:
            return True
        path = path[: path.rfind(os.sep)]
    return False


def _with_parents(path: str) -> Iterator[str]:
    """Yield a path and the directories above it, except the root."""
    while len(path) > 1:
        yield path
        path = path[: path.rfind(os.sep)]


@lru_cache(maxsize=64)
def _ignored_directories(directory: str) -> tuple[str, ...]:
    """Return the directories of which nothing matters: Python's own, and the temporary one."""
    own = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    own |= {tempfile.gettempdir()}
    own |= {os.path.realpath(each) for each in own}
    within = directory.rstrip(os.sep) + os.sep
    return tuple(
        each + os.sep for each in own if not within.startswith(each.rstrip(os.sep) + os.sep)
    )


def _is_by_interpreter(frame: FrameType | None) -> bool:
    """Return whether Python itself accesses a file: to import a module, or for a source line."""
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_INTERPRETER)

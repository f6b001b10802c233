"""Pickles exceptions with their tracebacks, so that every other process can unpickle them.

It also rewords errors of the operating system. Any thread may call any function; `pack_error`
raises nothing.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Mapping
from typing import Any, cast

from daskbatch.errors import SerializationError
from daskbatch.serialization import by_value, pickling
from daskbatch.serialization.safe_text import (
    is_from_outside,
    summary,
    traceback_of,
    type_name,
)
from daskbatch.serialization.tracebacks import user_traceback

#: Sets the cause of an exception: the attribute, and not what its class puts in place of it.
set_cause = vars(BaseException)["__cause__"].__set__


class PackedError(Exception):
    """An error that was packed in another process, and that this one must not unpickle.

    Parameters
    ----------
    data : bytes
        What `pack_error` returned there.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__("an error of another process")
        self.data = data


def pack_error(
    error: BaseException, label: str, hidden_frames: int = 1, heading: str = ""
) -> bytes:
    """Pickle an exception and its traceback, and make sure that they can be unpickled.

    An exception that cannot be sent is replaced by a `SerializationError` with its text.

    Parameters
    ----------
    error : BaseException
        The exception, with the traceback that it was caught with.
    label : str
        The task's name, for the message if the exception cannot be sent.
    hidden_frames : int
        The number of frames at the start of the traceback that belong to daskbatch.
    heading : str
        A text to write above the traceback: where the task ran, and which attempt it was.
    """
    # Not `isinstance`: it looks up `__class__`, which an exception may define.
    if type(error) is PackedError:
        return error.data
    # Whatever goes wrong here, a signal included, must not end the thread that reports the error.
    brief = text = type_name(error)
    try:
        brief = summary(error)
        start = traceback_of(error)
        for _ in range(hidden_frames):
            if start is not None and start.tb_next is not None:
                start = start.tb_next
        text = user_traceback(error, start)
    except BaseException:  # of a signal handler: Ctrl-C in a child process
        pass
    try:
        data = _dumps(error)
        _require_exception(pickling.loads(data))
    except BaseException:  # pickling may run any code, even sys.exit()
        data = _dumps(
            SerializationError(f"task {label} raised an exception that cannot be sent: {brief}")
        )
    return pickling.dumps_plain((data, text, label, brief, heading))


def unpack_error(data: bytes, heading: str = "") -> BaseException:
    """Undo `pack_error`: return the exception, with the worker's traceback as its cause.

    If the exception cannot be unpickled in this process, a `SerializationError` with its text is
    returned.

    Parameters
    ----------
    data : bytes
        The packed exception.
    heading : str
        A text to write above the traceback, before that of `pack_error`. The exception itself
        stays as the user's code raised it.
    """
    pickled, text, label, brief, place = pickling.loads(data)
    try:
        error = _require_exception(pickling.loads(pickled))
    except BaseException as failure:  # unpickling may run any code, even sys.exit()
        if is_from_outside(failure):
            raise
        error = SerializationError(
            f"task {label} raised an exception that cannot be loaded here: {brief}; "
            f"to load it raises {summary(failure)}"
        )
    # Not by an assignment: the class of the exception may define what that does.
    above = ", ".join(filter(None, (heading, place)))
    set_cause(error, TaskTraceback(f"{above}:\n{text}".rstrip() if above else text.rstrip()))
    return error


def brief_error(data: bytes) -> str:
    """Return the type and the first line of a packed exception, without unpickling it.

    Parameters
    ----------
    data : bytes
        What `pack_error` has returned.
    """
    try:
        brief = str(pickling.loads(data)[3])
    except Exception:
        return "its exception cannot be read"
    line, _, more = brief.partition("\n")
    return f"{line} ..." if more else line


def _require_exception(loaded: object) -> BaseException:
    """Return an unpickled object if it is an exception; an exception may unpickle as anything."""
    if not issubclass(type(loaded), BaseException):
        raise TypeError(f"it is unpickled as an object of type {type_name(loaded)}")
    return cast("BaseException", loaded)


class TaskTraceback(Exception):
    """The traceback of a task on its worker, as a text; the cause of the task's exception."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_task_traceback, self.args


def _make_task_traceback(text: str = "") -> TaskTraceback:
    # By a function: the class is not found by the module that it names.
    return TaskTraceback(text)


# Python writes the module before the name: this is the package that the user knows.
TaskTraceback.__module__ = "daskbatch"


def reworded(error: OSError, text: str) -> OSError:
    """Return an `OSError` with another text, but the same type, number, file and traceback.

    Parameters
    ----------
    error : OSError
        The error to copy.
    text : str
        The new text.
    """
    copy = OSError(error.errno, text, error.filename)
    return copy.with_traceback(error.__traceback__)


def unusable_path_error(what: str, error: OSError) -> OSError:
    """Return an `OSError` that says which file or directory of a task cannot be used, and why.

    Parameters
    ----------
    what : str
        What the task needs it for, and its path.
    error : OSError
        The error of using it.
    """
    how = f"cannot be used: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        how = "does not exist"
    elif isinstance(error, NotADirectoryError):
        how = "is not a directory"
    return reworded(error, f"{what} {how}")


def unusable_directory_error(what: str, error: OSError, host: str = "") -> OSError:
    """Return an `OSError` like `unusable_path_error`, which names the host, too.

    Parameters
    ----------
    what, error
        See `unusable_path_error`.
    host : str
        The host on which the directory cannot be used; by default this one.
    """
    return unusable_path_error(f"{what} on the host {host or socket.gethostname()}", error)


class _Pickler(by_value.Pickler):
    """Pickles all exceptions within an object by type, arguments and attributes.

    Python's own way fails for classes whose ``__init__`` takes other arguments than those that it
    passes to its base class. And in a process with Dask it is not Python's own way: Dask lets
    tblib replace it by one that loses the fields of built-in exceptions.
    """

    def __init__(self, file: io.BytesIO, states: dict[int, dict[str, object]]) -> None:
        super().__init__(file, pickling.PROTOCOL)
        #: The attributes that can be sent, of the exceptions found so far, by their ids:
        #: exceptions may refer to each other, and to themselves.
        self._states = states

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException) and not _reduces_itself(type(obj)):
            base = _built_in_base(type(obj))
            _, arguments, *more = cast("tuple[Any, ...]", base.__reduce__(obj))
            state = self._states.get(id(obj))
            if state is None:
                state = self._states[id(obj)] = {}
                whole = {**_slots_of(obj), **(more[0] if more else {})}
                state.update(_sendable(whole, self._states))
            # The state is loaded last, when references back to the exception can be resolved.
            return _rebuild, (type(obj), arguments, obj.args), state, None, None, _restore
        return super().reducer_override(obj)


def _dumps(obj: object, states: dict[int, dict[str, object]] | None = None) -> bytes:
    with io.BytesIO() as file:
        _Pickler(file, {} if states is None else states).dump(obj)
        return file.getvalue()


def _reduces_itself(kind: type) -> bool:
    """Return whether a class above the built-in ones defines how it is pickled."""
    own = kind.__mro__[: kind.__mro__.index(_built_in_base(kind))]
    return any("__reduce__" in vars(each) or "__reduce_ex__" in vars(each) for each in own)


def _built_in_base(kind: type) -> type[BaseException]:
    return next(each for each in kind.__mro__ if each.__module__ == "builtins")


def _slots_of(error: BaseException) -> dict[str, object]:
    own = type(error).__mro__[: type(error).__mro__.index(_built_in_base(type(error)))]
    slots = [name for kind in own for name in vars(kind).get("__slots__", ())]
    return {name: getattr(error, name) for name in slots if hasattr(error, name)}


def _sendable(
    state: Mapping[str, object], states: dict[int, dict[str, object]]
) -> dict[str, object]:
    """Leave out attributes that cannot be sent: the type and the arguments matter more."""
    sendable = {}
    for name, value in state.items():
        try:
            _dumps(value, states)
        except BaseException:  # pickling may run any code, even sys.exit()
            continue
        sendable[name] = value
    return sendable


def _rebuild(
    kind: type[BaseException], arguments: tuple[Any, ...], args: tuple[Any, ...]
) -> BaseException:
    base = _built_in_base(kind)
    error = base.__new__(kind, *arguments)
    base.__init__(error, *arguments)
    error.args = args
    return error


def _restore(error: BaseException, state: dict[str, object]) -> None:
    error.__setstate__(state)

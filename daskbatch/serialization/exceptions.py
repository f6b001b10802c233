"""Exceptions as they travel: pickled so that they can surely be unpickled, with their traceback.

Does not know how a task is run, or what a client makes of its exception.
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Mapping
from typing import Any, cast

import cloudpickle

from daskbatch.errors import SerializationError
from daskbatch.serialization import pickling


def pack_error(
    error: BaseException, label: str, hidden_frames: int = 1, heading: str = ""
) -> bytes:
    """Pickle an exception and its traceback so that they surely can be unpickled.

    Parameters
    ----------
    error : BaseException
        With the traceback that it was caught with.
    label : str
        The task's name, for the message if the exception cannot travel.
    hidden_frames : int
        How many frames at the start of the traceback are ours and of no interest.
    heading : str
        What stands above the traceback.
    """
    start = error.__traceback__
    for _ in range(hidden_frames):
        if start is not None and start.tb_next is not None:
            start = start.tb_next
    text = heading + "".join(traceback.format_exception(type(error), error, start))
    try:
        data = _dumps((error, text))
        assert isinstance(pickling.loads(data)[0], BaseException)
    except Exception:
        said = f"{type(error).__name__}: {safe_str(error)}"
        substitute = SerializationError(
            f"task {label} raised an exception that cannot be sent: {said}"
        )
        return _dumps((substitute, text))
    return data


def unpack_error(data: bytes, heading: str = "") -> BaseException:
    """Undo `pack_error`: the exception, with the worker's traceback as its cause.

    Parameters
    ----------
    data : bytes
        The packed exception.
    heading : str
        What stands above the traceback: the exception itself, which is the user's, stays as it
        was raised.
    """
    # As `concurrent.futures` does, whose class tools know. Not at the top: workers start
    # faster without it.
    from concurrent.futures.process import _RemoteTraceback

    error, text = pickling.loads(data)
    assert isinstance(error, BaseException)
    error.__cause__ = _RemoteTraceback(f'\n"""\n{heading}{text}"""')  # type: ignore[arg-type]
    return error


def safe_str(value: object, words: Callable[[object], str] = str) -> str:
    """Put an object into words, also if its own way to do so fails."""
    try:
        return words(value)
    except Exception as error:
        return f"<its __{words.__name__}__ raised {type(error).__name__}>"


def reworded(error: OSError, said: str) -> OSError:
    """Give an error of the system other words; its type, its number and its file stay."""
    made = OSError(error.errno, said, error.filename)
    return made.with_traceback(error.__traceback__)


def not_to_be_had(what: str, error: OSError) -> OSError:
    """Say what it is that a task was to be given, and cannot be."""
    how = f"cannot be used: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        how = "does not exist"
    elif isinstance(error, NotADirectoryError):
        how = "is not a directory"
    return reworded(error, f"{what} {how}")


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles exceptions, wherever they stand, by type, arguments and attributes.

    Their own way fails where ``__init__`` does not take what it passes on. And where Dask
    is, it is not their own: Dask lets tblib replace it, with something that loses the
    fields of built-in types.
    """

    def __init__(self, file: io.BytesIO, states: dict[int, dict[str, object]]) -> None:
        super().__init__(file, pickling.PROTOCOL)
        #: What can be sent of the exceptions met so far, by their ids: they may refer to
        #: each other, and to themselves.
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
            # The state comes last, when what refers back to the exception can be resolved.
            return _rebuild, (type(obj), arguments, obj.args), state, None, None, _restore
        return super().reducer_override(obj)


def _dumps(obj: object, states: dict[int, dict[str, object]] | None = None) -> bytes:
    with io.BytesIO() as file:
        _Pickler(file, {} if states is None else states).dump(obj)
        return file.getvalue()


def _reduces_itself(kind: type) -> bool:
    """Say whether a Python class of the user's brings its own way of pickling along."""
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
    """Leave out attributes that cannot be sent: type and arguments are what counts."""
    found = {}
    for name, value in state.items():
        try:
            _dumps(value, states)
        except Exception:
            continue
        found[name] = value
    return found


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

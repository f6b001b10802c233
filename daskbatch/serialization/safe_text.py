"""Puts objects of the user into words, whatever the code of these objects does.

The names, texts and tracebacks of a user's objects come from the user's own code: ``__str__``,
``__repr__``, ``__getattr__``, metaclasses, import loaders. This code may raise anything, return
something else than a text, or call ``sys.exit``. Every module that needs such a text asks this
module for it, and always receives a plain `str`.

Any thread may call any function. The functions raise nothing, with one exception: what comes from
outside of the object is passed on. That is what a signal handler raises (in the main thread, for
example `KeyboardInterrupt` after Ctrl-C), and an `Interruption`.
"""

from __future__ import annotations

import linecache
import opcode
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, TracebackType
from typing import Any, Final, TypeGuard, TypeVar

T = TypeVar("T")

#: Without source lines, a traceback shows at most this many of the first and of the last frames.
_MAX_PLAIN_FRAMES = 30
#: A chain of causes and contexts, or of groups within groups, is shown up to this many exceptions.
_MAX_PLAIN_ERRORS = 30

#: The instructions by which Python code raises an exception itself.
_RAISING = {opcode.opmap["RAISE_VARARGS"], opcode.opmap["RERAISE"]}

# These go round what a metaclass, or a `__getattribute__`, puts in place of the attribute.
_name_of_type = type.__dict__["__name__"].__get__
_cause_of = vars(BaseException)["__cause__"].__get__
_context_of = vars(BaseException)["__context__"].__get__
_suppresses_context = vars(BaseException)["__suppress_context__"].__get__
_members_of_group = vars(BaseExceptionGroup)["exceptions"].__get__

#: Returns the traceback of an exception.
traceback_of: Final[Callable[[BaseException], TracebackType | None]] = vars(BaseException)[
    "__traceback__"
].__get__


class Interruption(BaseException):
    """An exception that another thread throws into a thread, in the middle of any code."""


def guarded(make: Callable[[], str], otherwise: Callable[[BaseException], str]) -> str:
    """Return the text that a function makes; if it raises anything, another text.

    Parameters
    ----------
    make : callable
        Makes the text; may run any code of the user.
    otherwise : callable
        Makes the other text from what `make` has raised. It must not run code of the user.
    """
    try:
        return plain(make())
    except BaseException as error:
        if is_from_outside(error):
            raise
        return otherwise(error)


def plain(text: str) -> str:
    """Return a text as a plain `str`; raises `TypeError` if it is not a text.

    An object of a subclass of `str` may override any method, and its class may be unknown in
    another process.
    """
    return text if type(text) is str else str.__str__(text)


def has_type(obj: object, *kinds: type[T]) -> TypeGuard[T]:
    """Return whether an object is an instance of a class; its own code is not asked.

    `isinstance` looks up `__class__`, which the class of an object may define.

    >>> has_type(KeyError("k"), LookupError), has_type(None, KeyError, OSError)
    (True, False)
    """
    return issubclass(type(obj), kinds)


def type_name(obj: object) -> str:
    """Return the name of an object's type.

    Parameters
    ----------
    obj : object
        Any object; neither its attributes nor those of its metaclass are looked up.
    """
    return plain(_name_of_type(type(obj)))


def safe_str(value: object) -> str:
    """Return an object's text, even if its own ``__str__`` fails."""
    return guarded(partial(str, value), lambda error: f"<its __str__ raised {type_name(error)}>")


def safe_repr(value: object) -> str:
    """Return an object's ``repr``; if that fails, its type."""
    return guarded(partial(repr, value), lambda _: f"a {type_name(value)}")


def summary(error: BaseException) -> str:
    """Return the type and the text of an exception, in the form ``ValueError: a text``."""
    return f"{type_name(error)}: {safe_str(error)}"


def text_attribute(obj: object, name: str) -> str | None:
    """Return an attribute if it is a text that is not empty, else None.

    Parameters
    ----------
    obj : object
        Any object, also one that answers to every attribute, such as a proxy or an RPC stub.
    name : str
        The name of the attribute.
    """
    value = attribute(obj, name)
    return (plain(value) or None) if issubclass(type(value), str) else None


def attribute(obj: object, name: str) -> Any:
    """Return an attribute; None if there is none, or if looking it up raises anything."""
    try:
        return getattr(obj, name, None)
    except BaseException as error:
        if is_from_outside(error):
            raise
        return None


def callable_name(function: Callable[..., Any]) -> str:
    """Return the name of a function, or of what a callable object wraps; else of its type."""
    if type(function) is FunctionType:
        own = function.__name__
        return own if type(own) is str else plain(own)
    name = text_attribute(function, "__name__")
    if name is None:
        inner = attribute(function, "func")  # of a `functools.partial`
        inner = function if inner is None else inner
        name = text_attribute(inner, "__name__") or type_name(inner)
    return name


def plain_traceback(
    error: BaseException, start: TracebackType | None, failure: BaseException
) -> str:
    """Return a traceback with its source lines where they can be read, without Python's formatter.

    Python's formatter runs code of the exceptions that it shows (``__getattr__``, ``__notes__``),
    and of the loaders that have the source. One exception that fails there must not hide the
    others, so each part of this text is made separately.

    Parameters
    ----------
    error : BaseException
        The exception, with its cause or context, its notes, and the members of a group.
    start : traceback, optional
        The first frame to show of the exception itself.
    failure : BaseException
        What the formatter has raised.
    """
    parts = []
    for each, relation in _chain_of(error):
        frames = start if each is error else traceback_of(each)
        head = "Traceback (most recent call last):\n" if frames is not None else ""
        parts.append(f"{head}{_frames_of(frames)}{summary(each)}\n{relation}")
    note = f"[daskbatch: Python could not format this traceback: {type_name(failure)}]\n"
    return "".join(reversed(parts)) + note


def is_from_outside(error: BaseException) -> bool:
    """Return whether an exception comes from outside of the code in which it appeared.

    That is so for an `Interruption`, and for what a signal handler raises. Python runs the
    handlers in the main thread, between any two instructions of the code that runs there. So
    Ctrl-C may raise `KeyboardInterrupt` in the middle of a ``__str__``. It is told apart from a
    ``__str__`` that raises `KeyboardInterrupt` itself by the instruction at which the exception
    appeared.

    Parameters
    ----------
    error : BaseException
        The exception, caught where it is to be handled.
    """
    if issubclass(type(error), Interruption):
        return True
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    trace = traceback_of(error)
    raised_at = None
    while trace is not None:
        code = trace.tb_frame.f_code
        if code in handlers:
            return True
        raised_at = code.co_code[trace.tb_lasti]
        trace = trace.tb_next
    # Python's own handler has no frame.
    return type(error) is KeyboardInterrupt and raised_at not in _RAISING


def _code_of(handler: Any) -> CodeType | None:
    """Return the code of a signal handler; None for those that are not written in Python."""
    while type(handler) is partial:
        handler = handler.func
    if type(handler) is MethodType:
        handler = handler.__func__
    return handler.__code__ if type(handler) is FunctionType else None


def _chain_of(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """Yield an exception, its cause or context, and so on; with the sentence that follows each.

    The members of groups come with the group.
    """
    pending: list[tuple[BaseException, str]] = [(error, "")]
    seen: set[int] = set()
    while pending and len(seen) < _MAX_PLAIN_ERRORS:
        each, relation = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each, relation
        if issubclass(type(each), BaseExceptionGroup):
            members = _members_of_group(each)
            pending += [(member, "(a member of the group below)\n\n") for member in members]
        cause = _cause_of(each)
        context = None if _suppresses_context(each) else _context_of(each)
        if cause is not None:
            sentence = "The above exception was the direct cause of the following exception:"
            pending.append((cause, f"\n{sentence}\n\n"))
        elif context is not None:
            sentence = "During handling of the above exception, another exception occurred:"
            pending.append((context, f"\n{sentence}\n\n"))


def _frames_of(start: TracebackType | None) -> str:
    lines = []
    while start is not None:
        lines.append(_frame_of(start))
        start = start.tb_next
    more = len(lines) - 2 * _MAX_PLAIN_FRAMES
    if more > 0:
        lines[_MAX_PLAIN_FRAMES:-_MAX_PLAIN_FRAMES] = [f"  [{more} more frames]\n"]
    return "".join(lines)


def _frame_of(trace: TracebackType) -> str:
    code, number = trace.tb_frame.f_code, trace.tb_lineno

    def read_line() -> str:
        line = linecache.getline(code.co_filename, number, trace.tb_frame.f_globals).strip()
        return f"    {line}\n" if line else ""

    place = f'  File "{plain(code.co_filename)}", line {number}, in {plain(code.co_name)}\n'
    return place + guarded(read_line, lambda _: "")

"""Meets a mistyped keyword with the one that was probably meant.

Any thread may call all functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from daskbatch.errors import SpecError
from daskbatch.serialization.deferred_annotations import parameters_of

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: The keywords of `Batch.function` that are not the function's.
_OWN = ("reads", "writes", "name", "timeout")


def suggesting(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate a method so that a wrong keyword is met with the nearest one that exists.

    The `TypeError` is that of Python, with a hint behind its text.
    """
    known = [
        name
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name != "self"
    ]

    @wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(*args, **kwargs)
        except TypeError as error:
            # Python refuses the call itself: the method has no frame then.
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            for name in kwargs:
                if name not in known and (hint := _nearest(name, tuple(known), 0.6)):
                    raise TypeError(f"{error}; did you mean {hint}=?") from None
            raise

    return call


def require_no_typo(target: Callable[..., Any], keywords: Iterable[str]) -> None:
    """Check that no keyword for a function is probably one of `Batch.function`.

    Parameters
    ----------
    target : callable
        The function.
    keywords : iterable of str
        The names of the keywords that it is to get.

    Raises
    ------
    SpecError
        The function takes no keyword of this name, and the name is almost one of ours.
    """
    for name in keywords:
        near = _nearest(name, _OWN, 0.75)
        if near and not _takes(target, name):
            raise SpecError(
                f"{name}= is neither a parameter of the function nor of Batch.function: did you "
                f"mean {near}=?"
            )


def require_no_access(target: Callable[..., Any], keywords: Iterable[str]) -> None:
    """Check that no keyword for a function, behind `Batch.options`, is meant for its accesses.

    Other keywords that the function does not take are its own affair: it may be wrapped.

    Parameters
    ----------
    target : callable
        The function.
    keywords : iterable of str
        The names of the keywords that it is to get.

    Raises
    ------
    SpecError
        The function takes no keyword of this name.
    """
    for name in keywords:
        if name in ("reads", "writes") and not _takes(target, name):
            raise SpecError(
                f"{name}= is no parameter of the function; behind options() all keywords are the "
                f"function's: write options({name}=…).function(…)"
            )


@lru_cache(maxsize=256)
def _nearest(name: str, known: tuple[str, ...], similarity: float) -> str:
    close = get_close_matches(name, known, n=1, cutoff=similarity)
    return close[0] if close else ""


def _takes(target: Callable[..., Any], name: str) -> bool:
    """Return whether a function takes a keyword; True if that is unknown."""
    try:
        parameters = parameters_of(target)
    except Exception:  # a built-in function, or an object of the user with a strange signature
        return True
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())

"""Converts values that users give for options: what is a text, a number or a path by its protocol.

A member of a `StrEnum` is a text, a NumPy integer is a whole number, and each object with
``__fspath__`` is a path. The functions return plain values of Python's own types, which any process
can load; they return None for other values, and raise nothing. Any thread may call them.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeVar

from daskbatch.serialization.safe_text import is_from_outside, plain

T = TypeVar("T")


def text_of(value: object) -> str | None:
    """Return a text as a plain `str`.

    Examples
    --------
    >>> from enum import StrEnum
    >>> Color = StrEnum("Color", "RED")
    >>> text_of(Color.RED), text_of(7)
    ('red', None)
    """
    return plain(value) if isinstance_of(value, str) else None  # type: ignore[arg-type]


def path_of(value: object) -> str | None:
    """Return a path, a `str` or any object with ``__fspath__``, as a plain `str`.

    Examples
    --------
    >>> from pathlib import Path
    >>> path_of(Path("a")), path_of("b"), path_of(None)
    ('a', 'b', None)
    """
    if not isinstance_of(value, (str, os.PathLike)):
        return None
    return _converted(lambda: plain(os.fsdecode(value)))  # type: ignore[arg-type]


def whole_number_of(value: object) -> int | None:
    """Return a whole number, any object with ``__index__`` except a truth value, as an `int`.

    Examples
    --------
    >>> whole_number_of(3), whole_number_of(True), whole_number_of(3.0)
    (3, None, None)
    """
    return None if _is_truth_value(value) else _converted(lambda: operator.index(value) + 0)  # type: ignore[arg-type]


def number_of(value: object) -> float | None:
    """Return a real number that is not NaN, of any type except a truth value, as a `float`.

    Examples
    --------
    >>> from fractions import Fraction
    >>> number_of(Fraction(1, 4)), number_of("1"), number_of(float("nan"))
    (0.25, None, None)
    """
    if _is_truth_value(value) or not isinstance_of(value, Real):
        return None
    number = _converted(lambda: float(value))  # type: ignore[arg-type]
    return None if number is None or math.isnan(number) else number


def isinstance_of(value: object, kinds: Any) -> bool:
    """Return whether an object's type is one of some types; its ``__class__`` is not asked."""
    return _converted(lambda: issubclass(type(value), kinds)) or False


def _is_truth_value(value: object) -> bool:
    kind = type(value)
    if kind is bool:
        return True
    if kind is int or kind is float:
        # To look for ``dtype``, and to handle the exception, takes 100 µs: longer than all else
        # that makes a task.
        return False
    # NumPy before 2.3 takes its booleans for numbers.
    code = _converted(lambda: value.dtype.kind)  # type: ignore[attr-defined]
    return isinstance(code, str) and code == "b"


def _converted(convert: Callable[[], T]) -> T | None:
    try:
        return convert()
    except BaseException as error:  # it may run any code of the user
        if is_from_outside(error):
            raise
        return None

"""Warns of functions that draw random numbers from a generator of this process.

``numpy.random.rand`` and ``random.random`` are methods of a generator. The generator is pickled
with each call, in the same state, so that all calls draw the same numbers. Any thread may call
`warn_of_generator`; it raises nothing but the warning, if a filter makes an exception of it.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

from daskbatch.errors import BatchWarning
from daskbatch.serialization.safe_text import attribute, callable_name, text_attribute, type_name
from daskbatch.user_code import CodeLine, user_line

#: For each file, what `warnings` has shown of it: a line in a loop is told of once.
_shown: dict[str, dict[Any, Any]] = {}


def warn_of_generator(function: Callable[..., Any]) -> None:
    """Warn if a function is a method of a generator of random numbers, or a partial of one."""
    inner = attribute(function, "func")
    generator = attribute(function if inner is None else inner, "__self__")
    if not _is_generator(generator):
        return
    text = (
        f"all calls of {callable_name(function)!r} draw the same numbers: it is a method of a "
        f"generator ({type_name(generator)}), whose state is sent with each call. Call a function "
        "that makes a generator itself, for example from a seed among its arguments"
    )
    filename, number, module = user_line() or CodeLine("<unknown>", 0, "<unknown>")
    registry = _shown.setdefault(filename, {})
    warnings.warn_explicit(text, BatchWarning, filename, number, module, registry)


def _is_generator(obj: object) -> bool:
    if issubclass(type(obj), random.Random):
        return True
    if type_name(obj) not in ("RandomState", "Generator"):
        return False
    return (text_attribute(type(obj), "__module__") or "").startswith("numpy.random")

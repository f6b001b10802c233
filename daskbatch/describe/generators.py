"""Warns of functions that draw random numbers from a generator of this process.

``numpy.random.rand`` and ``random.random`` are methods of a generator. The generator is pickled
with each call, in the same state, so that all calls draw the same numbers. Any thread may call
`warn_of_generator`; it raises nothing but the warning, if a filter makes an exception of it.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

from daskbatch.errors import BatchWarning
from daskbatch.serialization.safe_text import attribute, callable_name, text_attribute, type_name


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
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_of_package(frame.f_globals):
        frame = frame.f_back
    module = frame.f_globals.get("__name__") or "<unknown>"
    warnings.warn_explicit(text, BatchWarning, frame.f_code.co_filename, frame.f_lineno, module)


def _is_generator(obj: object) -> bool:
    if issubclass(type(obj), random.Random):
        return True
    if type_name(obj) not in ("RandomState", "Generator"):
        return False
    return (text_attribute(type(obj), "__module__") or "").startswith("numpy.random")


def _is_of_package(names: dict[str, Any]) -> bool:
    module = names.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] == "daskbatch"

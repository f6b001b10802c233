"""Makes sure that the arguments which fill a template are what they must be there.

Does not know the task that they make; messages say the line of the file that uses them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from daskbatch.describe.environment import is_value, is_variable
from daskbatch.describe.template.expressions import (
    Constant,
    Evaluator,
    Expression,
    Scope,
    always,
    describe,
)
from daskbatch.describe.template.model import MOST
from daskbatch.errors import SpecError

#: Gives a value as it is to be, or raises `ValueError` with what was expected.
Check = Callable[[Any], Any]


def checked(scope: Scope, expression: Expression | None, check: Check) -> Evaluator | Constant:
    """Make a step that checks its values; at once, where all calls share one.

    Raises
    ------
    SpecError
        The one is wrong.
    """
    if expression is None:
        return Constant(None)
    step, where = scope.step(expression), f"{scope.file}:{expression.line}"

    def give(given: Sequence[Any]) -> Any:
        value = call(given)
        try:
            return check(value)
        except ValueError as error:
            raise SpecError(f"{where}: found {describe(value)}: expected {error}") from None

    call = always(step)
    return Constant(give(())) if isinstance(step, Constant) else give


def a_function(value: Any) -> Any:
    if not callable(value):
        raise ValueError("a function, which is the target")
    return value


def an_executable(value: Any) -> Any:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("an executable, as str or Path, which is the target")
    return value


def _either(value: Any) -> Any:
    return value if callable(value) else an_executable(value)


#: What each type of task runs.
TARGETS: dict[str, Check] = {
    "function": a_function,
    "process": an_executable,
    "job": _either,
}


def a_name(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError("a text, which is the name of the task")
    return value


def a_count(value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError("a whole number from 1 for num_procs")
    return int(value)


def a_directory(value: Any) -> Any:
    if not (value is None or (isinstance(value, (str, Path)) and str(value))):
        raise ValueError("a directory, as str or Path, for cwd")
    return value


def an_environment(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError("a dict of str to str for env")
    for name, text in value.items():
        if not isinstance(name, str) or not is_value(text):
            raise ValueError(f"a dict of str to str for env; {name!r} is wrong in it")
        if not is_variable(name):
            raise ValueError(f"names of environment variables for env; {name!r} cannot be one")
    return {name: os.fsdecode(text) for name, text in value.items()}


def a_text(value: Any) -> str:
    if not is_value(value):
        raise ValueError("a text for env")
    return os.fsdecode(value)


def a_duration(value: Any) -> float:
    number: Any = value  # a `Real` compares, which type checkers do not know
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= number <= MOST:
        raise ValueError("a number from 0, which is a part of the timeout")
    return float(number)


def a_path(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """Give what `Batch.read` takes: one path, or a directory and a name."""
    if isinstance(value, (str, Path)) and value != "":
        return value, ()
    if (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(each, (str, Path)) and each != "" for each in value)
    ):
        return value[0], (value[1],)
    raise ValueError("a path, as str or Path, or a pair of them: base_dir, name")

"""Checks the values of a template's keys, such as its target, cwd and env.

Each ``check_...`` function is a `Check`. `compile_checked` turns its `ValueError` into a
`SpecError` that names the line of the file. Pure functions.
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
    as_evaluator,
    describe,
)
from daskbatch.describe.template.model import MAX_NUMBER
from daskbatch.errors import SpecError

#: Returns a value as the task needs it; raises `ValueError` with what was expected.
Check = Callable[[Any], Any]


def compile_checked(
    scope: Scope, expression: Expression | None, check: Check
) -> Evaluator | Constant:
    """Compile an expression into an evaluator that checks its values; checks a constant at once.

    Parameters
    ----------
    scope : Scope
        The meaning of the names in the expression.
    expression : Expression, optional
        The value in the file; None if the file has none: the result is the constant None.
    check : Check
        Checks the value.

    Raises
    ------
    SpecError
        The constant is wrong.
    """
    if expression is None:
        return Constant(None)
    compiled, where = scope.compile(expression), f"{scope.file}:{expression.line}"
    get_value = as_evaluator(compiled)

    def evaluate(given: Sequence[Any]) -> Any:
        value = get_value(given)
        try:
            return check(value)
        except ValueError as error:
            raise SpecError(f"{where}: found {describe(value)}: expected {error}") from None

    return Constant(evaluate(())) if isinstance(compiled, Constant) else evaluate


def check_function(value: Any) -> Any:
    if not callable(value):
        raise ValueError("a function, which is the target")
    return value


def check_executable(value: Any) -> Any:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("an executable, as str or Path, which is the target")
    return value


def _check_function_or_executable(value: Any) -> Any:
    return value if callable(value) else check_executable(value)


#: How the target of each type of task is checked.
TARGET_CHECKS: dict[str, Check] = {
    "function": check_function,
    "process": check_executable,
    "job": _check_function_or_executable,
}


def check_name(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError("a text, which is the name of the task")
    return value


def check_count(value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError("a whole number from 1 for num_procs")
    return int(value)


def check_directory(value: Any) -> Any:
    if not (value is None or (isinstance(value, (str, Path)) and str(value))):
        raise ValueError("a directory, as str or Path, for cwd")
    return value


def check_environment(value: Any) -> dict[str, str] | None:
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


def check_variable(value: Any) -> str:
    if not is_value(value):
        raise ValueError("a text for env")
    return os.fsdecode(value)


def check_duration(value: Any) -> float:
    number: Any = value  # a `Real` can be compared, which type checkers do not know
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= number <= MAX_NUMBER:
        raise ValueError("a number from 0, which is a part of the timeout")
    return float(number)


def check_path(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what `Batch.read` takes: one path, or a directory and a name."""
    if isinstance(value, (str, Path)) and value != "":
        return value, ()
    if (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(each, (str, Path)) and each != "" for each in value)
    ):
        return value[0], (value[1],)
    raise ValueError("a path, as str or Path, or a pair of them: base_dir, name")

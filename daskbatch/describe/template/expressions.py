"""The values in a template: literals, names of arguments, lists, and calls of functions.

Each expression is compiled once into an *evaluator*, a function of the arguments of a call, so that
a call does not walk over a tree. Evaluators keep no state; any number of threads may call them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from daskbatch.describe.template.yaml_scalars import Plain
from daskbatch.errors import SpecError
from daskbatch.serialization.safe_text import guarded, type_name

#: Messages show a value only if its text is not longer.
_MAX_SHOWN_LETTERS = 60


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that is written in the file."""

    line: int
    value: Plain


@dataclass(frozen=True, slots=True)
class Identifier:
    """The name of an argument, which stands for its value."""

    line: int
    name: str


@dataclass(frozen=True, slots=True)
class ListExpression:
    """A list; each call makes a new one."""

    line: int
    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class CallExpression:
    """A call of an argument that is a function."""

    line: int
    function: str
    args: tuple[Expression, ...]


#: A value in a file.
Expression = Literal | Identifier | ListExpression | CallExpression

#: Computes a value from the arguments of a call, in the order of their declaration.
Evaluator = Callable[[Sequence[Any]], Any]


def names(expression: Expression) -> Iterator[tuple[str, int]]:
    """Yield the names in an expression, with their lines."""
    if isinstance(expression, Identifier):
        yield expression.name, expression.line
    elif isinstance(expression, CallExpression):
        yield expression.function, expression.line
        for each in expression.args:
            yield from names(each)
    elif isinstance(expression, ListExpression):
        for each in expression.items:
            yield from names(each)


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is the same for all calls."""

    value: Any


@dataclass(frozen=True, slots=True)
class Scope:
    """The meaning of the names in a template.

    Parameters
    ----------
    file : str
        The name of the file in messages.
    known : mapping
        The values of the import arguments, by name.
    positions : mapping
        The positions of the other arguments among the arguments of a call, by name.
    """

    file: str
    known: Mapping[str, Any]
    positions: Mapping[str, int]

    def compile(self, expression: Expression) -> Evaluator | Constant:
        """Compile an expression.

        Raises
        ------
        SpecError
            It calls an import argument that is not a function.
        """
        if isinstance(expression, Literal):
            return Constant(expression.value)
        if isinstance(expression, Identifier):
            return self._compile_name(expression.name)
        if isinstance(expression, ListExpression):
            items = self.compile_all(expression.items)
            return lambda given: list(items(given))
        return self._compile_call(expression)

    def compile_all(
        self, expressions: Sequence[Expression]
    ) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """Compile expressions into one evaluator, which returns the tuple of their values."""
        compiled = [self.compile(each) for each in expressions]
        if all(isinstance(each, Constant) for each in compiled):
            values = tuple(each.value for each in compiled if isinstance(each, Constant))
            return lambda given: values
        if len(compiled) > 1 and all(isinstance(each, itemgetter) for each in compiled):
            return itemgetter(*(self.positions[each.name] for each in expressions))  # type: ignore[union-attr]
        evaluators = tuple(map(as_evaluator, compiled))
        return lambda given: tuple([evaluate(given) for evaluate in evaluators])

    def _compile_name(self, name: str) -> Evaluator | Constant:
        if name in self.positions:
            return itemgetter(self.positions[name])
        return Constant(self.known[name])

    def _compile_call(self, expression: CallExpression) -> Evaluator:
        name, where = expression.function, f"{self.file}:{expression.line}"
        compiled, get_args = self._compile_name(name), self.compile_all(expression.args)
        if isinstance(compiled, Constant):
            _require_callable(compiled.value, name, where)
        get_function = as_evaluator(compiled)

        def call(given: Sequence[Any]) -> Any:
            function, args = get_function(given), get_args(given)
            _require_callable(function, name, where)
            try:
                return function(*args)
            except Exception as error:
                error.add_note(f"raised by {name}, which {where} calls")
                raise

        return call


def as_evaluator(compiled: Evaluator | Constant) -> Evaluator:
    """Return an evaluator, also for a constant."""
    if not isinstance(compiled, Constant):
        return compiled
    value = compiled.value
    return lambda given: value


def _require_callable(function: object, name: str, where: str) -> None:
    if not callable(function):
        raise SpecError(
            f"{where}: a map {{{name}: [...]}} calls {name!r}: expected a function there, "
            f"not {describe(function)}"
        )


def describe(value: object) -> str:
    """Describe an argument in a message; it may be large, and of any type."""
    kind = "None" if value is None else f"a {type_name(value)}"
    if not issubclass(type(value), (str, int, float)):
        return kind
    # Python refuses to write a number of 5 000 digits.
    text = guarded(partial(repr, value), lambda _: kind)
    return text if len(text) <= _MAX_SHOWN_LETTERS else kind

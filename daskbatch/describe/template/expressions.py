"""The values of a template: literals, names of arguments, lists, and calls of functions.

Does not know what a value is for. An expression is turned into a *step* once, and a step is
called with each call's arguments: so a call costs what it calls, and no walk over a tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from daskbatch.describe.access import shown
from daskbatch.describe.template.yaml_scalars import Plain
from daskbatch.errors import SpecError


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that stands in the file."""

    line: int
    value: Plain


@dataclass(frozen=True, slots=True)
class Identifier:
    """The argument of that name."""

    line: int
    name: str


@dataclass(frozen=True, slots=True)
class ListExpression:
    """A list; a new one for each call."""

    line: int
    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class CallExpression:
    """A call of an argument that is a function."""

    line: int
    function: str
    args: tuple[Expression, ...]


Expression = Literal | Identifier | ListExpression | CallExpression

#: Gives a value out of the arguments of a call.
Evaluator = Callable[[Sequence[Any]], Any]


def names(expression: Expression) -> Iterator[tuple[str, int]]:
    """Give the names in an expression, with their lines."""
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
    """A value that all calls share."""

    value: Any


@dataclass(frozen=True, slots=True)
class Scope:
    """What the names of a template stand for.

    Parameters
    ----------
    file : str
        What messages call the file.
    known : mapping
        Arguments that are there already.
    slots : mapping
        Where among the arguments of a call the others will be.
    """

    file: str
    known: Mapping[str, Any]
    slots: Mapping[str, int]

    def step(self, expression: Expression) -> Evaluator | Constant:
        """Turn an expression into what gives its value.

        Raises
        ------
        SpecError
            It calls an argument that is no function.
        """
        if isinstance(expression, Literal):
            return Constant(expression.value)
        if isinstance(expression, Identifier):
            return self._name(expression.name)
        if isinstance(expression, ListExpression):
            items = self.steps(expression.items)
            return lambda given: list(items(given))
        return self._apply(expression)

    def steps(
        self, expressions: Sequence[Expression]
    ) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """Turn expressions into what gives all their values."""
        steps = [self.step(each) for each in expressions]
        if all(isinstance(each, Constant) for each in steps):
            values = tuple(each.value for each in steps if isinstance(each, Constant))
            return lambda given: values
        if len(steps) > 1 and all(isinstance(each, itemgetter) for each in steps):
            return itemgetter(*(self.slots[each.name] for each in expressions))  # type: ignore[union-attr]
        calls = tuple(map(always, steps))
        return lambda given: tuple([call(given) for call in calls])

    def _name(self, name: str) -> Evaluator | Constant:
        if name in self.slots:
            return itemgetter(self.slots[name])
        return Constant(self.known[name])

    def _apply(self, expression: CallExpression) -> Evaluator:
        name, where = expression.function, f"{self.file}:{expression.line}"
        found, values = self._name(name), self.steps(expression.args)
        if isinstance(found, Constant):
            _require_callable(found.value, name, where)
        get = always(found)

        def call(given: Sequence[Any]) -> Any:
            function, args = get(given), values(given)
            _require_callable(function, name, where)
            try:
                return function(*args)
            except Exception as error:
                error.add_note(f"raised by {name}, which {where} calls")
                raise

        return call


def always(step: Evaluator | Constant) -> Evaluator:
    """Make a step of what may be known."""
    if not isinstance(step, Constant):
        return step
    value = step.value
    return lambda given: value


def _require_callable(function: object, name: str, where: str) -> None:
    if not callable(function):
        raise SpecError(
            f"{where}: a map {{{name}: [...]}} calls {name!r}: expected a function there, "
            f"not {describe(function)}"
        )


def describe(value: object) -> str:
    """Say what an argument is, for messages; it may be large, and of any type."""
    if isinstance(value, (str, int, float)) and len(text := shown(value)) <= 60:
        return text
    return "None" if value is None else f"a {type(value).__name__}"

"""Matches the arguments of a call to the names that a template declares.

Missing and surplus arguments are refused with a `SpecError`. For a missing argument the message
names the line of the file that uses it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from daskbatch.describe.template.model import Parameter
from daskbatch.describe.template.typos import did_you_mean
from daskbatch.errors import SpecError


class _UnusedDefault:
    """The class of `UNUSED`: shows in a signature that an argument can be left out."""

    def __repr__(self) -> str:
        return "<unused>"


#: In a signature, the default of an argument that nothing in the file uses.
UNUSED = _UnusedDefault()

#: In a signature, what a required parameter has for a default.
_REQUIRED = inspect.Parameter.empty


class Arguments:
    """The arguments that a template declares for a call. Any number of threads may use it.

    Parameters
    ----------
    caller : str
        The name of the function in messages.
    file : str
        The name of the file in messages.
    positional, keywords : sequence of Parameter
        The declared arguments.
    used : mapping
        The names that the file uses, each with the line.
    """

    def __init__(
        self,
        caller: str,
        file: str,
        positional: Sequence[Parameter],
        keywords: Sequence[Parameter],
        used: Mapping[str, int],
    ) -> None:
        self._caller = caller
        self._file = file
        self._positional = positional
        self._keywords = {str(each.keyword): each for each in keywords}
        self._used = used
        self._count = len(positional)
        #: By name: the position of the argument in what `in_order` returns.
        self.positions = {
            each.name: position for position, each in enumerate((*positional, *keywords))
        }

    def in_order(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """Return all arguments in the order of their declaration.

        Raises
        ------
        SpecError
            An argument that the file uses is missing, or an argument is not declared.
        """
        if len(args) == self._count and not kwargs and not self._keywords:
            return args
        found = self.by_name(args, kwargs)
        self.require(found, self._used)
        return [found.get(name) for name in self.positions]

    def by_name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by their names in the file.

        Raises
        ------
        SpecError
            There are too many, or one is not declared.
        """
        if len(args) > self._count:
            names = ", ".join(each.name for each in self._positional)
            takes = f"{self._count} by position ({names})" if names else "none by position"
            raise SpecError(f"{self._caller}() takes {takes}, but {len(args)} were given")
        found = {each.name: value for each, value in zip(self._positional, args, strict=False)}
        for keyword, value in kwargs.items():
            if keyword not in self._keywords:
                raise SpecError(
                    f"{self._caller}() takes no keyword {keyword!r}: {self._hint(keyword)}"
                )
            found[self._keywords[keyword].name] = value
        return found

    def _hint(self, keyword: str) -> str:
        if keyword in self.positions and keyword in (each.name for each in self._positional):
            return "give it by position"
        if not self._keywords:
            return "it takes none"
        return f"it takes {', '.join(self._keywords)}{did_you_mean(keyword, self._keywords)}"

    def require(self, found: Mapping[str, Any], used: Mapping[str, int]) -> None:
        """Make sure that no argument is missing that the file uses.

        Parameters
        ----------
        found : mapping
            The arguments that were given, by name.
        used : mapping
            The names that the file uses, each with the line.

        Raises
        ------
        SpecError
            An argument is missing.
        """
        for each in (*self._positional, *self._keywords.values()):
            if each.name in used and each.name not in found:
                what = "argument" if each.keyword is None else "keyword"
                raise SpecError(
                    f"{self._caller}() lacks the {what} {each.keyword or each.name!r}, which "
                    f"{self._file} uses in line {used[each.name]}"
                )

    def signature(self) -> inspect.Signature:
        """Return the signature; arguments that nothing uses have the default `UNUSED`."""
        parameters: list[inspect.Parameter] = []
        for each in reversed(self._positional):
            # Python requires that parameters with defaults come after those without.
            required = each.name in self._used or (
                parameters and parameters[-1].default is _REQUIRED
            )
            default = _REQUIRED if required else UNUSED
            parameters.append(
                inspect.Parameter(each.name, inspect.Parameter.POSITIONAL_ONLY, default=default)
            )
        parameters.reverse()
        for keyword, each in self._keywords.items():
            default = _REQUIRED if each.name in self._used else UNUSED
            parameters.append(
                inspect.Parameter(keyword, inspect.Parameter.KEYWORD_ONLY, default=default)
            )
        return inspect.Signature(parameters)

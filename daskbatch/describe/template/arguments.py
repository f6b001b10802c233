"""Brings the arguments of a call into order, and says which are missing or too many.

Does not know what they are for, but for the line in which a template uses each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter as Shown
from inspect import Signature
from typing import Any

from daskbatch.describe.template.model import Parameter
from daskbatch.describe.template.typos import did_you_mean
from daskbatch.errors import SpecError


class _Unused:
    def __repr__(self) -> str:
        return "<unused>"


#: What a signature shows for an argument that nothing uses: it can be left out.
UNUSED = _Unused()


class Arguments:
    """The arguments that a template declares for a call.

    Parameters
    ----------
    caller : str
        What messages call the function.
    file : str
        What they call the file.
    positional, keywords : sequence of Parameter
        What is declared.
    used : mapping
        The names that something uses, each with the line.
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
        #: Where the argument of each name is among what `take` gives.
        self.slots = {each.name: slot for slot, each in enumerate((*positional, *keywords))}

    def take(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """Give all arguments in order.

        Raises
        ------
        SpecError
            One is missing that something uses, or is not declared.
        """
        if len(args) == self._count and not kwargs and not self._keywords:
            return args
        found = self.named(args, kwargs)
        self.require(found, self._used)
        return [found.get(name) for name in self.slots]

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Give the arguments by their names in the file.

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
        if keyword in self.slots and keyword in (each.name for each in self._positional):
            return "give it by position"
        if not self._keywords:
            return "it takes none"
        return f"it takes {', '.join(self._keywords)}{did_you_mean(keyword, self._keywords)}"

    def require(self, found: Mapping[str, Any], used: Mapping[str, int]) -> None:
        """Make sure that none is missing that something uses.

        Raises
        ------
        SpecError
            One is.
        """
        for each in (*self._positional, *self._keywords.values()):
            if each.name in used and each.name not in found:
                what = "argument" if each.keyword is None else "keyword"
                raise SpecError(
                    f"{self._caller}() lacks the {what} {each.keyword or each.name!r}, which "
                    f"{self._file} uses in line {used[each.name]}"
                )

    def signature(self) -> Signature:
        """Say how to call it; what nothing uses has `UNUSED` for a default."""
        shown: list[Shown] = []
        for each in reversed(self._positional):
            # Python wants those with defaults behind those without.
            needed = each.name in self._used or (shown and shown[-1].default is Shown.empty)
            default = Shown.empty if needed else UNUSED
            shown.append(Shown(each.name, Shown.POSITIONAL_ONLY, default=default))
        shown.reverse()
        for keyword, each in self._keywords.items():
            default = Shown.empty if each.name in self._used else UNUSED
            shown.append(Shown(keyword, Shown.KEYWORD_ONLY, default=default))
        return Signature(shown)

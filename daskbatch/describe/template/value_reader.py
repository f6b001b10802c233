"""Reads the values in a PTD file: decides which words are names, and which maps are calls.

A mistake is a `TemplateError` with the file and the line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from unicodedata import normalize

from daskbatch.describe.template.expressions import (
    CallExpression,
    Expression,
    Identifier,
    ListExpression,
    Literal,
)
from daskbatch.describe.template.typos import did_you_mean, is_likely_typo
from daskbatch.describe.template.yaml_nodes import (
    YamlList,
    YamlMap,
    YamlNode,
    YamlScalar,
    describe_node,
    template_error,
)
from daskbatch.errors import TemplateError

#: A longer word is left as it is written: normalising a word of many accents takes seconds.
_MAX_NAME_LETTERS = 255


def identifier(text: str) -> str:
    r"""Return a word as Python reads it if it can be a name; any other text unchanged.

    An accent can be part of its letter or follow it. Both look the same, and editors write
    either.

    Examples
    --------
    >>> identifier("cafe\u0301") == "caf\u00e9"
    True
    """
    if text.isascii() or len(text) > _MAX_NAME_LETTERS or not text.isidentifier():
        return text
    return normalize("NFKC", text)


class ValueReader:
    """Reads the values of one file into expressions.

    Parameters
    ----------
    file : str
        The name of the file in messages.
    declared : mapping
        The names of arguments, as its keys. The reader looks them up at each use, so the caller
        may add more.
    later : collection of str
        Names that are declared below, and cannot be used yet.
    """

    def __init__(
        self, file: str, declared: Mapping[str, object], later: Collection[str] = ()
    ) -> None:
        self._file = file
        self._declared = declared
        self._later = later

    def _error(self, line: int, what: str) -> TemplateError:
        return template_error(self._file, line, what)

    def any(self, node: YamlNode) -> Expression:
        """Read a value of any kind."""
        if isinstance(node, YamlList):
            return ListExpression(node.line, tuple(map(self.any, node.items)))
        if isinstance(node, YamlMap):
            return self.call(node)
        if node.plain and not node.text:
            raise self._error(node.line, "a value is missing: write null if that is meant")
        return self._scalar(node, typos=True)

    def text(self, node: YamlNode, what: str, typos: bool = True) -> Expression:
        """Read a value that must be a text, a name or a call.

        Parameters
        ----------
        node : YamlNode
            The value.
        what : str
            The name of the value in messages.
        typos : bool
            Whether a text is refused that is probably a mistyped name.
        """
        if isinstance(node, YamlMap):
            return self.call(node)
        if isinstance(node, YamlScalar) and isinstance(node.value, str) and node.value:
            return self._scalar(node, typos)
        quoted = isinstance(node, YamlScalar) and node.value is not None and node.plain
        expected = f"expected a text{', quoted' if quoted else ''}, a declared name or a call"
        raise self._error(node.line, f"{what} is {describe_node(node)}: {expected}")

    def number(
        self, node: YamlNode, what: str, least: int, most: float, whole: bool = False
    ) -> Expression:
        """Read a value that must be a number, a name or a call.

        Parameters
        ----------
        node : YamlNode
            The value.
        what : str
            The name of the value in messages.
        least, most : float
            The smallest and the largest number that is accepted.
        whole : bool
            Whether it must be a whole number.
        """
        value = self.any(node)
        if isinstance(value, (Identifier, CallExpression)):
            return value
        number = value.value if isinstance(value, Literal) else None
        if (
            not isinstance(number, int if whole else (int, float))
            or isinstance(number, bool)
            or not least <= number <= most
        ):
            kind = "a whole number" if whole else "a number"
            hint = did_you_mean(number, self._declared) if isinstance(number, str) else ""
            expected = f"expected {kind} from {least}, a declared name or a call{hint}"
            raise self._error(node.line, f"{what} is {describe_node(node)}: {expected}")
        return value

    def reference(self, node: YamlNode, what: str, expected: str) -> Expression:
        """Read a value that only an argument can supply, such as a function: a name or a call.

        Parameters
        ----------
        node : YamlNode
            The value.
        what, expected : str
            The name of the value, and what was expected, in messages.
        """
        if isinstance(node, YamlMap):
            return self.call(node)
        if isinstance(node, YamlScalar) and isinstance(node.value, str):
            value = self._scalar(node, typos=False)
            if isinstance(value, Identifier):
                return value
            hint = did_you_mean(node.value, self._declared)
            what = f"{what} {node.value!r} is declared nowhere"
            raise self._error(node.line, f"{what}: expected {expected}{hint}")
        raise self._error(node.line, f"{what} is {describe_node(node)}: expected {expected}")

    def call(self, node: YamlMap) -> CallExpression:
        """Read ``{function: [arguments]}``."""
        if len(node.entries) != 1:
            what = f"a map of {len(node.entries)} keys: a map is a call, {{function: [arguments]}}"
            raise self._error(node.line, f"{what}; a dict must come as an argument")
        function, line, args = node.entries[0]
        function = identifier(function)
        self._require_known(function, line)
        if function not in self._declared:
            expected = "a map is a call, expected the name of an argument that is a function"
            hint = did_you_mean(function, self._declared)
            raise self._error(line, f"{function!r} is declared nowhere: {expected}{hint}")
        if not isinstance(args, YamlList):
            what = f"the call of {function!r} has {describe_node(args)} for its arguments"
            raise self._error(line, f"{what}: expected a list, [] where there are none")
        return CallExpression(line, function, tuple(map(self.any, args.items)))

    def _scalar(self, node: YamlScalar, typos: bool) -> Literal | Identifier:
        value = node.value
        if isinstance(value, str):
            word = identifier(value)
            self._require_known(word, node.line)
            if word in self._declared:
                return Identifier(node.line, word)
            if typos and node.plain:
                for name in self._declared:
                    if is_likely_typo(word, name):
                        what = f"{value!r} is declared nowhere, but {name!r} is"
                        raise self._error(node.line, f"{what}: quote it if it is to be a text")
        return Literal(node.line, value)

    def _require_known(self, name: str, line: int) -> None:
        if name in self._later:
            expected = "expected an import argument that is declared above"
            raise self._error(line, f"{name!r} cannot be used yet: {expected}")

"""Finds the meaning of an unquoted word in a YAML file, or refuses an ambiguous word.

YAML 1.1 and 1.2 read some words differently: ``on`` is true in one, and a text in the other. A word
has the meaning that both versions give it. If they differ, the word is refused, and the message
says what to write.
"""

from __future__ import annotations

import math
import re

from yaml import ScalarNode
from yaml.resolver import Resolver

#: The types of values that a word can mean.
Plain = None | bool | int | float | str

#: Resolves a word as YAML 1.1 does, to the tag of its type.
_YAML_1_1 = Resolver()
#: The start of the tags of YAML's own types.
_TAG_PREFIX = "tag:yaml.org,2002:"

#: The core schema of YAML 1.2; a word that matches none of these is a text.
_YAML_1_2 = (
    ("null", re.compile(r"~|null|Null|NULL|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")),
    (
        "float",
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
    ),
)

#: A longer number is refused: it is probably meant to be a text.
_MAX_NUMBER_LETTERS = 100


def resolve(text: str) -> Plain:
    """Return the meaning of an unquoted word.

    Raises
    ------
    ValueError
        The word is ambiguous; the message says what to write.

    Examples
    --------
    >>> resolve("0x1F"), resolve("1.5"), resolve("true"), resolve("null"), resolve("word")
    (31, 1.5, True, None, 'word')
    >>> resolve("on")
    Traceback (most recent call last):
        ...
    ValueError: 'on' is true or false to some readers of YAML, and a text to others: write true or \
false, or quote it
    """
    tag: str = _YAML_1_1.resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    old = tag.removeprefix(_TAG_PREFIX)
    new = next((kind for kind, form in _YAML_1_2 if form.fullmatch(text)), "str")
    digits = text.lstrip("+-")
    if old != new or text == "~" or (new == "int" and re.match("0[0-9]", digits)):
        raise ValueError(_advice(text, old, new))
    if new == "str":
        return text
    if new == "null":
        return None
    if new == "bool":
        return text.lower() == "true"
    if len(text) > _MAX_NUMBER_LETTERS:
        raise ValueError(f"{text[:20]!r}... is a number of {len(text)} characters: quote a text")
    if new == "int":
        return int(text, 16 if digits.startswith("0x") else 10)
    number = float(re.sub(r"\.(?=[in])", "", text.lower()))
    if math.isinf(number) and "inf" not in text.lower():
        raise ValueError(f"{text!r} is too large for a number: quote it if it should be a text")
    return number


def _advice(text: str, old: str, new: str) -> str:
    """Say what to write instead of a word that is `old` in YAML 1.1 and `new` in YAML 1.2."""
    if text == "~":
        return "'~' is null, and looks like a home directory: write null, or quote it"
    if old == "merge":
        return "'<<' merges maps for some readers of YAML: write the keys out"
    if old == "bool":
        return _differs(text, "true or false", "a text", "write true or false, or quote it")
    if old == "timestamp":
        return _differs(text, "a date", "a text", "quote it")
    if ":" in text:
        return _differs(text, "a number to the base of 60", "a text", "quote it")
    if old == "int" and new == "int":
        number = "write a number without zeros in front, or quote a text"
        return _differs(text, "octal", "decimal", number)
    if "int" in (old, new) or "float" in (old, new):
        number = "write a number as in 1000 or 1.0e+3, or quote a text"
        return _differs(text, "a number", "a text", number)
    return _differs(text, "something special", "a text", "quote it")


def _differs(text: str, some: str, others: str, write: str) -> str:
    return f"{text!r} is {some} to some readers of YAML, and {others} to others: {write}"

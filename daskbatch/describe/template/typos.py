"""Finds the declared word that a mistyped word probably stands for.

Pure functions, based on `difflib` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

#: Longer words are cut for the comparison, which takes quadratic time.
_MAX_COMPARED_LETTERS = 80

#: Shorter words resemble too many others by chance.
_MIN_TYPO_LETTERS = 5


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """Return a hint on the known word that is most similar to a wrong one; empty if none is."""
    close = get_close_matches(text[:_MAX_COMPARED_LETTERS], list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def is_likely_typo(text: str, name: str) -> bool:
    """Return whether a word, which may be a text, is probably a name that was mistyped.

    All letters but one must match, in their order: one may be wrong, missing, added or moved. That
    is stricter than for a hint, since the file is refused. Words that differ only by digits are
    different words, such as ``file1`` and ``file2``. Case and underscores do not count.

    Examples
    --------
    >>> is_likely_typo("matrx", "matrix"), is_likely_typo("matrices", "matrix")
    (True, False)
    """
    if min(len(text), len(name)) < _MIN_TYPO_LETTERS or not text.isidentifier():
        return False
    text, name = text.casefold().replace("_", ""), name.casefold().replace("_", "")
    longest = max(len(text), len(name))
    if text == name or abs(len(text) - len(name)) > 1 or longest > _MAX_COMPARED_LETTERS:
        return text == name
    if _without_digits(text) == _without_digits(name):
        return False
    if text[0] != name[0] and text[-1] != name[-1]:
        return False
    matcher = SequenceMatcher(None, text, name, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) >= longest - 1


def _without_digits(text: str) -> str:
    return "".join(letter for letter in text if not letter.isdigit())

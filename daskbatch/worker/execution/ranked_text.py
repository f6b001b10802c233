"""The text of a stream of a parallel job: the lines of all ranks, in the order of the ranks.

An immutable value; any number of threads may read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate


class RankedText(str):
    """The text of all ranks, which also knows the text of each.

    It is a `str`, so that it is stored and sent as the output of any other task.

    Parameters
    ----------
    texts : iterable of str
        The text of each rank, as it was written.

    Examples
    --------
    >>> text = RankedText(["a\\n", "", "b\\nc\\n"])
    >>> str(text), [text.rank(i) for i in range(text.size)]
    ('a\\nb\\nc', ['a', '', 'b\\nc'])
    """

    __slots__ = ("_ends",)

    _ends: tuple[int, ...]

    def __new__(cls, texts: Iterable[str]) -> RankedText:
        # The last line of a rank may lack its end: then the next rank's line would continue it.
        lines = [text if text[-1:] in ("", "\n") else text + "\n" for text in texts]
        self = super().__new__(cls, "".join(lines).removesuffix("\n"))
        self._ends = tuple(accumulate(map(len, lines)))
        return self

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self._ends)

    def rank(self, index: int) -> str:
        """Return what one rank has written, without the last newline."""
        begin = self._ends[index - 1] if index else 0
        text = self[begin : self._ends[index]]
        # The last newline of all is not part of the text.
        return text if self._ends[index] > len(self) else text.removesuffix("\n")

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (str(self), self._ends)


def _restore(text: str, ends: tuple[int, ...]) -> RankedText:
    restored = str.__new__(RankedText, text)
    restored._ends = ends
    return restored

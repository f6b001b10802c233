"""Keeps one value for each thread, which a ``with`` block sets and then restores.

It does what `contextvars.ContextVar` and `threading.local` do, for code that looks a value up for
every task: a dictionary with the thread's number as key takes a fraction of their time. Any number
of threads may use one, since each reads and writes only its own entry.
"""

from __future__ import annotations

from threading import get_ident
from typing import Generic, TypeVar

T = TypeVar("T")


class ThreadValues(dict[int, T]):
    """The values by the number of the thread, `threading.get_ident`; absent where none is set.

    Examples
    --------
    >>> names = ThreadValues[str]()
    >>> with names.set("outer"):
    ...     with names.set("inner"):
    ...         inner = names[get_ident()]
    ...     print(inner, names[get_ident()])
    inner outer
    >>> names
    {}
    """

    __slots__ = ()

    def set(self, value: T | None) -> _Setting[T]:
        """Return a context manager in which this thread has a value; None removes the value."""
        return _Setting(self, value)

    def restore(self, thread: int, outer: T | None) -> None:
        """Set the value of a thread to what it was before, or to none.

        Where every fraction of a microsecond counts, use it with ``try`` and ``finally`` instead
        of `set`.

        Parameters
        ----------
        thread : int
            The number of the calling thread.
        outer : object, optional
            The value before; None if there was none.
        """
        if outer is None:
            self.pop(thread, None)
        else:
            self[thread] = outer


class _Setting(Generic[T]):
    __slots__ = ("_outer", "_thread", "_value", "_values")

    def __init__(self, values: ThreadValues[T], value: T | None) -> None:
        self._values = values
        self._value = value

    def __enter__(self) -> None:
        self._thread = get_ident()
        self._outer = self._values.get(self._thread)
        self._values.restore(self._thread, self._value)

    def __exit__(self, *_: object) -> None:
        self._values.restore(self._thread, self._outer)

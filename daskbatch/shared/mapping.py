"""What one does with keys and values of a distributed dictionary: all that a dict does.

Does not know where it is, nor how it came about; `ddict` does.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    ValuesView,
)
from numbers import Number
from time import monotonic
from typing import Any, Self

from daskbatch.describe.access import Mode
from daskbatch.shared.dict_client import DictClient


class DictMapping(MutableMapping[Any, Any]):
    """A mapping by way of calls to who keeps it."""

    _calls: DictClient
    #: Whether ``d[key]`` waits for the key, and for how many seconds at most.
    _wait: bool
    _timeout: float | None
    #: Is told of what is about to be read or written.
    _touched: Callable[..., None] | None

    def _await_conflicting_tasks(self, mode: Mode, *keys: Any) -> None:
        """Have the background tasks over that must be, where this belongs to a Batch."""
        if self._touched is not None:
            self._touched(mode, self, keys)

    def _require_open(self) -> None:
        """Be told if this has been closed, where nobody has to be asked for anything."""
        raise NotImplementedError

    # -- one key --------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """Give a copy of the value of a key; with `wait_for_keys`, wait until it is written.

        Raises
        ------
        KeyError
            It is not there, and is not waited for.
        TimeoutError
            It is waited for, and was not written within `timeout`.
        """
        self._await_conflicting_tasks(Mode.READ, key)
        if self._wait:
            return self._calls.get_waiting(key, self._timeout)
        return self._calls.get(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """Give a copy of the value of a key, or the default; it never waits for the key.

        Parameters
        ----------
        key : object
            Whatever pickles, and is hashable.
        default : object
            What is given if the key is not there.

        Examples
        --------
        >>> batch.ddict().get("a", 0)
        0
        """
        self._await_conflicting_tasks(Mode.READ, key)
        try:
            return self._calls.get(key)
        except KeyError:
            return default

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write a copy of a value, and wake who waits for the key; `LifecycleError` if frozen."""
        self._await_conflicting_tasks(Mode.WRITE, key)
        self._calls.put(key, value)

    def __delitem__(self, key: Any) -> None:
        """Remove a key: `KeyError` if it is not there, which is never waited for."""
        self._await_conflicting_tasks(Mode.WRITE, key)
        self._calls.remove(key)

    def __contains__(self, key: object) -> bool:
        """Say whether a key is there now; this never waits for it."""
        self._await_conflicting_tasks(Mode.READ, key)
        return self._calls.has(key)

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove a key, and give its value; with `wait_for_keys` and no default, wait for it.

        Parameters
        ----------
        key : object
            Which.
        default : object, optional
            What is given if the key is not there.

        Raises
        ------
        KeyError, TimeoutError
            It is not there, and there is no default; or it was waited for in vain.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d["a"] = 1
        >>> d.pop("a"), d.pop("a", None)
        (1, None)
        """
        if len(default) > 1:
            raise TypeError(f"pop takes a key and at most one default, not {len(default)}")
        self._await_conflicting_tasks(Mode.WRITE, key)
        if self._wait and not default:
            return self._calls.pop_waiting(key, self._timeout)
        try:
            return self._calls.pop(key)
        except KeyError:
            if default:
                return default[0]
            raise

    def popitem(self) -> tuple[Any, Any]:
        """Remove a key, and give it with its value.

        Raises
        ------
        KeyError
            There is none.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d["a"] = 1
        >>> d.popitem()
        ('a', 1)
        """
        self._await_conflicting_tasks(Mode.WRITE)
        return self._calls.pop_any()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Give the value of a key, which is the default from here on if there was none.

        Parameters
        ----------
        key : object
            Which.
        default : object
            Its value if it has none.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.setdefault("a", 1), d.setdefault("a", 2)
        (1, 1)
        """
        self._await_conflicting_tasks(Mode.WRITE, key)
        return self._calls.set_default(key, default)

    def fetch_add(self, key: Any, value: Any = 1) -> Any:
        """Add to the number of a key, and give what it was; many may do so at once.

        Parameters
        ----------
        key : object
            Which; one that is not there starts at 0.
        value : number
            How much.

        Raises
        ------
        TypeError
            It is no number, or what is there is none.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.fetch_add("n"), d.fetch_add("n", 10), d["n"]
        (0, 1, 11)
        """
        if not isinstance(value, Number):
            raise TypeError(f"fetch_add adds numbers, not {value!r}")
        self._await_conflicting_tasks(Mode.WRITE, key)
        return self._calls.add(key, value)

    # -- many keys ------------------------------------------------------------------------

    def put_many(self, mapping: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> None:
        """Write many keys, in far less time than one by one.

        Parameters
        ----------
        mapping : mapping or iterable of pairs
            Keys and values.

        Raises
        ------
        LifecycleError, ServiceLost, SerializationError
            See `DDict`. Some of the keys may have been written then.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.put_many({"a": 1, "b": 2})
        >>> len(d)
        2
        """
        pairs = _pairs(mapping)
        if not pairs:
            self._require_open()
            return
        self._await_conflicting_tasks(Mode.WRITE, *(key for key, _ in pairs))
        self._calls.put_some(pairs)

    def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """Read many keys, in far less time than one by one.

        Parameters
        ----------
        keys : iterable
            Which. With `wait_for_keys`, all are waited for.

        Returns
        -------
        dict
            Their values.

        Raises
        ------
        KeyError
            Some are not there: these are its arguments.
        TimeoutError
            With `wait_for_keys`: one was not written within `timeout`, which is for all together.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.put_many({"a": 1, "b": 2})
        >>> d.get_many(["b", "a"])
        {'b': 2, 'a': 1}
        """
        wanted = list(keys)
        if not wanted:
            self._require_open()
            return {}
        self._await_conflicting_tasks(Mode.READ, *wanted)
        found = self._calls.get_some(wanted)
        missing = [key for key in wanted if key not in found]
        if missing and self._wait:
            end = None if self._timeout is None else monotonic() + self._timeout
            for key in missing:
                left = None if end is None else max(0.0, end - monotonic())
                found[key] = self._calls.get_waiting(key, left)
        elif missing:
            raise KeyError(*missing)
        return {key: found[key] for key in wanted}

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Write what is in a mapping or in pairs, as a dict does; raises what `put_many` does.

        Parameters
        ----------
        other : mapping or iterable of pairs
            Keys and values.
        **more
            Keys that are names, and their values.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.update({"a": 1}, b=2)
        >>> sorted(d)
        ['a', 'b']
        """
        pairs = _pairs(other)
        pairs += more.items()
        self.put_many(pairs)

    def __ior__(self, other: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> Self:
        self.update(other)
        return self

    def clear(self) -> None:
        """Remove all keys; `LifecycleError` if it is frozen.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d["a"] = 1
        >>> d.clear()
        >>> len(d)
        0
        """
        self._await_conflicting_tasks(Mode.WRITE)
        self._calls.everywhere("clear")

    def __iter__(self) -> Iterator[Any]:
        """Give the keys, part by part: of each those that are there when it comes to it."""
        self._await_conflicting_tasks(Mode.READ)
        return self._calls.keys()

    def __len__(self) -> int:
        """Say how many keys there are now."""
        self._await_conflicting_tasks(Mode.READ)
        return sum(self._calls.everywhere("count"))

    def values(self) -> ValuesView[Any]:
        """Give a view of the values, which are fetched as it is gone through.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.update(a=1, b=2)
        >>> sum(d.values())
        3
        """
        return _Values(self)

    def items(self) -> ItemsView[Any, Any]:
        """Give a view of keys and values, which are fetched as it is gone through.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.update(a=1, b=2)
        >>> sorted(d.items())
        [('a', 1), ('b', 2)]
        """
        return _Items(self)

    def _all_items(self) -> Iterator[tuple[Any, Any]]:
        self._await_conflicting_tasks(Mode.READ)
        return self._calls.items()

    def __eq__(self, other: object) -> bool:
        """Say whether it is the same dictionary, or a mapping with equal keys and values now."""
        if isinstance(other, DictMapping) and other._calls.uid == self._calls.uid:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        return len(self) == len(other) and dict(self.items()) == dict(other.items())


class _Values(ValuesView[Any]):
    _mapping: DictMapping

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping._all_items())

    def __contains__(self, value: object) -> bool:
        return any(value is each or value == each for each in self)


class _Items(ItemsView[Any, Any]):
    _mapping: DictMapping

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._all_items()

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2):
            return False
        # Not by `d[key]`, which may wait for the key.
        missing = object()
        value = self._mapping.get(item[0], missing)
        return value is not missing and (value is item[1] or bool(value == item[1]))


def _pairs(given: Any) -> list[tuple[Any, Any]]:
    if isinstance(given, Mapping):
        return list(given.items())
    if hasattr(given, "keys"):
        return [(key, given[key]) for key in given.keys()]  # noqa: SIM118
    pairs: list[tuple[Any, Any]] = []
    for pair in given:
        key, value = pair
        pairs.append((key, value))
    return pairs

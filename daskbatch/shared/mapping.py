"""The mapping protocol of `DDict`, implemented on a `DictClient`.

It differs from a dict: with `wait_for_keys`, ``d[key]`` waits, and there are operations on many
keys. Any number of threads may use a mapping.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
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
from typing import Any, Self

from daskbatch.describe.access import Mode
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.shared.dict_client import DictClient
from daskbatch.shared.store import operations
from daskbatch.timeouts import Deadline

#: The module is imported with the first strict task of this process.
_STRICT_ACCESS = "daskbatch.worker.execution.strict_access"


class DictMapping(MutableMapping[Any, Any]):
    """The methods of a dict, as requests to the shards of a dictionary.

    Any number of threads may use it.

    Parameters
    ----------
    client : DictClient
        Makes the requests.
    wait_for_keys : bool
        Whether ``d[key]`` waits until the key is written.
    timeout : float, optional
        Seconds that it waits at most.
    before_access : callable, optional
        Called before each access, with the mode, this mapping and the keys; no keys mean all.
    """

    def __init__(
        self,
        client: DictClient,
        wait_for_keys: bool,
        timeout: float | None,
        before_access: Callable[..., None] | None,
    ) -> None:
        self._client = client
        self._wait_for_keys = wait_for_keys
        self._timeout = timeout
        self._before_access = before_access

    def _await_conflicting_tasks(self, mode: Mode, *keys: Any) -> None:
        """Start the background tasks of this Batch that must access `keys` first; wait for them.

        A strict task must have declared the access: else this raises `UndeclaredAccess`.
        """
        if sys.modules.get(_STRICT_ACCESS) is not None:
            self._check_declared(mode.value, keys)
        if self._before_access is not None:
            self._before_access(mode, self, keys)

    @abstractmethod
    def _check_declared(self, mode: str, keys: tuple[Any, ...]) -> None:
        """Raise `UndeclaredAccess` if a strict task runs here that has not declared the access."""

    @abstractmethod
    def _require_open(self) -> None:
        """Raise `LifecycleError` if it is closed; for operations that send no request."""

    # -- one key --------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """Return a copy of the value of a key; with `wait_for_keys`, wait until it is written.

        Raises
        ------
        KeyError
            The key is not there, and is not waited for.
        TimeoutError
            The key was not written within `timeout`.
        """
        self._await_conflicting_tasks(Mode.READ, key)
        if self._wait_for_keys:
            return self._client.get_waiting(key, self._timeout)
        return self._client.get(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return a copy of the value of a key, or the default. Never waits for the key.

        Parameters
        ----------
        key : object
            Any object that can be pickled and hashed.
        default : object
            Returned if the key is not there.

        Examples
        --------
        >>> batch.ddict().get("a", 0)
        0
        """
        self._await_conflicting_tasks(Mode.READ, key)
        try:
            return self._client.get(key)
        except KeyError:
            return default

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write a copy of a value, and wake tasks that wait for the key."""
        self._await_conflicting_tasks(Mode.WRITE, key)
        self._client.put(key, value)

    def __delitem__(self, key: Any) -> None:
        """Remove a key, or raise `KeyError`. Never waits for the key."""
        self._await_conflicting_tasks(Mode.WRITE, key)
        self._client.remove(key)

    def __contains__(self, key: object) -> bool:
        """Return whether a key is there now. Never waits for the key."""
        self._await_conflicting_tasks(Mode.READ, key)
        return self._client.has(key)

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove a key and return its value; with `wait_for_keys` and no default, wait for it.

        Parameters
        ----------
        key : object
            The key.
        default : object, optional
            Returned if the key is not there.

        Raises
        ------
        KeyError
            The key is not there, and there is no default.
        TimeoutError
            The key was waited for, and was not written within `timeout`.

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
        if self._wait_for_keys and not default:
            return self._client.pop_waiting(key, self._timeout)
        try:
            return self._client.pop(key)
        except KeyError:
            if default:
                return default[0]
            raise

    def popitem(self) -> tuple[Any, Any]:
        """Remove a key and return it with its value; asks the shards one by one.

        Raises
        ------
        KeyError
            The dictionary is empty.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d["a"] = 1
        >>> d.popitem()
        ('a', 1)
        """
        self._await_conflicting_tasks(Mode.WRITE)
        return self._client.pop_any()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key; write the default first if there is none. Atomic.

        Parameters
        ----------
        key : object
            The key.
        default : object
            Its value if it has none.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.setdefault("a", 1), d.setdefault("a", 2)
        (1, 1)
        """
        self._await_conflicting_tasks(Mode.WRITE, key)
        return self._client.set_default(key, default)

    def fetch_add(self, key: Any, value: Any = 1) -> Any:
        """Add to the number of a key, and return what it was before. Atomic.

        Parameters
        ----------
        key : object
            The key; one that is not there starts at 0.
        value : number
            How much to add.

        Raises
        ------
        TypeError
            `value`, or the value that is there, is not a number.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.fetch_add("n"), d.fetch_add("n", 10), d["n"]
        (0, 1, 11)
        """
        if not isinstance(value, Number):
            raise TypeError(f"fetch_add adds numbers, not {safe_repr(value)}")
        self._await_conflicting_tasks(Mode.WRITE, key)
        return self._client.add(key, value)

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
        self._client.put_some(pairs)

    def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """Read many keys, in far less time than one by one.

        Parameters
        ----------
        keys : iterable
            The keys. With `wait_for_keys`, all of them are waited for.

        Returns
        -------
        dict
            The keys and their values.

        Raises
        ------
        KeyError
            Some keys are not there: they are the arguments of the exception.
        TimeoutError
            With `wait_for_keys`: a key was not written within `timeout`, which is for all keys
            together.

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
        found = self._client.get_some(wanted)
        missing = [key for key in wanted if key not in found]
        if missing and self._wait_for_keys:
            deadline = Deadline(self._timeout)
            for key in missing:
                found[key] = self._client.get_waiting(key, deadline.remaining())
        elif missing:
            raise KeyError(*missing)
        return {key: found[key] for key in wanted}

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Write the keys of a mapping or of pairs, as a dict does. Raises what `put_many` does.

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
        """Remove all keys, shard by shard.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d["a"] = 1
        >>> d.clear()
        >>> len(d)
        0
        """
        self._await_conflicting_tasks(Mode.WRITE)
        self._client.call_all(operations.CLEAR)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the keys, shard by shard: those that are there when a shard is asked."""
        self._await_conflicting_tasks(Mode.READ)
        return self._client.keys()

    def __len__(self) -> int:
        """Return the present number of keys; asks every shard."""
        self._await_conflicting_tasks(Mode.READ)
        return sum(self._client.call_all(operations.COUNT))

    def values(self) -> ValuesView[Any]:
        """Return a view of the values, which are fetched during the iteration.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.update(a=1, b=2)
        >>> sum(d.values())
        3
        """
        return _Values(self)

    def items(self) -> ItemsView[Any, Any]:
        """Return a view of keys and values, which are fetched during the iteration.

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
        return self._client.items()

    def __eq__(self, other: object) -> bool:
        """Return whether it is the same dictionary, or a mapping with equal contents now."""
        if isinstance(other, DictMapping) and other._client.uid == self._client.uid:
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

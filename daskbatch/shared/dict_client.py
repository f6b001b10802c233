"""What is asked of the shards of a dictionary for what its user wants.

Does not know who answers. Values are pickled and unpickled here, on the user's side.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from time import monotonic
from typing import Any

from daskbatch.errors import LifecycleError, ServiceLost
from daskbatch.shared.data.codec import (
    Value,
    key_sent,
    key_to_send,
    pack,
    size_of,
    to_send,
    unpack,
)
from daskbatch.shared.data.messages import lost_error
from daskbatch.shared.data.partition import shard_of
from daskbatch.shared.data.portable_keys import dumps_for_later
from daskbatch.shared.proxy import ObjectProxy
from daskbatch.shared.waiting import awaited

#: So much, and so many, are sent at once.
_BYTES, _COUNT = 32 << 20, 10_000

#: How often a snapshot is tried again.
_TRIES = 3

#: What a snapshot holds of a key: the key, the value, and its buffers.
Record = tuple[bytes, Any, Sequence[Any]]


class DictClient:
    """The operations of a dictionary.

    Parameters
    ----------
    handle : Handle
        The dictionary.
    """

    def __init__(self, handle: ObjectProxy) -> None:
        self._handle = handle

    @property
    def uid(self) -> str:
        """Which dictionary it is."""
        return self._handle.uid

    def _index_of(self, key: Any) -> int:
        hash(key)  # a list is no key, here as in a dict
        count = self._handle.count
        return shard_of(key, count) if count > 1 else 0

    def _place(self, key: Any) -> tuple[int, Any]:
        return self._index_of(key), key_to_send(key)

    # -- one key --------------------------------------------------------------------------

    def get(self, key: Any) -> Any:
        """Give the value of a key, or raise `KeyError`."""
        index, sent = self._place(key)
        value = self._handle.call(index, "get", sent)
        if value is None:
            raise KeyError(key)
        return unpack(value)

    def get_waiting(self, key: Any, timeout: float | None) -> Any:
        """Give the value of a key once there is one, or raise `TimeoutError`."""
        index, sent = self._place(key)
        deadline = None if timeout is None else monotonic() + timeout

        def get(seconds: float) -> Value | None:
            value: Value | None = self._handle.call(
                index, "get", sent, wait=seconds, deadline=deadline
            )
            return value

        value = awaited(get, deadline)
        if value is None:
            raise TimeoutError(
                f"nobody has written the key {key!r} of {self._handle.what} within {timeout:g} s"
            )
        return unpack(value)

    def put(self, key: Any, value: Any) -> None:
        """Write a key."""
        index, sent = self._place(key)
        self._handle.call(index, "put", sent, pack(value, sent))

    def remove(self, key: Any) -> None:
        """Remove a key, or raise `KeyError`."""
        index, sent = self._place(key)
        if not self._handle.call(index, "remove", sent):
            raise KeyError(key)

    def has(self, key: Any) -> bool:
        """Say whether a key is there."""
        index, sent = self._place(key)
        return bool(self._handle.call(index, "has", sent))

    def pop(self, key: Any) -> Any:
        """Remove a key, and give its value, or raise `KeyError`."""
        index, sent = self._place(key)
        value = self._handle.call(index, "pop", sent)
        if value is None:
            raise KeyError(key)
        return unpack(value)

    def pop_waiting(self, key: Any, timeout: float | None) -> Any:
        """Remove a key once it is there, and give its value, or raise `TimeoutError`."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            try:
                return self.pop(key)
            except KeyError:
                # Whoever waits for it, too, may be faster.
                self.get_waiting(key, None if deadline is None else deadline - monotonic())

    def pop_any(self) -> tuple[Any, Any]:
        """Remove any key, and give it with its value, or raise `KeyError`."""
        for index in range(self._handle.count):
            found = self._handle.call(index, "pop_any")
            if found is not None:
                return key_sent(found[0]), unpack(found[1])
        raise KeyError(f"{self._handle.what} is empty")

    def set_default(self, key: Any, default: Any) -> Any:
        """Give the value of a key, which is the default if it had none."""
        index, sent = self._place(key)
        packed = pack(default, sent)
        value = self._handle.call(index, "set_default", sent, packed)
        return default if value is None else unpack(value)

    def add(self, key: Any, amount: Any) -> Any:
        """Add to a number, and give what it was."""
        index, sent = self._place(key)
        return unpack(self._handle.call(index, "add", sent, pack(amount)))

    # -- many keys ------------------------------------------------------------------------

    def put_some(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Write many keys, those of each shard in the order given."""
        shards: list[list[tuple[Any, Any]]] = [[] for _ in range(self._handle.count)]
        for key, value in pairs:
            shards[self._index_of(key)].append((key_to_send(key), value))
        for index, some in enumerate(shards):
            self._put_packed(index, ((sent, pack(value, sent)) for sent, value in some))

    def _put_packed(self, index: int, items: Iterable[tuple[Any, Value]]) -> None:
        room, some = _BYTES, []
        for item in items:
            some.append(item)
            value = item[1]
            room -= len(value) if type(value) is bytes else size_of(value)
            if room < 0 or len(some) >= _COUNT:
                self._handle.call(index, "put_some", some)
                room, some = _BYTES, []
        if some:
            self._handle.call(index, "put_some", some)

    def get_some(self, keys: Sequence[Any]) -> dict[Any, Any]:
        """Give the values of those of some keys that are there."""
        shards: list[list[Any]] = [[] for _ in range(self._handle.count)]
        for key in keys:
            shards[self._index_of(key)].append(key)
        found: dict[Any, Any] = {}
        for index, some in enumerate(shards):
            sent = [key_to_send(key) for key in some]
            for position, value in self._values_of(index, sent):
                found[some[position]] = unpack(value)
        return found

    def _values_of(self, index: int, sent: Sequence[Any]) -> Iterator[tuple[int, Value]]:
        start = 0
        while start < len(sent):
            values = self._handle.call(index, "get_some", sent[start : start + _COUNT])
            for position, value in enumerate(values, start):
                if value is not None:
                    yield position, value
            start += len(values)

    def everywhere(self, operation: str, *arguments: Any) -> list[Any]:
        """Have all shards do something."""
        return [
            self._handle.call(index, operation, *arguments) for index in range(self._handle.count)
        ]

    def keys_of(self, index: int) -> Iterator[Any]:
        """Give the keys of a shard, as they are now."""
        return map(key_sent, self._handle.call(index, "keys"))

    def keys(self) -> Iterator[Any]:
        """Give all keys, one shard after another."""
        for index in range(self._handle.count):
            yield from self.keys_of(index)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Give all keys and values, a few at a time: of each shard, what there is when it comes."""
        for index in range(self._handle.count):
            token = os.urandom(8)
            given: set[Any] = set()
            self._handle.call(index, "view", token)
            try:
                while page := self._handle.call(index, "page", token, len(given)):
                    for sent, value in page:
                        key = key_sent(sent)
                        given.add(key)
                        yield key, unpack(value)
                if page is None:
                    # Another worker has it now, which knows nothing of this.
                    yield from self._items_without(index, given)
            finally:
                with suppress(ServiceLost, LifecycleError):
                    self._handle.call(index, "unmark", token)

    def _items_without(self, index: int, given: set[Any]) -> Iterator[tuple[Any, Any]]:
        sent = (each for each in self._handle.call(index, "keys") if key_sent(each) not in given)
        while some := list(islice(sent, _COUNT)):
            for position, value in self._values_of(index, some):
                yield key_sent(some[position]), unpack(value)

    # -- where they are -------------------------------------------------------------------

    def worker_of(self, index: int) -> str:
        """Give the worker that serves a shard, or raise `ServiceLost`."""
        layout = self._handle.layout(index)
        if not layout.members:
            replicas = self._handle.placed.options.replicas
            raise lost_error(self._handle.what, layout.lost, replicas)
        return layout.members[0].worker

    def copies_of(self, index: int) -> int:
        """Say how many copies there are of a shard, besides the one that serves it."""
        return max(0, len(self._handle.layout(index).members) - 1)

    def workers_for(self, keys: Iterable[Any]) -> list[str]:
        """Give the workers of some keys, those first that have most."""
        counts: dict[str, int] = {}
        asked: set[int] = set()
        for key in keys:
            index, _ = self._place(key)
            if index not in asked:
                asked.add(index)
                self._handle.call(index, "count")  # it may be elsewhere by now, or closed
            worker = self.worker_of(index)
            counts[worker] = counts.get(worker, 0) + 1
        return sorted(counts, key=lambda worker: -counts[worker])

    # -- as a whole -----------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[Iterator[Record]]:
        """Have all there is at one moment, to be gone through."""
        token = os.urandom(8)
        try:
            for _ in range(_TRIES):
                if self._mark(token):
                    break
            else:
                raise ServiceLost(f"{self._handle.what} could not be held at one point")
            yield self._marked(token)
        finally:
            for index in range(self._handle.count):
                try:
                    self._handle.call(index, "unmark", token)
                except (ServiceLost, LifecycleError):
                    break

    def _mark(self, token: bytes) -> bool:
        """Have all shards keep what they have while nobody can write to any; False if one can."""
        held: list[int] = []
        try:
            for index in range(self._handle.count):
                self._handle.call(index, "hold", token)
                held.append(index)
            marked = [self._handle.call(index, "mark", token) for index in held]
        finally:
            still = [self._handle.call(index, "release", token) for index in held]
        # If one was not held to the end, something may have been written between two marks.
        return all(marked) and all(still)

    def _marked(self, token: bytes) -> Iterator[Record]:
        for index in range(self._handle.count):
            start = 0
            while True:
                page = self._handle.call(index, "page", token, start)
                if page is None:
                    raise ServiceLost(
                        f"the worker of a part of {self._handle.what} has changed while it was "
                        "being saved; save it again"
                    )
                if not page:
                    break
                start += len(page)
                for sent, value in page:
                    yield _record(sent, value)

    def put_records(self, records: Iterable[tuple[bytes, Any, Sequence[Any]]]) -> None:
        """Write what a snapshot holds."""
        shards: list[list[tuple[Any, Value]]] = [[] for _ in range(self._handle.count)]
        room = _BYTES
        for data, main, buffers in records:
            key = unpack(data)
            value: Value = (main, *buffers) if buffers else bytes(main)
            shards[self._index_of(key)].append((key_to_send(key), value))
            room -= size_of(value)
            if room < 0:
                self._put_all(shards)
                room = _BYTES
        self._put_all(shards)

    def _put_all(self, shards: list[list[tuple[Any, Value]]]) -> None:
        for index, some in enumerate(shards):
            self._put_packed(index, [(key, to_send(value)) for key, value in some])
            some.clear()


def _record(sent: Any, value: Value) -> Record:
    data = dumps_for_later(key_sent(sent))
    return (data, value[0], value[1:]) if isinstance(value, tuple) else (data, value, ())

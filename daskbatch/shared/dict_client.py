"""The client of the dictionary operations: turns them into requests to shards.

Keys and values are pickled and unpickled here, on the user's side. Any number of threads may use a
`DictClient`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from time import monotonic
from typing import Any, TypeAlias

from daskbatch.errors import LifecycleError, ServiceLost
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.shared.data.codec import (
    Value,
    content_of,
    decode_key,
    encode_key,
    pack,
    prepare_to_send,
    size_of,
    unpack,
)
from daskbatch.shared.data.messages import lost_error
from daskbatch.shared.data.partition import shard_of
from daskbatch.shared.data.portable_keys import dumps_for_later
from daskbatch.shared.proxy import ObjectProxy
from daskbatch.shared.store import operations
from daskbatch.shared.store.operations import Operation
from daskbatch.shared.waiting import await_answer

#: A request with many keys ends when it has more than these bytes, or this number of keys.
_MAX_REQUEST_BYTES, _MAX_REQUEST_KEYS = 32 << 20, 10_000

#: How often `snapshot` tries to have all shards keep their contents at one moment.
_SNAPSHOT_ATTEMPTS = 3

#: What a snapshot has for a key: the pickled key, the pickled value, and the value's buffers.
Record: TypeAlias = tuple[bytes, Any, Sequence[Any]]


class DictClient:
    """The operations of a dictionary.

    Any number of threads may use it.

    Parameters
    ----------
    proxy : ObjectProxy
        The dictionary.
    """

    def __init__(self, proxy: ObjectProxy) -> None:
        self._proxy = proxy

    @property
    def uid(self) -> str:
        """The dictionary's id."""
        return self._proxy.uid

    def _index_of(self, key: Any) -> int:
        hash(key)  # raises TypeError for a key that a dict refuses, such as a list
        count = self._proxy.count
        return shard_of(key, count) if count > 1 else 0

    def _locate(self, key: Any) -> tuple[int, Any]:
        """Return the shard of a key, and the encoded key."""
        return self._index_of(key), encode_key(key)

    # -- one key --------------------------------------------------------------------------

    def get(self, key: Any) -> Any:
        """Return the value of a key, or raise `KeyError`."""
        index, encoded = self._locate(key)
        value = self._proxy.call(index, operations.GET, encoded)
        if value is None:
            raise KeyError(key)
        return unpack(value)

    def get_waiting(self, key: Any, timeout: float | None) -> Any:
        """Return the value of a key once there is one, or raise `TimeoutError`."""
        index, encoded = self._locate(key)
        deadline = None if timeout is None else monotonic() + timeout

        def get(seconds: float) -> Value | None:
            value: Value | None = self._proxy.call(
                index, operations.GET, encoded, wait=seconds, deadline=deadline
            )
            return value

        value = await_answer(get, deadline)
        if value is None:
            raise TimeoutError(
                f"the key {safe_repr(key)} of {self._proxy.description} was not written within "
                f"{timeout:g} s"
            )
        return unpack(value)

    def put(self, key: Any, value: Any) -> None:
        """Write a key."""
        index, encoded = self._locate(key)
        self._proxy.call(index, operations.PUT, encoded, pack(value, encoded))

    def remove(self, key: Any) -> None:
        """Remove a key, or raise `KeyError`."""
        index, encoded = self._locate(key)
        if not self._proxy.call(index, operations.REMOVE, encoded):
            raise KeyError(key)

    def has(self, key: Any) -> bool:
        """Return whether a key is there."""
        index, encoded = self._locate(key)
        return bool(self._proxy.call(index, operations.HAS, encoded))

    def pop(self, key: Any) -> Any:
        """Remove a key and return its value, or raise `KeyError`."""
        index, encoded = self._locate(key)
        value = self._proxy.call(index, operations.POP, encoded)
        if value is None:
            raise KeyError(key)
        return unpack(value)

    def pop_waiting(self, key: Any, timeout: float | None) -> Any:
        """Remove a key once it is there and return its value, or raise `TimeoutError`."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            try:
                return self.pop(key)
            except KeyError:
                # Another client that waits for the key, too, may be faster.
                self.get_waiting(key, None if deadline is None else deadline - monotonic())

    def pop_any(self) -> tuple[Any, Any]:
        """Remove any key and return it with its value, or raise `KeyError`."""
        for index in range(self._proxy.count):
            found = self._proxy.call(index, operations.POP_ANY)
            if found is not None:
                return decode_key(found[0]), unpack(found[1])
        raise KeyError(f"{self._proxy.description} is empty")

    def set_default(self, key: Any, default: Any) -> Any:
        """Return the value of a key; write the default first if there is none."""
        index, encoded = self._locate(key)
        packed = pack(default, encoded)
        value = self._proxy.call(index, operations.SET_DEFAULT, encoded, packed)
        return default if value is None else unpack(value)

    def add(self, key: Any, amount: Any) -> Any:
        """Add to a number, and return what it was before."""
        index, encoded = self._locate(key)
        return unpack(self._proxy.call(index, operations.ADD, encoded, pack(amount)))

    # -- many keys ------------------------------------------------------------------------

    def put_some(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Write many keys, those of each shard in the order given."""
        shards: list[list[tuple[Any, Any]]] = [[] for _ in range(self._proxy.count)]
        for key, value in pairs:
            shards[self._index_of(key)].append((encode_key(key), value))
        for index, some in enumerate(shards):
            self._put_packed(index, ((encoded, pack(value, encoded)) for encoded, value in some))

    def _put_packed(self, index: int, items: Iterable[tuple[Any, Value]]) -> None:
        """Write encoded keys and packed values of one shard, in requests of limited size."""
        room, some = _MAX_REQUEST_BYTES, []
        for item in items:
            some.append(item)
            value = item[1]
            room -= len(value) if type(value) is bytes else size_of(value)
            if room < 0 or len(some) >= _MAX_REQUEST_KEYS:
                self._proxy.call(index, operations.PUT_SOME, some)
                room, some = _MAX_REQUEST_BYTES, []
        if some:
            self._proxy.call(index, operations.PUT_SOME, some)

    def get_some(self, keys: Sequence[Any]) -> dict[Any, Any]:
        """Return the values of those keys that are there."""
        shards: list[list[Any]] = [[] for _ in range(self._proxy.count)]
        for key in keys:
            shards[self._index_of(key)].append(key)
        found: dict[Any, Any] = {}
        for index, some in enumerate(shards):
            encoded_keys = [encode_key(key) for key in some]
            for position, value in self._values_of(index, encoded_keys):
                found[some[position]] = unpack(value)
        return found

    def _values_of(self, index: int, encoded_keys: Sequence[Any]) -> Iterator[tuple[int, Value]]:
        """Yield the values of encoded keys of a shard that are there, with their positions."""
        start = 0
        while start < len(encoded_keys):
            request = encoded_keys[start : start + _MAX_REQUEST_KEYS]
            values = self._proxy.call(index, operations.GET_SOME, request)
            for position, value in enumerate(values, start):
                if value is not None:
                    yield position, value
            start += len(values)

    def call_all(self, operation: Operation, *arguments: Any) -> list[Any]:
        """Have all shards execute an operation, one after another; returns their replies."""
        return [
            self._proxy.call(index, operation, *arguments) for index in range(self._proxy.count)
        ]

    def keys_of(self, index: int) -> Iterator[Any]:
        """Return the present keys of a shard."""
        return map(decode_key, self._proxy.call(index, operations.KEYS))

    def keys(self) -> Iterator[Any]:
        """Yield all keys, shard by shard: those that are there when a shard is asked."""
        for index in range(self._proxy.count):
            yield from self.keys_of(index)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Yield all keys and values, page by page: those that a shard has when it is asked."""
        for index in range(self._proxy.count):
            token = os.urandom(8)
            yielded: set[Any] = set()
            self._proxy.call(index, operations.VIEW, token)
            try:
                while page := self._proxy.call(index, operations.PAGE, token, len(yielded)):
                    for encoded, value in page:
                        key = decode_key(encoded)
                        yielded.add(key)
                        yield key, unpack(value)
                if page is None:
                    # Another worker serves the shard now, and it does not have the view.
                    yield from self._items_without(index, yielded)
            finally:
                with suppress(ServiceLost, LifecycleError):
                    self._proxy.call(index, operations.UNMARK, token)

    def _items_without(self, index: int, yielded: set[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield the present keys and values of a shard, without the keys yielded before."""
        keys = self._proxy.call(index, operations.KEYS)
        missing = (each for each in keys if decode_key(each) not in yielded)
        while some := list(islice(missing, _MAX_REQUEST_KEYS)):
            for position, value in self._values_of(index, some):
                yield decode_key(some[position]), unpack(value)

    # -- workers --------------------------------------------------------------------------

    def worker_of(self, index: int) -> str:
        """Return the worker that serves a shard, or raise `ServiceLost`."""
        layout = self._proxy.layout(index)
        if not layout.replicas:
            count = self._proxy.info.options.replicas
            raise lost_error(self._proxy.description, layout.lost, count)
        return layout.replicas[0].worker

    def workers_for(self, keys: Iterable[Any]) -> list[str]:
        """Return the workers that serve keys, first those that serve most of them."""
        counts: dict[str, int] = {}
        asked: set[int] = set()
        for key in keys:
            index, _ = self._locate(key)
            if index not in asked:
                asked.add(index)
                # The shard may have moved, or the dictionary may have been closed.
                self._proxy.call(index, operations.COUNT)
            worker = self.worker_of(index)
            counts[worker] = counts.get(worker, 0) + 1
        return sorted(counts, key=lambda worker: -counts[worker])

    # -- the whole dictionary -------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[Iterator[Record]]:
        """Yield an iterator over the contents that all shards have at one moment."""
        token = os.urandom(8)
        try:
            for _ in range(_SNAPSHOT_ATTEMPTS):
                if self._mark(token):
                    break
            else:
                raise ServiceLost(
                    f"the shards of {self._proxy.description} could not be held at one moment"
                )
            yield self._marked(token)
        finally:
            for index in range(self._proxy.count):
                try:
                    self._proxy.call(index, operations.UNMARK, token)
                except (ServiceLost, LifecycleError):
                    break

    def _mark(self, token: bytes) -> bool:
        """Have all shards keep their contents of one moment, during which no client can write.

        Returns False if a client may have written during it.
        """
        held: list[int] = []
        try:
            for index in range(self._proxy.count):
                self._proxy.call(index, operations.HOLD, token)
                held.append(index)
            marked = [self._proxy.call(index, operations.MARK, token) for index in held]
        finally:
            still_held = [self._proxy.call(index, operations.RELEASE, token) for index in held]
        # If a shard was not held to the end, it may have been written between two marks.
        return all(marked) and all(still_held)

    def _marked(self, token: bytes) -> Iterator[Record]:
        """Yield the contents that the shards have kept under a token."""
        for index in range(self._proxy.count):
            start = 0
            while True:
                page = self._proxy.call(index, operations.PAGE, token, start)
                if page is None:
                    raise ServiceLost(
                        f"the worker of a part of {self._proxy.description} has changed while it "
                        "was being saved; save it again"
                    )
                if not page:
                    break
                start += len(page)
                for encoded, value in page:
                    yield _record(encoded, value)

    def put_records(self, records: Iterable[tuple[bytes, Any, Sequence[Any]]]) -> None:
        """Write the records of a snapshot."""
        shards: list[list[tuple[Any, Value]]] = [[] for _ in range(self._proxy.count)]
        room = _MAX_REQUEST_BYTES
        for data, main, buffers in records:
            key = unpack(data)
            value: Value = (main, *buffers) if buffers else bytes(main)
            shards[self._index_of(key)].append((encode_key(key), value))
            room -= size_of(value)
            if room < 0:
                self._put_all(shards)
                room = _MAX_REQUEST_BYTES
        self._put_all(shards)

    def _put_all(self, shards: list[list[tuple[Any, Value]]]) -> None:
        for index, some in enumerate(shards):
            self._put_packed(index, [(key, prepare_to_send(value)) for key, value in some])
            some.clear()


def _record(encoded: Any, value: Value) -> Record:
    data = dumps_for_later(decode_key(encoded))
    if isinstance(value, tuple):
        first, *buffers = map(content_of, value)
        return data, first, tuple(buffers)
    return data, value, ()

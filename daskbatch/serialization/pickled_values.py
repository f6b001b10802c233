"""Pickles several values so that each can be loaded without the others.

Does not know what the values are of. What has to go by value and is a part of several, such as
their class, is pickled once for all: that takes a hundred times as long as one of its objects.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from threading import get_ident
from types import FunctionType
from typing import Any

import cloudpickle

from daskbatch.serialization import pickling

#: What is loaded from now, by thread.
_loading: dict[int, Packet] = {}


class Packet:
    """Several values.

    Parameters
    ----------
    values : sequence
        Plain ones as they are, the others pickled.
    pickled : collection of int
        Which are pickled.
    common : bytes
        The pickled list of what they have in common.
    """

    def __init__(
        self, values: Sequence[Any], pickled: Collection[int], common: bytes = b""
    ) -> None:
        self.values = values
        self.pickled = pickled
        self._common = common
        self._loaded: list[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Packet, (self.values, self.pickled, self._common)

    def load(self, position: int) -> Any:
        """Load a value; raises what its class raises."""
        value = self.values[position]
        if position not in self.pickled:
            return value
        if not self._common:
            return pickling.loads(value)
        thread = get_ident()
        outer = _loading.get(thread)
        _loading[thread] = self
        try:
            return pickling.loads(value)
        finally:
            if outer is None:
                del _loading[thread]
            else:
                _loading[thread] = outer

    def take(self, position: int) -> Any:
        """Give something that the values have in common."""
        if self._loaded is None:
            self._loaded = pickling.loads(self._common)
        return self._loaded[position]


def _take(position: int) -> Any:
    return _loading[get_ident()].take(position)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, common: list[Any], positions: dict[int, int]) -> None:
        super().__init__(file, pickling.PROTOCOL)
        self._common = common
        self._positions = positions

    def reducer_override(self, obj: Any) -> Any:
        if obj is _take or not isinstance(obj, (type, FunctionType)):
            return NotImplemented
        position = self._positions.get(id(obj))
        if position is None:
            made = super().reducer_override(obj)
            if made is NotImplemented or len(made) < 6:
                return made  # it goes by reference
            position = self._positions[id(obj)] = len(self._common)
            self._common.append(obj)
        return _take, (position,)


def pack_values(values: Sequence[Any]) -> tuple[Packet, dict[int, BaseException]]:
    """Pickle values; returns them, and why some of them cannot be sent, by position."""
    if pickling.are_plain(values):
        return Packet(values, ()), {}
    found, pickled = list(values), set()
    failed: dict[int, BaseException] = {}
    common: list[Any] = []
    positions: dict[int, int] = {}
    by_value = []
    for position, value in enumerate(values):
        if type(value) in pickling.PLAIN:
            continue
        pickled.add(position)
        try:
            data = pickling.dumps_by_reference(value)
            if data is None:
                by_value.append(position)
                with io.BytesIO() as file:
                    _Pickler(file, common, positions).dump(value)
                    data = file.getvalue()
            found[position] = data
        except BaseException as error:  # to pickle may run anything, sys.exit() included
            failed[position] = error
    if common:
        try:
            return _packet(found, pickled, failed, cloudpickle.dumps(common, pickling.PROTOCOL))
        except Exception:  # of one of them: each must do without the others
            for position in by_value:
                failed.pop(position, None)
                try:
                    found[position] = pickling.dumps(values[position])
                except BaseException as error:
                    failed[position] = error
    return _packet(found, pickled, failed, b"")


def _packet(
    found: list[Any], pickled: set[int], failed: dict[int, BaseException], common: bytes
) -> tuple[Packet, dict[int, BaseException]]:
    for position in failed:
        found[position] = None
    return Packet(found, frozenset(pickled - failed.keys()), common), failed

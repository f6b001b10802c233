"""Pickles several values so that each can be loaded without the others.

A class or function that must travel by value, and that several values refer to, is pickled once for
all of them: pickling a class takes a hundred times as long as pickling one of its objects. Any
number of threads may call `pack_values`.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from threading import get_ident
from types import FunctionType
from typing import Any

from daskbatch.serialization import by_value, pickling
from daskbatch.serialization.thread_values import ThreadValues


class PickledValues:
    """Several values, most of them pickled. Any number of threads may load from it.

    Parameters
    ----------
    values : sequence
        Plain values unchanged, the others pickled.
    pickled : collection of int
        The positions of those that are pickled.
    common : bytes
        The pickled list of the classes and functions that several values have in common.
    """

    def __init__(
        self, values: Sequence[Any], pickled: Collection[int], common: bytes = b""
    ) -> None:
        self.values = values
        self.pickled = pickled
        self._common = common
        self._loaded: list[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PickledValues, (self.values, self.pickled, self._common)

    def load(self, position: int) -> Any:
        """Load the value at a position; raises what unpickling it raises."""
        value = self.values[position]
        if position not in self.pickled:
            return value
        if not self._common:
            return pickling.loads(value)
        with _loading.set(self):
            return pickling.loads(value)

    def common_part(self, position: int) -> Any:
        """Return a class or function that several values refer to.

        Parameters
        ----------
        position : int
            Its position in the list of common classes and functions.
        """
        if self._loaded is None:
            self._loaded = pickling.loads(self._common)
        return self._loaded[position]


#: By thread: the `PickledValues` of which it loads one value.
_loading = ThreadValues[PickledValues]()


def _common_part(position: int) -> Any:
    return _loading[get_ident()].common_part(position)


class _Pickler(by_value.Pickler):
    """Pickles one value; collects classes and functions that travel by value, and refers to them.

    Parameters
    ----------
    file : BytesIO
        The file that receives the bytes.
    common : list
        The classes and functions collected so far; it grows.
    positions : dict
        Their positions in the list, by their ids.
    """

    def __init__(self, file: io.BytesIO, common: list[Any], positions: dict[int, int]) -> None:
        super().__init__(file, pickling.PROTOCOL)
        self._common = common
        self._positions = positions

    def reducer_override(self, obj: Any) -> Any:
        if obj is _common_part or not isinstance(obj, (type, FunctionType)):
            return NotImplemented
        position = self._positions.get(id(obj))
        if position is None:
            reduced = super().reducer_override(obj)
            if reduced is NotImplemented or len(reduced) < 6:
                return reduced  # it travels by reference
            position = self._positions[id(obj)] = len(self._common)
            self._common.append(obj)
        return _common_part, (position,)


def pack_values(values: Sequence[Any]) -> tuple[PickledValues, dict[int, BaseException]]:
    """Pickle values.

    Returns
    -------
    PickledValues
        The values; None for those that cannot be pickled.
    dict
        By position, the errors of those that cannot be pickled.
    """
    if pickling.are_plain(values):
        return PickledValues(values, ()), {}
    packed, pickled = list(values), set()
    failed: dict[int, BaseException] = {}
    common: list[Any] = []
    positions: dict[int, int] = {}
    packed_by_value = []
    for position, value in enumerate(values):
        if type(value) in pickling.PLAIN:
            continue
        pickled.add(position)
        try:
            data = pickling.dumps_by_reference(value)
            if data is None:
                packed_by_value.append(position)
                with io.BytesIO() as file:
                    _Pickler(file, common, positions).dump(value)
                    data = file.getvalue()
            packed[position] = data
        except BaseException as error:  # pickling may run any code, sys.exit() included
            failed[position] = error
    if common:
        try:
            common_data = by_value.dumps(common, pickling.PROTOCOL)
            return _without_failed(packed, pickled, failed, common_data)
        except BaseException:  # one common part cannot be pickled: pickle each value by itself
            for position in packed_by_value:
                failed.pop(position, None)
                try:
                    packed[position] = pickling.dumps(values[position])
                except BaseException as error:
                    failed[position] = error
    return _without_failed(packed, pickled, failed, b"")


def _without_failed(
    packed: list[Any], pickled: set[int], failed: dict[int, BaseException], common: bytes
) -> tuple[PickledValues, dict[int, BaseException]]:
    for position in failed:
        packed[position] = None
    return PickledValues(packed, frozenset(pickled - failed.keys()), common), failed

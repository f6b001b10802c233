"""Finds the argument by which a reader tells one task of a function from the others.

That is the first short text, path or number among the arguments, as in ``clean ('data/7.csv')``.
Any thread may call all functions; they raise nothing, and run no code of the user.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from daskbatch.serialization.pickling import FLAT

#: Longer texts do not help to find a task.
_MAX_CHARACTERS = 60
#: Larger arguments are not searched.
_MAX_BYTES = 1 << 16
#: Only so many arguments are looked at.
_MAX_ARGUMENTS = 8


def first_argument(arguments: Iterable[Any]) -> str:
    """Return the first argument that is a short text, a path or a number; else an empty text.

    Parameters
    ----------
    arguments : iterable
        The arguments of a call.
    """
    for argument, _ in zip(arguments, range(_MAX_ARGUMENTS), strict=False):
        kind = type(argument)
        if issubclass(kind, PurePath):
            argument = os.fspath(argument)
        elif kind not in (str, int, float):
            continue
        try:
            words = repr(argument)
        except ValueError:  # Python refuses a number of 5 000 digits
            continue
        if len(words) <= _MAX_CHARACTERS:
            return words
    return ""


def first_packed_argument(data: bytes) -> str:
    """Return the same of the packed arguments of a task; see `pickling.pack` and `pack_flat`.

    Classes of the user are not loaded: objects of them are passed over.

    Parameters
    ----------
    data : bytes
        Positional and keyword arguments.
    """
    if not data or len(data) > _MAX_BYTES:
        return ""
    try:
        flat = data.startswith(FLAT)
        file = io.BytesIO(data[len(FLAT) :] if flat else data)
        args, kwargs = _PlainUnpickler(file, buffers=_NoBuffers()).load()
        if flat:
            kwargs = {}  # in their place are the places of the tasks, for which None stands
        if len(args) == 3 and (args[0] is _Unknown or isinstance(args[0], _Unknown)):
            # The function came with its arguments: a built-in one, a bound method, a partial.
            args, kwargs = args[1], args[2]
        if {"parts", "launcher"} <= kwargs.keys():
            return ""  # the options of an MPI job
        command = kwargs.get("command")
        if not args and type(command) is list:
            # Of an executable's options, none says what it works on.
            args = [each for each in command[1:] if type(each) is not str or each[:1] != "-"]
        return first_argument([*args, *kwargs.values()] if command is None else args)
    except Exception:
        return ""


class _Unknown:
    """Stands for an object that is not loaded, and for its class."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Unknown:
        return _Unknown()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Take an item of a pickled list."""

    def extend(self, items: object) -> None:
        """Take items of a pickled list."""

    def add(self, item: object) -> None:
        """Take an item of a pickled set."""


class _NoBuffers:
    """Yields an empty buffer for each large buffer among the arguments."""

    def __iter__(self) -> _NoBuffers:
        return self

    def __next__(self) -> bytearray:
        return bytearray()


class _PlainUnpickler(pickle.Unpickler):
    """Loads what Python itself knows, and paths."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib":
            return PurePath
        return _Unknown

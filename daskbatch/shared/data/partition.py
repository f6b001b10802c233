"""Computes which shard a key belongs to: the same shard in every process, for equal keys.

Python's `hash` of a text differs from process to process, so this module computes a number in
another way. Keys that are equal for a dict (`1`, `1.0` and `True`; a tuple and a named tuple) get
the same number, whatever their types. For a key of a type that is not known to be safe the number
is 0: the first shard then has more work, but no key is in the wrong shard.

One kind of key is not supported: objects of a user's class that equal texts (or other keys that are
not numbers) but whose class is not derived from `str`, such as a text that ignores case.

All functions may be called by any thread.
"""

from __future__ import annotations

import dataclasses
import weakref
import zlib
from collections import UserString
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from pathlib import PurePath
from typing import Any, TypeAlias
from uuid import UUID

#: The increment and the first multiplier of SplitMix64 (Steele, Lea, Flood: Fast splittable
#: pseudorandom number generators, 2014), and the bits of its numbers.
_GOLDEN_GAMMA, _MULTIPLIER = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
_MASK = 2**64 - 1

#: The unit of the numbers of dates and durations.
_MICROSECOND = timedelta(microseconds=1)
#: The microseconds from the first moment that `datetime` has to 1970.
_EPOCH = (datetime(1970, 1, 1) - datetime.min) // _MICROSECOND

#: All tuples and sets that are nested deeper than this have the number 0. Without this limit the
#: result would depend on how much of the stack the caller has already used.
_MAX_DEPTH = 20

#: Computes a key's number; the second argument is the depth at which the key is nested.
_Rule: TypeAlias = Callable[[Any, int], int]


def shard_of(key: object, count: int) -> int:
    """Return the index of the shard that a key belongs to.

    Parameters
    ----------
    key : object
        Anything that can be hashed.
    count : int
        The number of shards.

    Examples
    --------
    >>> shard_of("a", 7) in range(7)
    True
    >>> shard_of((1, 2), 7) == shard_of((1.0, 2 + 0j), 7)
    True
    """
    kind = type(key)
    if kind is str:
        return zlib.crc32(key.encode("utf-8", "surrogatepass")) % count  # type: ignore[attr-defined]
    if kind is int:
        return _mix(hash(key)) % count
    return _number_of(key, 0) % count


def _number_of(key: object, depth: int) -> int:
    """Return a number that is the same for all keys that are equal to this one."""
    kind = type(key)
    try:
        rule = _RULES.get(kind) or _found_rules.get(kind)
        if rule is None:
            rule = _found_rules[kind] = _find_rule(kind)
        return rule(key, depth)
    except (RecursionError, MemoryError):
        raise
    except Exception:
        return 0  # for example a signalling NaN, or a time zone that raises


def _mix(number: int) -> int:
    """Spread numbers that differ in few bits, such as multiples of the number of shards.

    The steps of SplitMix64's finalizer, of which one is enough here.
    """
    number = number * _GOLDEN_GAMMA & _MASK
    number = (number ^ number >> 32) * _MULTIPLIER & _MASK
    return number >> 32


# -- types of Python ----------------------------------------------------------------------


def _of_text(key: str, depth: int) -> int:
    return zlib.crc32(str.encode(key, "utf-8", "surrogatepass"))


def _of_bytes(key: bytes, depth: int) -> int:
    return zlib.crc32(key)


def _of_number(key: Any, depth: int) -> int:
    # Python defines the hash of a number by its value, for numbers of all types alike. The hash
    # of a NaN is that of the object, which is another object in another process.
    return _mix(hash(key)) if key == key else 0


def _of_tuple(key: tuple[Any, ...], depth: int) -> int:
    if depth == _MAX_DEPTH:
        return 0
    total = 0
    for item in tuple.__iter__(key):
        total = _mix(total * 31 + _number_of(item, depth + 1) + 1)
    return total


def _of_set(key: frozenset[Any], depth: int) -> int:
    if depth == _MAX_DEPTH:
        return 0
    return _mix(sum(_mix(_number_of(item, depth + 1)) for item in frozenset.__iter__(key)))


def _of_date(key: date, depth: int) -> int:
    # As its midnight: a NumPy object may equal a date, or the datetime of its midnight.
    return _of_moment(datetime(key.year, key.month, key.day), depth)


def _of_moment(key: datetime, depth: int) -> int:
    # With a time zone, equality is that of the moment, by definition the one with fold=0.
    offset = key.replace(fold=0).utcoffset() or timedelta(0)
    wall = key.replace(tzinfo=None) - datetime.min
    return _mix((wall - offset) // _MICROSECOND)


def _of_time(key: time, depth: int) -> int:
    if key.utcoffset() is not None:
        return 0
    since = timedelta(0, key.second, key.microsecond, 0, key.minute, key.hour)
    return _mix(since // _MICROSECOND)


def _of_duration(key: timedelta, depth: int) -> int:
    return _mix(hash(key))  # the hash of three numbers


def _of_uuid(key: UUID, depth: int) -> int:
    return _mix(hash(key.int))


def _of_range(key: range, depth: int) -> int:
    # Ranges of the same numbers are equal, whatever their bounds and steps.
    return _mix(hash((key[0], key[-1]))) if key else 0


def _of_view(key: memoryview, depth: int) -> int:
    return zlib.crc32(key.tobytes())


def _of_path(key: PurePath, depth: int) -> int:
    return _of_text(PurePath.__str__(key).lower(), depth)  # some systems ignore case


def _of_wrapped_text(key: UserString, depth: int) -> int:
    return _number_of(key.data, depth)


def _unsafe(key: object, depth: int) -> int:
    return 0


#: By type: the rule, also for derived types that inherit the type's comparison.
_RULES: dict[type, _Rule] = {
    str: _of_text,
    bytes: _of_bytes,
    int: _of_number,
    bool: _of_number,
    float: _of_number,
    complex: _of_number,
    Decimal: _of_number,
    Fraction: _of_number,
    tuple: _of_tuple,
    frozenset: _of_set,
    datetime: _of_moment,
    date: _of_date,
    time: _of_time,
    timedelta: _of_duration,
    UUID: _of_uuid,
    range: _of_range,
    memoryview: _of_view,
    PurePath: _of_path,
    UserString: _of_wrapped_text,
    type(None): _unsafe,
}

#: By type: the rules that were found for other types.
_found_rules: weakref.WeakKeyDictionary[type, _Rule] = weakref.WeakKeyDictionary()


# -- other types --------------------------------------------------------------------------


def _find_rule(kind: type) -> _Rule:
    """Return the rule for a type that is not in `_RULES`."""
    if kind.__module__ == "numpy" and hasattr(kind, "dtype"):
        return _of_numpy
    for base, rule in _RULES.items():
        if issubclass(kind, base) and _compares_as(kind, base):
            return rule
    if issubclass(kind, Enum) and _compares_as(kind, Enum):
        return _of_flag if issubclass(kind, Flag) else _of_member
    if issubclass(kind, datetime):
        return _of_own_moment
    if issubclass(kind, timedelta):
        return _of_own_duration
    names = _compared_fields(kind)
    if names is not None:
        return lambda key, depth: _of_tuple(tuple(getattr(key, name) for name in names), depth)
    if any(hasattr(kind, name) for name in ("__index__", "__int__", "__float__", "__complex__")):
        return _of_own_number
    return _unsafe


def _compares_as(kind: type, base: type) -> bool:
    """Return whether a derived type inherits equality and hash from its base."""
    return kind.__eq__ is base.__eq__ and kind.__hash__ is base.__hash__


def _of_numpy(key: Any, depth: int) -> int:
    match key.dtype.kind:
        case "b" | "i" | "u" | "f" | "c":
            return _of_number(key, depth)
        case "U":
            return _of_text(str(key), depth)
        case "S":
            return _of_bytes(bytes(key), depth)
        case "m" if key == key:
            # No object of Python's own types equals parts of a microsecond.
            fine = key.dtype.str[4:-1].lstrip("0123456789") in ("ns", "ps", "fs", "as")
            return 0 if fine and key.astype("m8[us]") != key else _mix(hash(key))
        case "M" if key == key:
            year = 1970 + int(key.astype("M8[Y]").astype("i8"))
            if 1 <= year <= 9999:  # others may overflow as microseconds
                whole = key.astype("M8[us]")
                if whole == key:
                    return _mix(_EPOCH + int(whole.astype("i8")))
    return _of_own_number(key, depth)


def _of_member(key: Enum, depth: int) -> int:
    return _of_text(key._name_, depth)


def _of_flag(key: Flag, depth: int) -> int:
    return _number_of(key._value_, depth)


def _of_own_moment(key: datetime, depth: int) -> int:
    parts = key.year, key.month, key.day, key.hour, key.minute, key.second, key.microsecond
    plain = datetime(*parts, tzinfo=key.tzinfo, fold=key.fold)
    return _of_moment(plain, depth) if _same(key, plain) else 0


def _of_own_duration(key: timedelta, depth: int) -> int:
    plain = timedelta(key.days, key.seconds, key.microseconds)
    return _of_duration(plain, depth) if _same(key, plain) else 0


def _of_own_number(key: Any, depth: int) -> int:
    """Return the number of an object of an unknown number type, if it equals one of Python's."""
    for convert in (int, float, complex, lambda x: Fraction(int(x.numerator), int(x.denominator))):
        try:
            plain = convert(key)
            if _same(key, plain):
                return _of_number(plain, depth)
        except (RecursionError, MemoryError):
            raise
        except Exception:
            continue
    return 0


def _same(key: object, plain: object) -> bool:
    """Return whether a dict regards two keys as the same."""
    return hash(key) == hash(plain) and bool(key == plain)


def _compared_fields(kind: type) -> tuple[str, ...] | None:
    """Return the fields that a dataclass compares; None if it has another `__eq__`.

    Without this, all keys that are dataclasses would be in the first shard.
    """
    owner = next(each for each in kind.__mro__ if "__eq__" in vars(each))
    if "__dataclass_fields__" not in vars(owner):
        return None
    names = tuple(field.name for field in dataclasses.fields(owner) if field.compare)
    # `dataclass` keeps an `__eq__` that the class defines. If it has made the `__eq__`, the code is
    # that of a dataclass made with the same fields.
    like = dataclasses.make_dataclass("Like", names)
    return names if _code_of(owner.__eq__) == _code_of(like.__eq__) is not None else None


def _code_of(function: Any) -> tuple[object, ...] | None:
    """Return what determines the behaviour of a Python function; None for other callables."""
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    return code.co_code, code.co_consts, code.co_names, code.co_varnames, code.co_freevars

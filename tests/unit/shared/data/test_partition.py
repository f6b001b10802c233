"""Shards of keys: equal keys share one in every process; many keys are spread evenly."""

from __future__ import annotations

import decimal
import enum
import functools
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import uuid
from collections import Counter, UserString, namedtuple
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskbatch.shared.data.partition import shard_of

#: A number of shards so large that two keys share one only if they must.
MANY = 2**31 - 1

Point = namedtuple("Point", "x y")


class Text(str):
    """A text of a derived type."""


class Caseless(str):
    """A text with another comparison."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class Unordered(tuple[Any, ...]):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple) and sorted(self) == sorted(other)

    def __hash__(self) -> int:
        return hash(frozenset(self))


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    ADA = "Ada"


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True)
class Cell:
    row: int
    column: float
    note: str = field(default="", compare=False)


@dataclass(frozen=True)
class Angle:
    degrees: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Angle) and (self.degrees - other.degrees) % 360 == 0

    def __hash__(self) -> int:
        return hash(self.degrees % 360)


@dataclass(frozen=True, eq=False)
class Heading(Angle):
    """A dataclass whose base compares in another way than the fields."""


class Stamp(datetime):
    """As pandas has it: with another comparison, which agrees with that of a datetime."""

    def __eq__(self, other: object) -> bool:
        return datetime.__eq__(self, other)

    def __hash__(self) -> int:
        return datetime.__hash__(self)


@functools.total_ordering
class Count:
    """As other packages' numbers: not derived from Python's, but equal to them."""

    def __init__(self, value: int) -> None:
        self.value = int(value)

    def __int__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        return self.value == (other.value if isinstance(other, Count) else other)

    def __lt__(self, other: Any) -> bool:
        return self.value < int(other)

    def __hash__(self) -> int:
        return hash(self.value)


class Broken(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta:
        raise ValueError("no time here")


PARIS, TOKYO = ZoneInfo("Europe/Paris"), ZoneInfo("Asia/Tokyo")
NOON = datetime(2024, 7, 1, 12, tzinfo=PARIS)
AUTUMN = datetime(2024, 10, 27, 2, 30, tzinfo=PARIS)  # comes twice

#: Keys in groups of equal ones.
GROUPS: list[list[Hashable]] = [
    ["", Text(), UserString(""), np.str_("")],
    ["Ada", Text("Ada"), Name.ADA, UserString("Ada"), np.str_("Ada")],
    ["\ud800"],
    ["über", Text("über")],
    [b"Ada", np.bytes_(b"Ada"), memoryview(b"Ada"), memoryview(b"A.d.a.")[::2]],
    [0, 0.0, -0.0, False, 0j, Decimal("-0.00"), Fraction(0), np.int8(0), np.False_],
    [1, 1.0, True, 1 + 0j, Decimal(1), Fraction(1), np.uint64(1), np.True_, Level.LOW, Count(1)],
    [-1, -1.0, np.int8(-1), np.longdouble(-1)],
    [-2, -2.0],
    [0.5, Fraction(1, 2), Decimal("0.5"), np.float16(0.5), np.float32(0.5), np.complex64(0.5)],
    [np.float32(0.1), float(np.float32(0.1))],
    [10**300, Decimal(10**300), Fraction(10**300), Count(10**300)],
    [2**63, float(2**63), np.float64(2**63), np.uint64(2**63)],
    [2**61 - 1],
    [math.inf, Decimal("inf"), np.float32(np.inf)],
    [1j, np.complex128(1j)],
    [()],
    [(1, 2), (1.0, Decimal(2)), Point(1, 2), (True, np.int8(2))],
    [(2, 1), Point(2, 1)],
    [((1,), 2), ((1.0,), 2)],
    [(1, (2,))],
    [frozenset(), frozenset(())],
    [frozenset({1, 2, "a"}), frozenset(["a", 2.0, True])],
    [frozenset({frozenset({(1, 2)})}), frozenset({frozenset({Point(1, 2)})})],
    [None],
    [Color.RED],
    [Color.BLUE],
    [Mode.READ | Mode.WRITE],
    [Cell(1, 2), Cell(True, 2.0, "noted")],
    [Cell(2, 1)],
    [Angle(10), Angle(370), Heading(10)],
    [uuid.UUID(int=5), uuid.UUID(int=5, is_safe=uuid.SafeUUID.safe)],
    [date(2024, 7, 1), np.datetime64("2024-07-01")],
    [datetime(2024, 7, 1), Stamp(2024, 7, 1), np.datetime64("2024-07-01T00", "ms")],
    [datetime(2024, 7, 1, 1), np.datetime64("2024-07-01T01", "h"), datetime(2024, 7, 1, 1, fold=1)],
    [datetime(1, 1, 1), np.datetime64("0001-01-01T00:00:00")],
    [datetime.max, Stamp.max],
    [NOON, NOON.astimezone(TOKYO), NOON.astimezone(timezone.utc)],  # noqa: UP017
    [AUTUMN, AUTUMN.replace(fold=1)],
    [AUTUMN.replace(hour=1), AUTUMN.replace(hour=1).astimezone(TOKYO)],
    [datetime(1, 1, 1, tzinfo=TOKYO)],
    [datetime.max.replace(tzinfo=timezone(timedelta(hours=-20)))],
    [time(1, 30), time(1, 30, tzinfo=PARIS), time(1, 30, fold=1)],
    [time(3, tzinfo=timezone(timedelta(hours=2))), time(1, tzinfo=timezone.utc)],  # noqa: UP017
    [timedelta(0), timedelta(days=1, hours=-24)],
    [timedelta(seconds=90), timedelta(minutes=1.5), np.timedelta64(90, "s")],
    [np.timedelta64(90, "s"), np.timedelta64(90 * 10**9, "ns")],
    [np.timedelta64(1, "Y"), np.timedelta64(12, "M")],
    [range(0), range(3, 3), range(5, 1)],
    [range(0, 10, 3), range(0, 12, 3)],
    [range(5, 6), range(5, 9, 7)],
    [range(10**30), range(10**30)],
    [PurePosixPath("/a/b"), PurePosixPath("/a//b/"), Path("/a/b")],
    [PureWindowsPath("C:/Data"), PureWindowsPath("c:\\DATA")],
]

#: Keys of classes with other comparisons.
WILFUL: list[list[Hashable]] = [
    [Caseless("Text"), Caseless("TEXT")],
    [(Caseless("Text"), 1), (Caseless("TEXT"), 1)],
    [Unordered((1, 2)), Unordered((2, 1))],
]

#: Keys that only need to have a shard, always the same.
OTHERS: list[Hashable] = [
    *(math.nan, Decimal("nan"), np.float32(np.nan), complex(0, math.nan), (math.nan,)),
    *(Ellipsis, NotImplemented, object, len, int, Fraction, enum, object()),
    *(np.datetime64("NaT", "s"), np.datetime64(5, "ps"), np.timedelta64(5, "as")),
    *(np.datetime64(10**9, "Y"), np.dtype("f8"), np.timedelta64("NaT", "s")),
    *(datetime(2024, 1, 1, tzinfo=Broken()), time(1, tzinfo=timezone(timedelta(0, 1)))),
]


def pairs(group: list[Hashable]) -> Iterator[tuple[Hashable, Hashable]]:
    return itertools.combinations(group, 2)


def are_one_key(one: Hashable, other: Hashable) -> bool:
    try:
        return len({one: 0, other: 0}) == 1
    except TypeError:  # NumPy's and Python's numbers cannot all be compared
        return False


@pytest.mark.parametrize("group", GROUPS + WILFUL, ids=lambda group: type(group[0]).__name__)
def test_equal_keys_share_a_shard(group: list[Hashable]) -> None:
    assert len({shard_of(key, MANY) for key in group}) == 1


def test_all_pairs_that_a_dict_has_as_one_key() -> None:
    keys = [key for group in GROUPS for key in group]
    keys += [(key, "a") for key in keys]
    found = 0
    for one, other in pairs(keys):
        if are_one_key(one, other):
            found += 1
            assert shard_of(one, MANY) == shard_of(other, MANY)
    assert found > len(keys)


@pytest.mark.parametrize("key", OTHERS, ids=lambda key: type(key).__name__)
@pytest.mark.parametrize("count", [1, 3])
def test_every_key_has_a_shard(key: Hashable, count: int) -> None:
    assert 0 <= shard_of(key, count) < count
    assert shard_of(key, count) == shard_of(key, count)


def test_deep_keys_have_a_shard_wherever_it_is_asked() -> None:
    key: Hashable = "deep"
    for _ in range(500):
        key = (key, frozenset({key}))

    def below(depth: int) -> int:
        return below(depth - 1) if depth else shard_of(key, MANY)

    assert below(0) == below(400)


def test_a_signalling_nan_has_a_shard() -> None:
    with decimal.localcontext() as context:
        context.traps[decimal.InvalidOperation] = True
        assert 0 <= shard_of(Decimal("sNaN"), 3) < 3


# -- any keys -----------------------------------------------------------------------------

NUMBERS = st.one_of(
    *(st.integers(), st.floats(allow_nan=False), st.booleans(), st.fractions()),
    *(st.decimals(allow_nan=False), st.complex_numbers(allow_nan=False)),
)
MOMENTS = st.datetimes(timezones=st.none() | st.sampled_from([PARIS, TOKYO]), allow_imaginary=False)
SIMPLE = st.one_of(
    *(NUMBERS, st.text(), st.binary(), st.none(), st.uuids(), MOMENTS, st.dates()),
    *(st.timedeltas(), st.times()),
)
KEYS = st.recursive(
    SIMPLE,
    lambda keys: st.lists(keys, max_size=4).map(tuple) | st.frozensets(keys, max_size=4),
    max_leaves=10,
)


@given(NUMBERS)
@settings(deadline=None)
def test_numbers_share_a_shard_across_types(number: Any) -> None:
    others: list[Callable[[Any], Any]] = [
        *(int, float, complex, Fraction, Decimal, bool, Count, str),
        *(np.int8, np.int64, np.uint64, np.float16, np.float32, np.longdouble, np.complex64),
    ]
    with np.errstate(all="ignore"):
        for convert in others:
            try:
                other = convert(number)
                same = are_one_key(number, other)
            except (ValueError, TypeError, ArithmeticError):
                continue
            if same:
                assert shard_of(number, MANY) == shard_of(other, MANY)


@given(MOMENTS.filter(lambda moment: 1900 < moment.year < 2100), st.booleans())
@settings(deadline=None)
def test_moments_share_a_shard_across_zones(moment: datetime, fold: bool) -> None:
    moment = moment.replace(fold=fold)
    zones: list[Any] = [None, PARIS, TOKYO, timezone(timedelta(hours=5, minutes=45))]
    for zone in zones:
        for other in (moment.astimezone(zone), moment.replace(fold=not fold)):
            if are_one_key(moment, other):
                assert shard_of(moment, MANY) == shard_of(other, MANY)


@given(st.integers(-(2**62), 2**62), st.sampled_from(["D", "h", "m", "s", "ms", "us", "ns", "ps"]))
@settings(deadline=None)
def test_numpys_moments_share_a_shard_with_pythons(number: int, unit: Any) -> None:
    for numpys in (np.datetime64(number, unit), np.timedelta64(number, unit)):
        pythons = numpys.item()
        if not isinstance(pythons, int) and are_one_key(numpys, pythons):
            assert shard_of(numpys, MANY) == shard_of(pythons, MANY)


@given(KEYS)
@settings(deadline=None)
def test_a_copy_shares_the_shard(key: Hashable) -> None:
    copy = pickle.loads(pickle.dumps(key))
    assert copy == key
    assert shard_of(copy, MANY) == shard_of(key, MANY)


@given(st.lists(SIMPLE, max_size=6), st.randoms())
@settings(deadline=None)
def test_the_order_of_a_set_says_nothing(items: list[Any], random: Any) -> None:
    one = frozenset(items)
    random.shuffle(items)
    assert shard_of(one, MANY) == shard_of(frozenset(items), MANY)


@given(KEYS, st.integers(1, 300))
@settings(deadline=None)
def test_shards_are_in_range(key: Hashable, count: int) -> None:
    assert 0 <= shard_of(key, count) < count


# -- in other processes -------------------------------------------------------------------

SAYS_SHARDS = """
import json, pickle, sys
sys.path[:0] = {path!r}
from daskbatch.shared.data.partition import shard_of
keys = pickle.load(sys.stdin.buffer)
print(json.dumps([hash("a"), [shard_of(key, {many}) for key in keys]]))
"""


def test_other_processes_say_the_same() -> None:
    keys = [
        *(key for group in GROUPS for key in group if not isinstance(key, memoryview)),
        *(math.nan, Decimal("nan"), np.float32(np.nan), (math.nan,), Ellipsis, len, int),
        *(f"key-{number}" for number in range(100)),
    ]
    # Other processes do not have the classes of this file.
    keys = [key for key in keys if __name__.encode() not in pickle.dumps(key)]
    program = SAYS_SHARDS.format(path=sys.path, many=MANY)
    here = [shard_of(key, MANY) for key in keys]
    hashes = set()
    for seed in ("0", "1", "12345"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            input=pickle.dumps(keys),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        hashed, there = json.loads(run.stdout)
        hashes.add(hashed)
        assert there == here
    assert len(hashes) == 3, "the hash of texts was meant to differ"


# -- fairness -----------------------------------------------------------------------------

COUNT = 100_000

MAKERS: dict[str, Callable[[int], Hashable]] = {
    "numbers": lambda n: n,
    "multiples": lambda n: n * 48,
    "high multiples": lambda n: n << 40,
    "negative": lambda n: -n,
    "fractions": lambda n: n / 100,
    "texts": lambda n: f"key-{n}",
    "padded": lambda n: f"{n:08}.npy",
    "bytes": lambda n: n.to_bytes(8, "little"),
    "pairs": lambda n: (n // 300, n % 300),
    "named": lambda n: ("block", n, 0),
    "sets": lambda n: frozenset({n, "a"}),
    "ids": lambda n: uuid.uuid5(uuid.NAMESPACE_URL, str(n)),
    "days": lambda n: date.fromordinal(n + 1),
    "moments": lambda n: datetime(2024, 1, 1) + timedelta(seconds=n),
    "paths": lambda n: PurePosixPath(f"/data/file_{n}"),
    "dataclasses": lambda n: Cell(n // 300, n % 300),
    "numpy": lambda n: np.int64(n),
}


@pytest.mark.parametrize("count", [2, 3, 8, 16])
@pytest.mark.parametrize("name", MAKERS)
def test_keys_are_shared_out_fairly(name: str, count: int) -> None:
    keys = map(MAKERS[name], range(COUNT))
    shards = Counter(shard_of(key, count) for key in keys)
    fair = COUNT / count
    assert len(shards) == count
    assert all(abs(number - fair) < 0.1 * fair for number in shards.values()), shards

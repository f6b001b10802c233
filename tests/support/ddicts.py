"""Keys for dictionaries, and functions of tasks and other processes that use dictionaries."""

from __future__ import annotations

import enum
import os
import signal
import threading
import uuid
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as clock
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np
from distributed import get_worker
from support.waiting import wait_for_file

from daskbatch import DDict


class Text(str):
    """A text of a derived type."""


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 7


class Mode(enum.StrEnum):
    READ = "read"


class Place(NamedTuple):
    row: int
    name: str


@dataclass(frozen=True)
class Point:
    x: float
    name: str


class Folded:
    """Equal to another one regardless of case; its hash differs from process to process."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folded) and self.text.lower() == other.text.lower()

    def __hash__(self) -> int:
        return hash(self.text.lower())


class Plain:
    """Equal to itself only."""


def _groups() -> dict[str, list[Hashable]]:
    east = timezone(timedelta(hours=2))
    return {
        "one": [
            1,
            1.0,
            True,
            Fraction(1),
            1 + 0j,
            np.int64(1),
            np.float32(1),
            Level(1),
        ],
        "zero": [0, 0.0, -0.0, False, Fraction(0), np.uint8(0)],
        "seven": [7, Level.HIGH, Decimal("7.000")],
        "half": [0.5, Fraction(1, 2), Decimal("0.5"), np.float64(0.5)],
        "third": [Fraction(1, 3), Fraction(2, 6)],
        "tenth": [0.1, np.float64(0.1)],
        "decimal tenth": [Decimal("0.1"), Fraction(1, 10)],
        "negative": [-1, -1.0, Decimal(-1)],
        "negative two": [-2, -2.0],  # hash(-1) == hash(-2)
        "large": [2**70, float(2**70), Decimal(2**70), Fraction(2**70)],
        "infinity": [float("inf"), Decimal("inf")],
        "complex": [1 + 2j, np.complex128(1 + 2j)],
        "text": ["text", Text("text"), np.str_("text")],
        "read": ["read", Mode.READ],
        "no text": ["", Text()],
        "bytes": [b"text", np.bytes_(b"text")],
        "tuple": [(1, "a"), (1.0, Text("a")), (True, "a"), Place(1, "a")],
        "nested": [((1, (2, "b")), None), ((1.0, (Decimal(2), Text("b"))), None)],
        "no tuple": [()],
        "frozenset": [frozenset({1, 2, "x"}), frozenset(["x", 2.0, True])],
        "nested sets": [
            frozenset({frozenset({1}), (2, "y")}),
            frozenset([(2.0, "y"), frozenset([True])]),
        ],
        "none": [None],
        "ellipsis": [...],
        "red": [Colour.RED, Colour(1)],
        "green": [Colour.GREEN, Colour("green")],
        "dataclass": [Point(1, "p"), Point(1.0, Text("p")), Point(True, "p")],
        "folded": [Folded("Straße"), Folded("STRAßE"), Folded("straße")],
        "in a tuple": [(Folded("A"), Colour.RED), (Folded("a"), Colour.RED)],
        "moment": [
            datetime(2024, 5, 1, 12, tzinfo=UTC),
            datetime(2024, 5, 1, 14, tzinfo=east),
        ],
        "naive moment": [datetime(2024, 5, 1, 12), datetime(2024, 5, 1, 12, fold=1)],
        "date": [date(2024, 5, 1)],
        "clock": [clock(12, 30), clock(12, 30, 0, 0)],
        "span": [timedelta(days=1), timedelta(hours=24)],
        "zone": [east, timezone(timedelta(minutes=120))],
        "uuid": [uuid.UUID(int=5), uuid.UUID("00000000-0000-0000-0000-000000000005")],
        "path": [Path("a/b"), Path("a//b/"), PurePosixPath("a") / "b"],
        "range": [range(0, 3, 2), range(0, 4, 2)],
        "no range": [range(0), range(5, 2)],
        "type": [int],
        "other type": [Point],
        "function": [len],
        "other function": [os.path.join],
        "emoji": ["Straße 🚲 \u0000", Text("Straße 🚲 \u0000")],
        "surrogate": ["\ud800"],
        "composed": ["\u00e9"],
        "decomposed": ["e\u0301"],
    }


#: Groups of equal keys, by a name. Keys of different groups are not equal.
GROUPS = _groups()


def write_first(d: DDict) -> None:
    for name, keys in GROUPS.items():
        d[keys[0]] = name


def misread(d: DDict) -> list[str]:
    """Read all keys of this process; return those that lead to a wrong value."""
    wrong = [
        f"{name}: {key!r} -> {d.get(key)!r}"
        for name, keys in GROUPS.items()
        for key in keys
        if d.get(key) != name or key not in d
    ]
    right = {keys[-1]: name for name, keys in GROUPS.items()}
    try:
        if d.get_many(right) != right:
            wrong.append("get_many")
    except KeyError as missing:
        wrong.append(f"get_many: {missing} are missing")
    if dict(d.items()) != right or set(d) != set(right):
        wrong.append("items or keys")
    return wrong


def write_last(d: DDict) -> None:
    for name, keys in GROUPS.items():
        d[keys[-1]] = name.upper()
    for keys in GROUPS.values():
        d[keys[-1]] = d[keys[0]].lower()


# -- tasks ------------------------------------------------------------------------------


def read(d: DDict, key: Any) -> Any:
    return d[key]


def read_late(d: DDict, key: Any, path: Path) -> Any:
    """Create a file, and then read a key that does not exist yet."""
    path.touch()
    return d[key]


def read_in_vain(d: DDict, key: Any) -> str:
    """Wait for a key that is never written, and return what each attempt raises."""
    assert key not in d
    assert d.get(key, "default") == "default"
    assert d.pop(key, "default") == "default"
    raised = []
    for attempt in (d.__getitem__, d.pop, lambda key: d.get_many([key])):
        try:
            attempt(key)
        except TimeoutError:
            raised.append("late")
    return " ".join(raised)


def write(d: DDict, key: Any, value: Any) -> None:
    d[key] = value


def add_one(d: DDict, source: Any, target: Any) -> int:
    d[target] = d[source] + 1
    return int(d[target])


def write_after(d: DDict, key: Any, value: Any, path: Path) -> None:
    """Write once a file exists."""
    wait_for_file(path)
    d[key] = value


def read_after(d: DDict, key: Any, path: Path) -> Any:
    """Read once a file exists."""
    wait_for_file(path)
    return d[key]


def count_up(d: DDict, key: Any, times: int) -> list[int]:
    return [d.fetch_add(key) for _ in range(times)]


def change_copies(d: DDict, key: Any) -> tuple[bool, list[Any]]:
    """Change objects that were put and got; return whether the shard is local, and the value."""
    mine: Any = [[1], np.zeros(3), np.zeros(200_000)]
    d[key] = mine
    _spoil(mine)
    for get in (
        d.__getitem__,
        d.get,
        lambda key: d.get_many([key])[key],
        lambda key: d.setdefault(key, 1),
    ):
        _spoil(get(key))
    _spoil(next(iter(d.values())))
    _spoil(next(iter(d.items()))[1])
    mine = {"x": np.zeros(200_000)}
    d.put_many({key: d[key], "other": mine})
    mine["x"] += 1
    assert not d["other"]["x"].any()
    default: list[int] = []
    d.setdefault("default", default).append(1)
    default.append(2)
    assert d["default"] == []
    kept = d[key]
    return key in d.local_keys(), [kept[0], float(kept[1].sum()), float(kept[2].sum())]


def _spoil(value: Any) -> None:
    value[0].append(2)
    value[1] += 1
    value[2][:] = 5
    value.append("more")


def here(d: DDict) -> tuple[str, list[Any]]:
    """Return the worker that this runs on, and the keys that it serves."""
    return str(get_worker().address), d.local_keys()


def keys_here(d: DDict) -> list[Any]:
    return d.local_keys()


def by_name(name: str, key: Any) -> Any:
    """Open a dictionary on the cluster that this task runs on."""
    with_name = DDict(name=name)
    value = with_name[key]
    with_name[key] = "changed"
    return value


class Doubled(DDict):
    """A derived dictionary with one more method and attribute."""

    unit = ""

    def twice(self, key: Any) -> str:
        return f"{2 * self[key]}{self.unit}"


def twice(d: Doubled, key: Any) -> str:
    return d.twice(key)


def make_one() -> DDict:
    """Make a dictionary on the cluster that this task runs on."""
    d = DDict()
    d["made"] = "there"
    return d


def make_at(address: str, name: str | None = None) -> DDict:
    d = DDict(address, name=name)
    d["made"] = "there"
    return d


def outcome(function: Callable[..., object], *args: Any) -> str:
    """Return the name of the exception that a call raises."""
    try:
        function(*args)
    except Exception as error:
        return type(error).__name__
    return "nothing"


def write_in_order(d: DDict, first: Any, then: Any, stop: Path) -> int:
    """Write numbers, each to one key and then to another, until a file exists."""
    number = 0
    while not stop.exists():
        number += 1
        d[first] = number
        d[then] = number
    return number


# -- objects that do not pickle ---------------------------------------------------------------


class Unpicklable:
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Unloadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ArithmeticError("not again")


class Telling:
    """A key that is equal to all others of its class, and calls `tell` when it is unpickled.

    It does so in this process only, and once.
    """

    tell: ClassVar[Callable[[], object] | None] = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Telling)

    def __hash__(self) -> int:
        return 5

    def __reduce__(self) -> Any:
        return _told, ()


def _told() -> Telling:
    tell, Telling.tell = Telling.tell, None
    if tell is not None:
        tell()
    return Telling()


# -- other processes --------------------------------------------------------------------


def use_in_process(d: DDict, answers: Any) -> None:
    """Read and write a dictionary that another process has made."""
    d["there"] = [d["here"], os.getpid()]
    answers.put(sorted(d))


def make_and_wait(address: str, fork: bool, answers: Any, end: Any) -> None:
    """Make dictionaries at an address, and wait until `end` has an item."""
    made = [make_at(address), make_at(address)]
    make_at(address, "stays, too")
    if fork and os.fork() == 0:
        signal.pause()
    answers.put(made)
    end.get()

"""Names the keys of a Dask graph so that Dask's dashboard shows the user's names.

Dask groups keys by their names: keys up to the nonce have one prefix, and one colour; keys with
one nonce are one group. The pages of the dashboard fail if groups depend on each other in a circle.
So the blocks of one name that wait for each other by way of others are in groups of different
*stages*. Pure functions and records; one thread uses a `Stages` or a `KeyValues`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

from daskbatch.dispatch.task_record import TaskRecord

#: The longest name that is shown on the dashboard.
_MAX_NAME_CHARACTERS = 60

#: The names in Dask of what is not a task of one name: tokens, shared buffers, blocks of tasks of
#: several names, barriers, and tasks whose names are not shown. With another task's name, Dask
#: would expect tokens to take as long as that task, and let idle workers steal them together with
#: the values.
TOKEN, BUFFER = "daskbatch_token", "daskbatch_buffer"
MIXED, BARRIER, OTHERS = "daskbatch_block", "daskbatch_barrier", "daskbatch_other"

#: The name of the annotation of keys that holds their `NameCounts`.
NAMES = "daskbatch_names"

#: Of a block of many names, this many are shown; the other tasks are counted as `OTHERS`.
_MAX_NAMES = 20

#: Beyond this many stages, blocks of one name that take each other's values share a group: Dask
#: ignores that a group depends on itself, and each group costs it memory.
_MAX_STAGES = 50

#: How many members of a block have which name: for Dask's prefix, and a number.
NameCounts = tuple[tuple[str, int], ...]

_Block = TypeVar("_Block", bound=Hashable)
_Value = TypeVar("_Value")


@lru_cache(maxsize=4096)
def dashboard_name(name: str) -> str:
    """Return a name that Dask's dashboard shows whole: it cuts at other characters.

    >>> dashboard_name("two words"), dashboard_name("2nd"), dashboard_name("größe")
    ('two_words', 'task_2nd', 'gr_e')
    """
    plain = re.sub(r"[^A-Za-z0-9_.]+", "_", name)[:_MAX_NAME_CHARACTERS]
    # Dask shows a name of 32 hexadecimal digits as "data".
    plain_is_shown = plain[:1].isalpha() and not re.fullmatch(r"[a-f0-9]{32}", plain)
    return plain if plain_is_shown else f"task_{plain}"


def shown_name(record: TaskRecord) -> str:
    """Return the name of a task on Dask's dashboard."""
    prefix = "" if record.group is None else record.group.prefix
    return dashboard_name(f"{prefix}_{record.base_name}" if prefix else record.base_name)


def member_names(records: Sequence[TaskRecord]) -> tuple[str, NameCounts]:
    """Return the name of a block's key, and how many of its members have which name."""
    group = records[0].group
    prefix = "" if group is None else group.prefix
    counts: Counter[str] = Counter()
    for name, count in Counter(
        record.base_name for record in records if record.call is not None
    ).items():
        counts[dashboard_name(f"{prefix}_{name}" if prefix else name)] += count
    if not counts:
        return BARRIER, ()
    shown = counts.most_common(_MAX_NAMES)
    others = counts.total() - sum(count for _, count in shown)
    if others:
        shown.append((OTHERS, others))
    return shown[0][0] if len(shown) == 1 else MIXED, tuple(shown)


class KeyValues(Generic[_Value]):
    """An annotation with another value for each key of a graph: called with a key.

    Parameters
    ----------
    default : object
        The value for all keys that have none.
    """

    __slots__ = ("_default", "_values")

    def __init__(self, default: _Value) -> None:
        self._default = default
        self._values: dict[Any, _Value] = {}

    def add(self, key: Any, value: _Value) -> None:
        """Set the value of a key."""
        self._values[key] = value

    def __call__(self, key: Any) -> _Value:
        return self._values.get(key, self._default)


class Stages(Generic[_Block]):
    """The groups of the blocks of one graph. Not thread-safe.

    A group of blocks depends on groups of earlier stages only. A group of tokens has the stage of
    the blocks that take them: it depends on blocks of the stage before.

    Parameters
    ----------
    nonce : str
        Hexadecimal digits that no other graph has.
    """

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self._placed: dict[_Block, tuple[int, str]] = {}

    def place(
        self, block: _Block, name: str, values: Iterable[_Block], tokens: Iterable[_Block]
    ) -> str:
        """Return the group of a block.

        Parameters
        ----------
        block : hashable
            The block.
        name : str
            The name of its key.
        values, tokens : iterable of blocks
            The blocks whose keys, or whose tokens, its key depends on; they were placed before,
            or are of an earlier graph.
        """
        stage = 0
        for other in values:
            before, its_name = self._placed.get(other, (-1, ""))
            together = its_name == name and before >= _MAX_STAGES
            stage = max(stage, before if together else before + 1)
        for other in tokens:
            stage = max(stage, self._token_stage(other))
        self._placed[block] = stage, name
        return self._group(name, stage)

    def _token_stage(self, block: _Block) -> int:
        return self._placed.get(block, (-1, ""))[0] + 1

    def token_group(self, block: _Block) -> str:
        """Return the group of the token of a block."""
        return self._group(TOKEN, self._token_stage(block))

    def _group(self, name: str, stage: int) -> str:
        return f"{name}-{self._nonce}{stage:04x}" if stage else f"{name}-{self._nonce}"

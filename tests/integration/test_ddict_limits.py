"""A dictionary refuses what does not pickle, use while frozen or closed, wrong parameters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, cast

import numpy as np
import pytest
from support import ddicts

from daskbatch import Batch, DDict, LifecycleError, SerializationError, ServiceLost, SpecError


@pytest.fixture
def d(batch: Batch) -> Iterator[DDict]:
    with batch.ddict(shards=2) as made:
        yield made


# -- what cannot be kept ------------------------------------------------------------------


def test_what_does_not_pickle(d: DDict) -> None:
    d["a"] = 1
    bad: Any = ddicts.Unpicklable()
    for act in (
        lambda: d.__setitem__("a", bad),
        lambda: d.__setitem__("b", [bad]),
        lambda: d.setdefault("b", bad),
        lambda: d.put_many({"b": bad}),
        lambda: d.update(b=bad),
        lambda: d.__setitem__(bad, 1),
        lambda: d.__getitem__(bad),
        lambda: d.get_many([bad]),
    ):
        with pytest.raises(SerializationError):
            act()
    assert d == {"a": 1}


def test_the_key_of_what_does_not_pickle_is_named(d: DDict) -> None:
    lock: Any = threading.Lock()
    for act in (
        lambda: d.__setitem__("b", lock),
        lambda: d.setdefault("b", lock),
        lambda: d.put_many({"a": 1, "b": lock}),
    ):
        with pytest.raises(SerializationError, match="value of the key 'b', a lock, cannot be"):
            act()
    said = r"value of the key \('b', None\), a dict, .*; it is value\['c'\], a lock"
    with pytest.raises(SerializationError, match=said):
        d["b", None] = {"c": lock}


def test_what_does_not_unpickle(d: DDict) -> None:
    d.update(a=1, b=ddicts.Unloadable())
    for act in (lambda: d["b"], lambda: d.get("b"), lambda: d.get_many(["a", "b"])):
        with pytest.raises(SerializationError, match="not again"):
            act()
    assert (d["a"], len(d), set(d), "b" in d) == (1, 2, {"a", "b"}, True)
    d["b"] = 2
    assert d == {"a": 1, "b": 2}
    d["b"] = ddicts.Unloadable()
    del d["b"]
    assert d == {"a": 1}


def test_a_key_that_does_not_unpickle(d: DDict) -> None:
    d["a"] = 1
    with pytest.raises(SerializationError):
        d[ddicts.Unloadable()] = 1
    assert d == {"a": 1}


def test_keys_that_no_dict_takes(d: DDict) -> None:
    for key in ([1], {}, (1, [2]), bytearray(b"x")):
        for act in (
            lambda: d[key],  # noqa: B023 - is called at once
            lambda: d.__setitem__(key, 1),  # noqa: B023
            lambda: key in d,  # noqa: B023
            lambda: d.get(key),  # noqa: B023
            lambda: d.pop(key, None),  # noqa: B023
            lambda: d.setdefault(key),  # noqa: B023
            lambda: d.fetch_add(key),  # noqa: B023
            lambda: d.get_many([key]),  # noqa: B023
            lambda: d.put_many([("a", 1), (key, 1)]),  # noqa: B023
        ):
            with pytest.raises(TypeError):
                act()
    assert d == {}


# -- frozen and closed --------------------------------------------------------------------

WRITES: dict[str, Callable[[DDict], Any]] = {
    "d[k] = v": lambda d: d.__setitem__("a", 2),
    "del d[k]": lambda d: d.__delitem__("a"),
    "pop": lambda d: d.pop("a"),
    "pop with default": lambda d: d.pop("a", None),
    "popitem": lambda d: d.popitem(),
    "setdefault": lambda d: d.setdefault("b", 1),
    "update": lambda d: d.update(a=2),
    "put_many": lambda d: d.put_many({"a": 2}),
    "fetch_add": lambda d: d.fetch_add("a"),
    "clear": lambda d: d.clear(),
}

READS: dict[str, Callable[[DDict], Any]] = {
    "d[k]": lambda d: d["a"],
    "get": lambda d: d.get("a"),
    "in": lambda d: "a" in d,
    "len": len,
    "iter": list,
    "keys": lambda d: list(d.keys()),
    "values": lambda d: list(d.values()),
    "items": lambda d: list(d.items()),
    "get_many": lambda d: d.get_many(["a"]),
    "==": lambda d: d == {"a": 1},
    "stats": lambda d: d.stats(),
    "workers_for": lambda d: d.workers_for(["a"]),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_frozen_one_is_not_written(d: DDict, write: str) -> None:
    d["a"] = 1
    assert not d.frozen
    d.freeze()
    assert d.frozen
    with pytest.raises(LifecycleError, match="frozen"):
        WRITES[write](d)
    assert d == {"a": 1}
    d.freeze()
    d.unfreeze()
    d.unfreeze()
    assert not d.frozen
    WRITES[write](d)


@pytest.mark.parametrize("read", [each for each in READS if each != "stats"])
def test_a_frozen_one_is_read(d: DDict, read: str) -> None:
    d["a"] = 1
    before = READS[read](d)
    d.freeze()
    assert READS[read](d) == before


#: What asks nobody for anything.
EMPTY: dict[str, Callable[[DDict], Any]] = {
    "put_many of none": lambda d: d.put_many({}),
    "update with none": lambda d: d.update({}),
    "|= with none": lambda d: d.__ior__({}),
    "get_many of none": lambda d: d.get_many([]),
    "workers_for none": lambda d: d.workers_for(iter([])),
    "local_keys": lambda d: d.local_keys(),
}


@pytest.mark.parametrize("use", [*WRITES, *READS, *EMPTY, "freeze", "unfreeze"])
def test_a_closed_one_is_not_used(batch: Batch, use: str) -> None:
    d = batch.ddict()
    d["a"] = 1
    d.close()
    d.close()
    with pytest.raises(LifecycleError, match="closed"):
        {**WRITES, **READS, **EMPTY, "freeze": DDict.freeze, "unfreeze": DDict.unfreeze}[use](d)


def test_a_block_closes_it(batch: Batch) -> None:
    with pytest.raises(ZeroDivisionError), batch.ddict() as d:
        raise ZeroDivisionError
    with pytest.raises(LifecycleError):
        len(d)


def test_what_has_ended_with_its_cluster_can_be_closed() -> None:
    with Batch(num_workers=1) as own:
        d, queue = own.ddict(), own.queue()
        d["a"] = 1
    d.close()
    queue.close()
    with d:
        pass
    with pytest.raises(ServiceLost):
        d.get_many([])


# -- parameters --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"shards": 0},
        {"shards": -1},
        {"shards": 1.5},
        {"shards": True},
        {"replicas": 0},
        {"replicas": 3},
        {"memory_limit": -1},
        {"memory_limit": "much"},
        {"shards": np.bool_(True)},
        {"shards": np.float64(2)},
        {"timeout": "soon"},
        {"timeout": -1},
        {"timeout": float("-inf")},
        {"timeout": timedelta(seconds=-1)},
        {"name": ""},
        {"name": 5},
    ],
    ids=str,
)
def test_wrong_parameters(batch: Batch, options: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        batch.ddict(**options)
    assert next(iter(options)) in str(caught.value)


def test_whole_numbers_of_other_types(batch: Batch) -> None:
    with batch.ddict(shards=cast(int, np.int64(2)), replicas=cast(int, np.uint8(1))) as d:
        assert len(d.stats()) == 2

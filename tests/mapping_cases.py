"""CPython's own cases of mappings, put together with a DDict; and those of dict, rewritten.

A module of its own, because workers import it: keys and values are pickled by name. What is in
`test.mapping_tests` runs as it is written, but for what is `REWRITTEN`. The cases of dict are
about dict's own literals, so each that applies is written anew in `DictCases`, by the same name.
"""

from __future__ import annotations

import random
import unittest
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, ClassVar

from cpython_path import HERE, SHIPPED

from daskbatch import Batch

from test import mapping_tests  # isort: skip - after cpython_path

#: The layouts that all cases run with.
LAYOUTS: dict[str, dict[str, Any]] = {
    "OneShard": {"shards": 1},
    "ThreeShards": {"shards": 3},
    "Replicas": {"shards": 3, "replicas": 2},
    "OneShardSpilled": {"shards": 1, "memory_limit": 1},
    "ReplicasSpilled": {"shards": 3, "replicas": 2, "memory_limit": 1},
}

_ITERATION = "iteration is lazy, goes on while others write, and has no order"
_COPY = "there is no copy(): dict(d) is one, in this process"
_FROM_KEYS = "there is no fromkeys(): a DDict needs a cluster, and is closed"
_REPR = "repr() says which dictionary it is; it does not fetch what may be larger than memory"
_IDENTITY = "keys and values are copies: what their methods do, they do elsewhere"
_MEMORY = "how CPython's dict keeps its memory"
_COLLECTOR = "what CPython's garbage collector follows"
_CRASH = "a crash of CPython's dict, by keys or values that change it while they are compared"

#: Every case that is not run, and why.
NOT_RUN = {
    "TestMappingProtocol.test_copy": _COPY,
    "TestMappingProtocol.test_fromkeys": _FROM_KEYS,
    "TestHashMappingProtocol.test_fromkeys": _FROM_KEYS,
    "TestHashMappingProtocol.test_mutatingiteration": _ITERATION,
    "TestHashMappingProtocol.test_repr": _REPR,
    "TestHashMappingProtocol.test_repr_deep": _REPR,
    "DictTest.test_merge_operator": "a MutableMapping has neither | nor |=",
    "DictTest.test_views_mapping": "the views of collections.abc have no .mapping",
    "DictTest.test_fromkeys": _FROM_KEYS,
    "DictTest.test_fromkeys_operator_modifying_dict_operand": _FROM_KEYS,
    "DictTest.test_fromkeys_operator_modifying_set_operand": _FROM_KEYS,
    "DictTest.test_copy": _COPY,
    "DictTest.test_copy_fuzz": _COPY,
    "DictTest.test_copy_maintains_tracking": _COPY,
    "DictTest.test_copy_noncompact": _COPY,
    "DictTest.test_dict_copy_order": _COPY,
    "DictTest.test_setdefault_atomic": _IDENTITY,
    "DictTest.test_setitem_atomic_at_resize": _IDENTITY,
    "DictTest.test_mutating_iteration": _ITERATION,
    "DictTest.test_mutating_iteration_delete": _ITERATION,
    "DictTest.test_mutating_iteration_delete_over_values": _ITERATION,
    "DictTest.test_mutating_iteration_delete_over_items": _ITERATION,
    "DictTest.test_mutating_lookup": _IDENTITY,
    "DictTest.test_repr": _REPR,
    "DictTest.test_repr_deep": _REPR,
    "DictTest.test_missing": "about subclasses; test_tuple_keyerror has what is in KeyError",
    "DictTest.test_resize2": _CRASH,
    "DictTest.test_empty_presized_dict_in_freelist": _MEMORY,
    "DictTest.test_container_iterator": _COLLECTOR,
    "DictTest.test_track_literals": _COLLECTOR,
    "DictTest.test_track_dynamic": _COLLECTOR,
    "DictTest.test_track_subtypes": _COLLECTOR,
    "DictTest.test_splittable_setdefault": _MEMORY,
    "DictTest.test_splittable_del": _MEMORY,
    "DictTest.test_splittable_pop": _MEMORY,
    "DictTest.test_splittable_pop_pending": _MEMORY,
    "DictTest.test_splittable_popitem": _MEMORY,
    "DictTest.test_splittable_update": _MEMORY,
    "DictTest.test_splittable_to_generic_combinedtable": _MEMORY,
    "DictTest.test_splittable_update_copy": _MEMORY,
    "DictTest.test_iterator_pickling": _ITERATION,
    "DictTest.test_itemiterator_pickling": _ITERATION,
    "DictTest.test_valuesiterator_pickling": _ITERATION,
    "DictTest.test_reverseiterator_pickling": _ITERATION,
    "DictTest.test_reverseitemiterator_pickling": _ITERATION,
    "DictTest.test_reversevaluesiterator_pickling": _ITERATION,
    "DictTest.test_instance_dict_getattr_str_subclass": "the __dict__ of an object",
    "DictTest.test_object_set_item_single_instance_non_str_key": "the __dict__ of an object",
    "DictTest.test_reentrant_insertion": _CRASH,
    "DictTest.test_merge_and_mutate": _CRASH,
    "DictTest.test_free_after_iterating": _COLLECTOR,
    "DictTest.test_equal_operator_modifying_operand": _CRASH,
    "DictTest.test_dictitems_contains_use_after_free": _CRASH,
    "DictTest.test_dict_contain_use_after_free": _CRASH,
    "DictTest.test_init_use_after_free": _CRASH,
    "DictTest.test_oob_indexing_dictiter_iternextitem": _CRASH,
    "DictTest.test_reversed": _ITERATION,
    "DictTest.test_reverse_iterator_for_empty_dict": _ITERATION,
    "DictTest.test_reverse_iterator_for_shared_shared_dicts": _ITERATION,
    "DictTest.test_dict_items_result_gc": _COLLECTOR,
    "DictTest.test_dict_items_result_gc_reversed": _COLLECTOR,
    "DictTest.test_store_evilattr": _CRASH,
    "CAPITest.test_getitem_knownhash": "dict's functions for C",
}

#: The cases of mappings of which a part does not apply, and which; `MappingCases` has the rest.
REWRITTEN = {
    "TestMappingProtocol.test_constructor": "the parameters of a DDict are not its items",
    "TestMappingProtocol.test_setdefault": "what setdefault() gives is a copy",
    "TestHashMappingProtocol.test_setdefault": "is called by the same name in our class",
    "TestMappingProtocol.test_popitem": "two equal dictionaries need not give the same item",
}


class Error(Exception):
    """What keys and values raise that are asked to."""


class BadEq:
    """Equal to nothing, nor different from it."""

    def __init__(self, number: int = 1) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        raise Error

    def __hash__(self) -> int:
        return self.number


class BadHash:
    """Has a hash, until it has none."""

    fail = False

    def __hash__(self) -> int:
        if self.fail:
            raise Error
        return 42


class BadDictKey:
    """Cannot be compared with its like."""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BadDictKey):
            raise Error
        return False

    def __hash__(self) -> int:
        return 7


class BadValue:
    """Cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


class Text(str):
    """A text that is of no type of Python's own."""


class SimpleUserDict:
    """The least that update() takes as a mapping."""

    def keys(self) -> Any:
        return {1: 1, 2: 2, 3: 3}.keys()

    def __getitem__(self, key: int) -> int:
        return key


class FailingUserDict(SimpleUserDict):
    """Fails at its keys, after the first of them, or at its values."""

    def __init__(self, where: str) -> None:
        self.where = where

    def keys(self) -> Any:
        if self.where == "keys":
            raise Error
        return self._keys()

    def _keys(self) -> Iterator[int]:
        yield 1
        if self.where == "after the first":
            raise Error
        yield 2

    def __getitem__(self, key: int) -> int:
        if self.where == "values":
            raise Error
        return key


class OnCluster(unittest.TestCase):
    """Makes dictionaries of one layout, and closes them after each test."""

    batch: ClassVar[Batch]
    options: ClassVar[dict[str, Any]]

    def type2test(self) -> Any:
        made = self.batch.ddict(**self.options)
        self.addCleanup(made.close)
        return made

    def make(self, items: Mapping[Any, Any] | None = None) -> MutableMapping[Any, Any]:
        made: MutableMapping[Any, Any] = self.type2test()
        for key, value in (items or {}).items():
            made[key] = value
        return made


class MappingCases(OnCluster, mapping_tests.TestHashMappingProtocol):  # type: ignore[misc]
    """CPython's cases of any mapping."""

    def test_constructor(self) -> None:
        mapping_tests.BasicTestMappingProtocol.test_constructor(self)
        self.assertIsNot(self.type2test(), self.type2test())

    def test_setdefault(self) -> None:
        mapping_tests.BasicTestMappingProtocol.test_setdefault(self)
        d = self.make()
        self.assertIsNone(d.setdefault("key0"))
        d.setdefault("key0", [])
        self.assertIsNone(d.setdefault("key0"))
        d.setdefault("key", []).append(3)
        self.assertEqual(d["key"], [], "a copy was changed")
        x = BadHash()
        d[x] = 42
        x.fail = True
        self.assertRaises(Error, d.setdefault, x, [])

    def test_popitem(self) -> None:
        mapping_tests.BasicTestMappingProtocol.test_popitem(self)
        for size in (1, 2, 17, 64):
            a = self.make({repr(number): number for number in range(size)})
            popped = [a.popitem() for _ in range(size)]
            self.assertEqual(dict(popped), {repr(number): number for number in range(size)})
            self.assertFalse(a)


class DictCases(OnCluster):
    """What of CPython's cases of dict is not about dict alone."""

    def test_invalid_keyword_arguments(self) -> None:
        invalid: Any = {1: 2}
        with self.assertRaises(TypeError):
            self.make().update(**invalid)

    def test_constructor(self) -> None:
        self.assertEqual(self.make(), {})
        self.assertIsNot(self.make(), {})

    def test_literal_constructor(self) -> None:
        d = self.make()
        for size in (0, 1, 6, 256, 400):
            items = [(f"{random.random()}", number) for number in range(size)]
            d.clear()
            d.update(items)
            self.assertEqual(d, dict(items))

    def test_bool(self) -> None:
        self.assertIs(not self.make(), True)
        self.assertTrue(self.make({1: 2}))
        self.assertIs(bool(self.make()), False)
        self.assertIs(bool(self.make({1: 2})), True)

    def test_keys(self) -> None:
        self.assertEqual(set(self.make().keys()), set())
        d = self.make({"a": 1, "b": 2})
        keys = d.keys()
        self.assertEqual(set(keys), {"a", "b"})
        for key in ("a", "b"):
            self.assertIn(key, keys)
            self.assertIn(key, d)
        self.assertRaises(TypeError, d.keys, None)

    def test_values(self) -> None:
        self.assertEqual(set(self.make().values()), set())
        d = self.make({1: 2})
        self.assertEqual(set(d.values()), {2})
        self.assertRaises(TypeError, d.values, None)

    def test_items(self) -> None:
        self.assertEqual(set(self.make().items()), set())
        d = self.make({1: 2})
        self.assertEqual(set(d.items()), {(1, 2)})
        self.assertRaises(TypeError, d.items, None)

    def test_contains(self) -> None:
        d = self.make()
        self.assertNotIn("a", d)
        self.assertFalse("a" in d)
        d = self.make({"a": 1, "b": 2})
        self.assertIn("a", d)
        self.assertIn("b", d)
        self.assertNotIn("c", d)
        self.assertRaises(TypeError, d.__contains__)

    def test_len(self) -> None:
        self.assertEqual(len(self.make()), 0)
        self.assertEqual(len(self.make({"a": 1, "b": 2})), 2)

    def test_getitem(self) -> None:
        d = self.make({"a": 1, "b": 2})
        self.assertEqual((d["a"], d["b"]), (1, 2))
        d["c"] = 3
        d["a"] = 4
        self.assertEqual((d["c"], d["a"]), (3, 4))
        del d["b"]
        self.assertEqual(d, {"a": 4, "c": 3})
        self.assertRaises(TypeError, d.__getitem__)
        d = self.make({BadEq(24): 42})
        self.assertRaises(KeyError, d.__getitem__, 23)
        x = BadHash()
        d[x] = 42
        x.fail = True
        self.assertRaises(Error, d.__getitem__, x)

    def test_clear(self) -> None:
        d = self.make({1: 1, 2: 2, 3: 3})
        d.clear()
        self.assertEqual(d, {})
        self.assertRaises(TypeError, d.clear, None)

    def test_update(self) -> None:
        d = self.make()
        d.update({1: 100})
        d.update({2: 20})
        d.update({1: 1, 2: 2, 3: 3})
        self.assertEqual(d, {1: 1, 2: 2, 3: 3})
        d.update()
        self.assertEqual(d, {1: 1, 2: 2, 3: 3})
        self.assertRaises((TypeError, AttributeError), d.update, None)
        d.clear()
        d.update(SimpleUserDict())
        self.assertEqual(d, {1: 1, 2: 2, 3: 3})
        for where in ("keys", "after the first", "values"):
            self.assertRaises(Error, d.update, FailingUserDict(where))
        self.assertRaises(Error, d.update, FailingUserDict("after the first").keys())
        self.assertRaises(ValueError, d.update, [(1, 2, 3)])

    def test_get(self) -> None:
        d = self.make()
        self.assertIs(d.get("c"), None)
        self.assertEqual(d.get("c", 3), 3)
        d = self.make({"a": 1, "b": 2})
        self.assertIs(d.get("c"), None)
        self.assertEqual(d.get("c", 3), 3)
        self.assertEqual(d.get("a"), 1)
        self.assertEqual(d.get("a", 3), 1)
        self.assertRaises(TypeError, d.get)
        self.assertRaises(TypeError, d.get, None, None, None)

    def test_setdefault(self) -> None:
        d = self.make()
        self.assertIs(d.setdefault("key0"), None)
        d.setdefault("key0", [])
        self.assertIs(d.setdefault("key0"), None)
        self.assertEqual(d.setdefault("key", [3]), [3])
        self.assertEqual(d.setdefault("key", [4]), [3])
        self.assertRaises(TypeError, d.setdefault)
        x = BadHash()
        d[x] = 42
        x.fail = True
        self.assertRaises(Error, d.setdefault, x, [])

    def test_popitem(self) -> None:
        d = self.make({number: str(number) for number in range(20)})
        popped = [d.popitem() for _ in range(20)]
        self.assertEqual(dict(popped), {number: str(number) for number in range(20)})
        self.assertRaises(KeyError, d.popitem)

    def test_pop(self) -> None:
        d = self.make({"abc": "def"})
        self.assertRaises(KeyError, d.pop, "ghi")
        self.assertEqual(d.pop("abc"), "def")
        self.assertEqual(len(d), 0)
        self.assertRaises(KeyError, d.pop, "abc")
        self.assertEqual(d.pop("abc", "def"), "def")
        d["abc"] = "def"
        self.assertEqual(d.pop("abc", 1), "def")
        self.assertRaises(TypeError, d.pop)
        x = BadHash()
        d[x] = 42
        x.fail = True
        self.assertRaises(Error, d.pop, x)

    def test_eq(self) -> None:
        self.assertEqual(self.make(), self.make())
        self.assertEqual(self.make({1: 2}), self.make({1: 2}))
        self.assertNotEqual(self.make({1: 2}), self.make({1: 3}))
        with self.assertRaises(Error):
            _ = self.make({BadEq(): 1}) == self.make({1: 1})

    def _contained(self, view: Callable[[Any], Any]) -> None:
        empty, empty2 = view(self.make()), view(self.make())
        smaller = view(self.make({1: 1, 2: 2}))
        larger = view(self.make({1: 1, 2: 2, 3: 3}))
        larger2 = view(self.make({1: 1, 2: 2, 3: 3}))
        larger3 = view(self.make({4: 1, 2: 2, 3: 3}))
        self.assertTrue(smaller < larger)
        self.assertTrue(smaller <= larger)
        self.assertTrue(larger > smaller)
        self.assertTrue(larger >= smaller)
        self.assertFalse(smaller >= larger)
        self.assertFalse(smaller > larger)
        self.assertFalse(larger <= smaller)
        self.assertFalse(larger < smaller)
        self.assertFalse(smaller < larger3)
        self.assertFalse(smaller <= larger3)
        self.assertFalse(larger3 > smaller)
        self.assertFalse(larger3 >= smaller)
        self.assertTrue(larger2 >= larger)
        self.assertTrue(larger2 <= larger)
        self.assertFalse(larger2 > larger)
        self.assertFalse(larger2 < larger)
        self.assertTrue(larger == larger2)
        self.assertTrue(smaller != larger)
        self.assertTrue(empty == empty2)
        self.assertFalse(empty != empty2)
        self.assertFalse(empty == smaller)
        self.assertTrue(empty != smaller)
        self.assertTrue(larger != larger3)
        self.assertFalse(larger == larger3)

    def test_keys_contained(self) -> None:
        self._contained(lambda d: d.keys())
        self._contained(lambda d: d.items())

    def test_errors_in_view_containment_check(self) -> None:
        one, other = self.make({1: BadValue()}).items(), self.make({1: BadValue()}).items()
        more = self.make({1: BadValue(), 2: BadValue()}).items()
        for compare in (
            lambda: one == other,
            lambda: one != other,
            lambda: one <= other,
            lambda: one >= other,
            lambda: other < more,
            lambda: more > other,
        ):
            self.assertRaises(RuntimeError, compare)

    def test_dictview_set_operations_on_keys(self) -> None:
        k1 = self.make({1: 1, 2: 2}).keys()
        k2 = self.make({1: 1, 2: 2, 3: 3}).keys()
        k3 = self.make({4: 4}).keys()
        self.assertEqual(k1 - k2, set())
        self.assertEqual(k1 - k3, {1, 2})
        self.assertEqual(k2 - k1, {3})
        self.assertEqual(k3 - k1, {4})
        self.assertEqual(k1 & k2, {1, 2})
        self.assertEqual(k1 & k3, set())
        self.assertEqual(k1 | k2, {1, 2, 3})
        self.assertEqual(k1 ^ k2, {3})
        self.assertEqual(k1 ^ k3, {1, 2, 4})

    def test_dictview_set_operations_on_items(self) -> None:
        k1 = self.make({1: 1, 2: 2}).items()
        k2 = self.make({1: 1, 2: 2, 3: 3}).items()
        k3 = self.make({4: 4}).items()
        self.assertEqual(k1 - k2, set())
        self.assertEqual(k1 - k3, {(1, 1), (2, 2)})
        self.assertEqual(k2 - k1, {(3, 3)})
        self.assertEqual(k3 - k1, {(4, 4)})
        self.assertEqual(k1 & k2, {(1, 1), (2, 2)})
        self.assertEqual(k1 & k3, set())
        self.assertEqual(k1 | k2, {(1, 1), (2, 2), (3, 3)})
        self.assertEqual(k1 ^ k2, {(3, 3)})
        self.assertEqual(k1 ^ k3, {(1, 1), (2, 2), (4, 4)})

    def test_items_symmetric_difference(self) -> None:
        rr = random.Random(5).randrange
        one, other = self.make(), self.make()
        for _ in range(5):
            left = {x: rr(3) for x in range(20) if rr(2)}
            right = {x: rr(3) for x in range(20) if rr(2)}
            for d, items in ((one, left), (other, right)):
                d.clear()
                d.update(items)
            self.assertEqual(one.items() ^ other.items(), left.items() ^ right.items())

    def test_dictview_mixed_set_operations(self) -> None:
        d = self.make({1: 1})
        self.assertTrue(d.keys() == {1})
        self.assertTrue({1} == d.keys())
        self.assertEqual(d.keys() | {2}, {1, 2})
        self.assertEqual({2} | d.keys(), {1, 2})
        self.assertTrue(d.items() == {(1, 1)})
        self.assertTrue({(1, 1)} == d.items())
        self.assertEqual(d.items() | {2}, {(1, 1), 2})
        self.assertEqual({2} | d.items(), {(1, 1), 2})

    def test_tuple_keyerror(self) -> None:
        d = self.make()
        for key in (42, "text", (1,), None, ("a", (1.5, frozenset({2})))):
            with self.assertRaises(KeyError) as caught:
                d[key]
            self.assertEqual(caught.exception.args, (key,))
            with self.assertRaises(KeyError) as caught:
                del d[key]
            self.assertEqual(caught.exception.args, (key,))

    def test_bad_key(self) -> None:
        d = self.make({BadDictKey(): 1})
        key = BadDictKey()
        for act in (
            lambda: d.__setitem__(key, 2),
            lambda: d[key],
            lambda: key in d,
            lambda: d.get(key),
            lambda: d.setdefault(key, 42),
            lambda: d.pop(key),
            lambda: d.update({key: 2}),
        ):
            self.assertRaises(Error, act)

    def test_resize1(self) -> None:
        d = self.make()
        for number in range(5):
            d[number] = number
        for number in range(5):
            del d[number]
        for number in range(5, 9):
            d[number] = number
        self.assertEqual(d, {number: number for number in range(5, 9)})

    def test_string_keys_can_track_values(self) -> None:
        """A dictionary that is in itself leads to itself."""
        d = self.make({str(number): number for number in range(10)})
        d["foo"] = d
        self.assertEqual(d["foo"]["foo"]["7"], 7)
        d["foo"]["8"] = "changed"
        self.assertEqual(d["8"], "changed")

    def test_str_nonstr(self) -> None:
        """A class that is equal to a str by a hash of its own process alone is not among these."""
        texts: list[str] = ["key3", Text("key3")]
        for key3 in texts:
            for write in (
                lambda d, key: d.__setitem__(key, 44),
                lambda d, key: d.setdefault(key, 44),
                lambda d, key: d.update({key: 44}),
            ):
                d = self.make({"key1": 42, "key2": 43})
                write(d, key3)
                self.assertEqual([d.get(key) for key in ("key1", *texts)], [42, 44, 44])
                self.assertEqual(len(d), 3)


for _name in unittest.TestLoader().getTestCaseNames(MappingCases):
    if any(test.endswith(f"Protocol.{_name}") for test in NOT_RUN):
        setattr(MappingCases, _name, None)  # what is not to run must not be found


def written() -> dict[str, set[str]]:
    """Give the names of all cases that CPython has, by the module that they are in."""
    shipped = SHIPPED / "test_dict.py"
    found = {"mapping_tests": _cases((HERE / "cpython/test/mapping_tests.py").read_text("utf-8"))}
    if mapping_tests.__file__:
        with open(mapping_tests.__file__, encoding="utf-8") as file:
            found["mapping_tests"] |= _cases(file.read())
    # A Python without its own tests has the same dict as one with them.
    found["test_dict"] = _cases(shipped.read_text("utf-8")) if shipped.exists() else set()
    return found


def _cases(text: str) -> set[str]:
    import ast

    return {
        f"{each.name}.{part.name}"
        for each in ast.parse(text).body
        if isinstance(each, ast.ClassDef)
        for part in each.body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")
    }

"""Runs CPython's own tests of mappings with a `DDict`, and lists those that are not run, and why.

Workers import this module, because keys and values are pickled by name; so it is not a test file
itself. The tests in `test.mapping_tests` run unchanged, except for those in `REWRITTEN`. The tests
of dict are in `test_cpython_mapping`.
"""

from __future__ import annotations

import ast
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conformance.cpython_path import SHIPPED

from daskbatch import Batch, DDict

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

#: The cases of dict that are written anew.
ANEW = {
    "DictTest.test_bad_key",
    "DictTest.test_bool",
    "DictTest.test_clear",
    "DictTest.test_constructor",
    "DictTest.test_contains",
    "DictTest.test_dictview_mixed_set_operations",
    "DictTest.test_dictview_set_operations_on_items",
    "DictTest.test_dictview_set_operations_on_keys",
    "DictTest.test_eq",
    "DictTest.test_errors_in_view_containment_check",
    "DictTest.test_get",
    "DictTest.test_getitem",
    "DictTest.test_invalid_keyword_arguments",
    "DictTest.test_items",
    "DictTest.test_items_symmetric_difference",
    "DictTest.test_keys",
    "DictTest.test_keys_contained",
    "DictTest.test_len",
    "DictTest.test_literal_constructor",
    "DictTest.test_pop",
    "DictTest.test_popitem",
    "DictTest.test_resize1",
    "DictTest.test_setdefault",
    "DictTest.test_str_nonstr",
    "DictTest.test_string_keys_can_track_values",
    "DictTest.test_tuple_keyerror",
    "DictTest.test_update",
    "DictTest.test_values",
}

#: All cases of dict in CPython 3.13.
OF_DICT = ANEW | {test for test in NOT_RUN if "Protocol." not in test}

#: The cases of mappings of which a part does not apply, and which; `MappingCases` has the rest.
REWRITTEN = {
    "TestMappingProtocol.test_constructor": "the parameters of a DDict are not its items",
    "TestMappingProtocol.test_setdefault": "what setdefault() gives is a copy",
    "TestHashMappingProtocol.test_setdefault": "is called by the same name in our class",
    "TestMappingProtocol.test_popitem": "two equal dictionaries need not give the same item",
}


class Error(Exception):
    """Raised by the keys and values below when a test tells them to."""


class BadEq:
    """Raises when it is compared."""

    def __init__(self, number: int = 1) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        raise Error

    def __hash__(self) -> int:
        return self.number


class BadHash:
    """Has a hash until a test sets `fail`; then to hash it raises."""

    fail = False

    def __hash__(self) -> int:
        if self.fail:
            raise Error
        return 42


class BadDictKey:
    """Raises when it is compared with another object of its class."""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BadDictKey):
            raise Error
        return False

    def __hash__(self) -> int:
        return 7


class BadValue:
    """A value that raises when it is compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


class Text(str):
    """A subclass of str."""


class SimpleUserDict:
    """The smallest class that `update` accepts as a mapping."""

    def keys(self) -> Any:
        return {1: 1, 2: 2, 3: 3}.keys()

    def __getitem__(self, key: int) -> int:
        return key


class FailingUserDict(SimpleUserDict):
    """Raises in `keys`, after the first key, or in `__getitem__`."""

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


class MappingCases(mapping_tests.TestHashMappingProtocol):  # type: ignore[misc]
    """CPython's tests of mappings, with dictionaries of one layout."""

    batch: ClassVar[Batch]
    options: ClassVar[dict[str, Any]]

    def type2test(self) -> DDict:
        made = self.batch.ddict(**self.options)
        self.addCleanup(made.close)
        return made

    def test_constructor(self) -> None:
        mapping_tests.BasicTestMappingProtocol.test_constructor(self)
        assert self.type2test() is not self.type2test()

    def test_setdefault(self) -> None:
        mapping_tests.BasicTestMappingProtocol.test_setdefault(self)
        d = self.type2test()
        assert d.setdefault("key0") is None
        d.setdefault("key0", [])
        assert d.setdefault("key0") is None
        d.setdefault("key", []).append(3)
        assert d["key"] == [], "a copy was changed"
        x = BadHash()
        d[x] = 42
        x.fail = True
        with pytest.raises(Error):
            d.setdefault(x, [])

    def test_popitem(self) -> None:
        mapping_tests.BasicTestMappingProtocol.test_popitem(self)
        for size in (1, 2, 17, 64):
            d = self._full_mapping({repr(number): number for number in range(size)})
            popped = [d.popitem() for _ in range(size)]
            assert dict(popped) == {repr(number): number for number in range(size)}
            assert not d


for _name in unittest.TestLoader().getTestCaseNames(MappingCases):
    if any(test.endswith(f"Protocol.{_name}") for test in NOT_RUN):
        setattr(MappingCases, _name, None)  # what is not to run must not be found


def written_of_mappings() -> set[str]:
    """Return all tests that `test.mapping_tests` defines, as `Class.name`."""
    return _cases(Path(mapping_tests.__file__).read_text("utf-8"))


def written_of_dict() -> set[str]:
    """Return all tests of dict: those of CPython 3.13, and those that the running Python adds."""
    shipped = SHIPPED / "test_dict.py"
    return OF_DICT | (_cases(shipped.read_text("utf-8")) if shipped.exists() else set())


def _cases(text: str) -> set[str]:
    return {
        f"{each.name}.{part.name}"
        for each in ast.parse(text).body
        if isinstance(each, ast.ClassDef)
        for part in each.body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")
    }

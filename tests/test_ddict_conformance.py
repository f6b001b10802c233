"""A DDict does what CPython's own tests ask of a mapping, in every layout; see `mapping_cases`."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from typing import Any

import mapping_cases
import pytest
from mapping_cases import LAYOUTS, NOT_RUN, REWRITTEN, DictCases, MappingCases, OnCluster

from daskbatch import Batch


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    """A cluster for all."""
    with Batch(num_workers=3) as batch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnCluster, "batch", batch, raising=False)
        yield


def _in_each_layout(*cases: type) -> dict[str, Any]:
    return {
        f"Test{layout}{case.__name__}": type(
            f"Test{layout}{case.__name__}", (case,), {"options": o}
        )
        for layout, o in LAYOUTS.items()
        for case in cases
    }


globals().update(_in_each_layout(MappingCases, DictCases))


def _names(case: type[unittest.TestCase]) -> set[str]:
    return set(unittest.TestLoader().getTestCaseNames(case))


def test_each_case_of_mappings_is_run_or_it_is_said_why_not() -> None:
    for test in mapping_cases.written()["mapping_tests"]:
        name = test.split(".")[1]
        assert (name in _names(MappingCases)) != (test in NOT_RUN), test
        if name in vars(MappingCases) and test not in NOT_RUN:
            base = test.startswith("BasicTestMappingProtocol.")
            assert base or test in REWRITTEN, f"{test} is replaced, and it is not said why"


def test_each_case_of_dict_is_rewritten_or_it_is_said_why_not() -> None:
    for test in mapping_cases.written()["test_dict"]:
        name = test.split(".")[1]
        assert (name in _names(DictCases)) != (test in NOT_RUN), test


def test_the_tables_name_no_case_that_is_not_there() -> None:
    written = mapping_cases.written()
    assert {test for test in NOT_RUN if "Protocol." in test} <= written["mapping_tests"]
    assert set(REWRITTEN) <= written["mapping_tests"]
    assert not set(NOT_RUN) & set(REWRITTEN)
    rewritten = {f"DictTest.{name}" for name in _names(DictCases)}
    assert not rewritten & set(NOT_RUN)
    if written["test_dict"]:
        assert rewritten <= written["test_dict"]


def test_every_case_runs_in_every_layout() -> None:
    for layout, options in LAYOUTS.items():
        for case in (MappingCases, DictCases):
            made = globals()[f"Test{layout}{case.__name__}"]
            assert made.options == options
            assert _names(made) == _names(case)

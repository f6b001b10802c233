"""The names that code uses are found by its instructions, on each version of Python."""

from __future__ import annotations

import argparse
import asyncio.base_events
import dataclasses
import enum
import inspect
import json.decoder
import logging
import types
import typing

import pytest

from daskbatch.serialization.code_names import named_by, named_by_dis, names_of

MODULES = [argparse, asyncio.base_events, dataclasses, enum, inspect, json.decoder, logging, typing]


def _codes(code: types.CodeType) -> list[types.CodeType]:
    found = [code]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += _codes(constant)
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_instructions_are_read_as_dis_reads_them(module: types.ModuleType) -> None:
    whole = compile(inspect.getsource(module), module.__name__, "exec")
    found = 0
    for code in _codes(whole):
        expected = list(named_by_dis(code))
        assert list(named_by(code)) == expected, code.co_name
        found += len(expected)
    assert found > 50


def test_a_function_with_many_names_has_long_instructions() -> None:
    """From the 256th name on, an instruction has its argument in two parts; from 65 536 in three.

    A global variable's number is doubled, so 40 000 names need three.
    """
    lines = "".join(f"    value_{number}\n" for number in range(40_000))
    code = compile(f"def many():\n{lines}    import last_module\n", "many", "exec").co_consts[0]
    names = names_of(code)
    assert names.globals == tuple(f"value_{number}" for number in range(40_000))
    assert names.imports == {"last_module"}


def test_global_statements_and_class_bodies_use_global_variables() -> None:
    text = """
def outer(local):
    global stored, deleted
    stored = 1
    del deleted
    class Inner:
        attribute = in_body
        def method(self):
            import package.module
            return [in_comprehension for _ in self.items("identifier")]
    return Inner
"""
    names = names_of(compile(text, "text", "exec").co_consts[0])
    assert set(names.globals) >= {"stored", "deleted", "in_body", "in_comprehension"}
    assert not {"items", "local"} & set(names.globals)
    assert names.imports == {"package.module"}
    assert "identifier" in names.texts

"""The argument that tells tasks apart is found without running code of the user."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskbatch.describe.job_call import ProcessTemplate, job_call
from daskbatch.describe.spec import function_call, process_call
from daskbatch.serialization import pickling
from daskbatch.serialization.first_argument import first_argument, first_packed_argument


class Hostile:
    """Whatever is done with it ends the process."""

    def __setstate__(self, state: object) -> None:
        raise SystemExit

    def __repr__(self) -> str:
        raise SystemExit


class Text(str):
    """A text whose class may do anything."""

    __slots__ = ()


def method(self: object, path: str) -> None:
    pass


@pytest.mark.parametrize(
    ("args", "kwargs", "found"),
    [
        (("data/7.csv", 1), {}, "'data/7.csv'"),
        ((Path("data/7.csv"),), {}, "'data/7.csv'"),
        ((None, True, 7), {}, "7"),
        ((Hostile(), 7.5), {}, "7.5"),
        ((np.zeros(100_000), "a"), {}, "'a'"),
        (([1, 2], {"a": 1}, {3}), {"path": "b"}, "'b'"),
        (("x" * 100,), {}, ""),
        (("x" * 100, 10**5000), {}, ""),
        (("a\nb",), {}, r"'a\nb'"),
        ((), {}, ""),
    ],
)
def test_calls(args: Any, kwargs: Any, found: str) -> None:
    assert first_packed_argument(function_call(method, args, kwargs).data) == found
    assert first_packed_argument(function_call(partial(method), args, kwargs).data) == found


class Standing:
    """Stands for a task."""


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ((Standing(), "data/7.csv"), "'data/7.csv'"),
        ((7, Standing(), "a"), "7"),
        ((Standing(), None), ""),
        ((Standing(), Standing()), ""),
    ],
    ids=["text", "number", "none", "tasks"],
)
def test_calls_that_take_tasks(args: Any, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickling, "_targets", {Standing: id})
    call = function_call(method, args, {})
    assert len(call.references) == sum(type(each) is Standing for each in args)
    assert first_packed_argument(call.data) == found


def test_executables() -> None:
    common: Any = {"cwd": "/", "env": None, "stdin": None, "check": True, "timeout": None}
    call = process_call("sort", ["-n", "-o", Path("out"), "in"], **common)
    assert first_packed_argument(call.data) == "'out'"
    assert first_packed_argument(process_call("ls", [], **common).data) == ""


def test_options_of_a_job_are_none_of_its_arguments() -> None:
    common: Any = {"env": {}, "stdin": None, "check": True, "timeout": 5, "is_mpmd": False}
    parts = [(2, ProcessTemplate("solver", ("case.in",)))]
    call = job_call(parts, cwd="/", launcher="auto", **common)
    assert first_packed_argument(call.data) == ""


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x05N.", b"x" * 100_000])
def test_what_is_no_pickle(data: bytes) -> None:
    assert first_packed_argument(data) == ""


def test_arguments_that_are_objects_of_the_user() -> None:
    assert first_argument([Hostile(), Text("a"), "b"]) == "'b'"

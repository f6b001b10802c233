"""Summaries for the page /daskbatch arrive as they were sent, and are bounded."""

from __future__ import annotations

import json

import pytest

from daskbatch.dashboard.summary import (
    MAX_PROGRAMS,
    ClientSummary,
    FailedTask,
    ProgramSummary,
    RanTask,
    WaitingTask,
    loads,
    short,
)

SUMMARY = ClientSummary(
    [ProgramSummary("p", "running", 1.0, None, {"a": {"done": 2}, "b": {"done": 1, "failed": 1}})],
    [RanTask("a[0]", "a", "p", "done", "tcp://x:1", 1.0, 2.0)],
    [WaitingTask("b", "p", "waits for 'a'")],
    [FailedTask("b", "p", "ValueError: <&>", "last line\n")],
    {"waiting": 3},
)


def test_a_summary_arrives_as_it_was_sent() -> None:
    found = loads(SUMMARY.dumps())
    assert found == SUMMARY
    assert found.programs[0].counts() == {"done": 3, "failed": 1}


def test_lists_that_are_too_long_are_cut() -> None:
    long = SUMMARY._replace(programs=[SUMMARY.programs[0]] * (MAX_PROGRAMS + 7))
    assert len(loads(long.dumps()).programs) == MAX_PROGRAMS


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", "[]", "[1, 2, 3, 4, 5]", json.dumps([[["too short"]], [], [], [], {}])],
)
def test_what_is_not_a_summary_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        loads(text)


def test_a_summary_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        loads(" " * 3_000_000)


def test_text_that_cannot_be_encoded_can_be_sent() -> None:
    assert short("a\udcffb").encode("utf-8") == b"a?b"
    assert len(short("x" * 1000, 10)) == 10

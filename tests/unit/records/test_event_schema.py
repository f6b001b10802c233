"""The schema of the events is that of the document, and finds what is wrong with an event."""

from __future__ import annotations

import re

from support.paths import DOCS

from daskbatch.records.event_schema import (
    COMMON,
    FIELDS,
    HAZARDS,
    VERSION,
    SlotEvent,
    find_faults,
)

TEXT = (DOCS / "events.md").read_text(encoding="utf-8")


def fields_of(text: str) -> set[str]:
    """Return the words in backticks before the first colon of each part of a cell."""
    return set(re.findall(r"`(\w+)`", text)) - {"waiting"}


def test_the_document_has_the_fields_of_each_kind_and_state() -> None:
    assert f"**version {VERSION}**" in TEXT
    common = TEXT.split("## Fields of each line")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", common, re.MULTILINE)) == set(COMMON)
    found = {}
    for kind in ("run", "program", "task", "barrier"):
        section = next(part for part in TEXT.split("\n## ") if f"`kind` is `{kind}`" in part)
        for states, cell in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*) \|$", section, re.M):
            for state in re.findall(r"`(\w+)`", states):
                found[kind, state] = fields_of(cell)
    found["task", "queued"] = found["task", "waiting"]
    assert found == {key: set(fields) for key, fields in FIELDS.items()}
    assert all(f"`{hazard}`" in TEXT for hazard in HAZARDS)
    assert all(f"`{field}`" in TEXT for field in SlotEvent._fields)


def test_faults_of_an_event_are_found() -> None:
    event = {"time": 1.0, "kind": "task", "uid": "r-1", "name": "a", "state": "waiting", "run": "r"}
    more = {"program": None, "created": 0.5, "reads": [], "writes": [], "waits_for": []}
    assert find_faults({**event, **more, "unknown": 1}) == []
    assert find_faults({**event, **more, "waits_for": [["r-0", "RAW", "f"]]}) == []
    assert find_faults({**event, **more, "waits_for": [["r-0", "or", "f"]]})
    assert find_faults({**event, **more, "created": "yesterday"})
    assert len(find_faults(event)) == len(more)

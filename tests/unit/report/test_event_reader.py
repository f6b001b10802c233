"""`events.jsonl` is read into the record of a run, also if it was torn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daskbatch.errors import SpecError
from daskbatch.records.event_reader import read_run
from daskbatch.records.event_schema import find_faults
from daskbatch.records.run_record import EdgeEntry, Hazard, SlotEntry


def event(kind: str, uid: str, state: str, time: float, **fields: Any) -> dict[str, Any]:
    return {
        "time": time,
        "kind": kind,
        "uid": uid,
        "name": fields.pop("name", uid),
        "state": state,
        "run": fields.pop("run", "r1"),
        **fields,
    }


def begun(run: str = "r1", **more: Any) -> dict[str, Any]:
    fields = {"version": 1, "batch": "b", "pid": 7, "host": "here", "directory": "/d"}
    return event(
        *("run", run, "begun", 99.0), run=run, **fields, versions={"python": "3"}, slots=[], **more
    )


def ended(uid: str, state: str, time: float, **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "worker": "tcp://1:1",
        "host": "1",
        "pid": 8,
        "attempts": 1,
        "started": time - 1,
        "ended": time,
        "seconds": 1.0,
        "cpu_seconds": 0.5,
        "max_memory": 1000,
        "error": None,
        "warnings": [],
        "root": None,
        "stdout": None,
        "stderr": None,
        **more,
    }
    return event("task", uid, state, time, **fields)


def waiting(uid: str, state: str = "waiting", **more: Any) -> dict[str, Any]:
    fields = {"program": "p", "created": 99.5, "reads": [], "writes": ["/d/x"], "waits_for": []}
    return event("task", uid, state, 100.0, **{**fields, **more})


EVENTS = [
    begun(),
    event("run", "r1", "changed", 99.1, slots=[{"worker": "tcp://1:1", "host": "1", "threads": 2}]),
    event("program", "p", "waiting", 100.0, name="mine", tasks=4),
    waiting("a", "queued"),
    waiting("a"),
    waiting("b", waits_for=[["a", "RAW", "/d/x"], ["a", "argument", ""]]),
    event("barrier", "bar", "waiting", 100.0, waits_for=[["a", "WAR", ""], ["b", "WAR", ""]]),
    waiting("c", waits_for=[["bar", "WAR", ""]]),
    waiting("d"),
    event(
        *("task", "a", "running", 100.5),
        worker="tcp://1:1",
        host="1",
        pid=8,
        attempt=1,
        started=100.4,
    ),
    ended("a", "failed", 102.0, error="ValueError: no", stderr="output/r1/a.err", warnings=["w"]),
    ended("b", "skipped", 102.1, started=None, seconds=None, root="a"),
    event(
        *("task", "c", "running", 103.0),
        worker="tcp://1:1",
        host="1",
        pid=8,
        attempt=2,
        started=103.0,
    ),
]


def write(directory: Path, events: list[dict[str, Any]], torn: str = "") -> None:
    lines = "".join(json.dumps(each) + "\n" for each in events)
    (directory / "events.jsonl").write_text(lines + torn, encoding="utf-8")


def test_the_events_of_these_tests_are_valid() -> None:
    assert [find_faults(each) for each in EVENTS] == [[]] * len(EVENTS)


def test_a_run_is_read(tmp_path: Path) -> None:
    write(tmp_path, EVENTS, torn='{"time": 104.0, "kind": "task", "uid": "d", "na')
    (tmp_path / "output" / "r1").mkdir(parents=True)
    (tmp_path / "output" / "r1" / "a.err").write_text("Traceback\nValueError: no\n")
    run = read_run(tmp_path)
    assert run.run == "r1"
    assert run.slots == (SlotEntry("tcp://1:1", "1", 2),)
    assert run.capacity == 2
    a, b, c, d = run.tasks
    assert (a.uid, a.state, a.program, a.error, a.started, a.ended) == (
        *("a", "failed", "p", "ValueError: no", 101.0, 102.0),
    )
    assert (a.worker, a.seconds, a.cpu_seconds, a.max_memory) == ("tcp://1:1", 1.0, 0.5, 1000)
    assert (a.stderr, a.stdout, a.warnings, a.writes) == (
        *("Traceback\nValueError: no\n", "", ("w",), ("/d/x",)),
    )
    assert b.waits_for == (EdgeEntry("a", Hazard.RAW, "/d/x"), EdgeEntry("a", Hazard.ARGUMENT))
    assert (b.state, b.root, b.started, b.ended) == ("skipped", "a", None, None)
    assert (c.state, c.started, c.ended, c.attempts) == ("running", 103.0, None, 2)
    assert (d.state, d.submitted, d.created) == ("waiting", 100.0, 99.5)
    assert [each.uid for each in run.barriers] == ["bar"]
    assert [(each.name, each.state, each.tasks) for each in run.programs] == [
        ("mine", "waiting", 4)
    ]
    assert "had not closed" in dict(run.facts)["client"]
    assert (run.started, run.ended) == (101.0, 102.0)


def test_a_queued_task_keeps_its_edges(tmp_path: Path) -> None:
    waits = [["a", "RAW", "/d/x"]]
    write(tmp_path, [begun(), waiting("a"), waiting("b", "queued", waits_for=waits), waiting("b")])
    assert read_run(tmp_path).tasks[1].waits_for == (EdgeEntry("a", Hazard.RAW, "/d/x"),)


def test_the_last_run_is_read_unless_one_is_named(tmp_path: Path) -> None:
    second = [begun("r2"), event("run", "r2", "ended", 120.0, run="r2")]
    write(tmp_path, [*EVENTS, *second])
    assert read_run(tmp_path).run == "r2"
    assert "client" not in dict(read_run(tmp_path).facts)
    assert len(read_run(tmp_path, "r1").tasks) == 4
    with pytest.raises(SpecError, match="no run 'r3'; it has r1, r2"):
        read_run(tmp_path, "r3")


def test_workers_that_have_left_do_not_count_twice(tmp_path: Path) -> None:
    lists = [["a", "b"], ["b"], ["b", "c"], []]
    changes = [
        event(
            *("run", "r1", "changed", 99.5),
            slots=[{"worker": name, "host": "h", "threads": 2} for name in names],
        )
        for names in lists
    ]
    write(tmp_path, [begun(), *changes])
    run = read_run(tmp_path)
    assert [each.worker for each in run.slots] == ["a", "b", "c"]
    assert run.capacity == 4


def test_lines_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    odd: list[Any] = [
        *(begun(), 3, [], {}, {"run": "r1"}, {"run": "r1", "kind": "task"}, {"kind": "run"}),
        event("task", "x", "waiting", 1.0, waits_for=[["a", "odd", ""]]),
        event("future", "y", "new", 1.0),
        waiting("a"),
    ]
    write(tmp_path, odd)
    assert "a" in [task.uid for task in read_run(tmp_path).tasks]


def test_a_directory_without_events_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not the log_dir of a Batch"):
        read_run(tmp_path)
    write(tmp_path, [])
    with pytest.raises(SpecError, match="has no events"):
        read_run(tmp_path)

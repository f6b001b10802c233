"""Traces follow the Trace Event Format: rows without overlap, flows that begin and end in slices.

The trace processor of Perfetto is a program that its PyPI package downloads. So the tests check
what the documentation of the Trace Event Format asks for. Traces in Perfetto's own format are
parsed by the schema that comes with its PyPI package.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support.runs import edge, execute, run_of, slots, task

from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG, RAW, WAR
from daskbatch.records.run_record import BarrierEntry, RunRecord
from daskbatch.report.perfetto import make_perfetto_trace
from daskbatch.report.trace import make_trace, write_trace
from daskbatch.report.trace_model import make_trace_model

_NUMBER = {"type": "number", "minimum": 0}
_PLACE = {"pid": {"type": "integer"}, "tid": {"type": "integer"}, "ts": _NUMBER}


def _phase(name: str, required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "required": ["ph", "name", "pid", "tid", "ts", *required],
        "properties": {
            "ph": {"const": name},
            "name": {"type": "string"},
            **_PLACE,
            **properties,
        },
    }


#: What the documents of the format say of the kinds of events that are used.
SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"additionalProperties": {"type": "string"}},
        "traceEvents": {
            "type": "array",
            "items": {
                "oneOf": [
                    _phase(
                        "X", ["dur", "cat"], dur=_NUMBER, cat={"type": "string", "minLength": 1}
                    ),
                    _phase("M", ["args"], args={"type": "object", "minProperties": 1}),
                    _phase("C", ["args"], args={"additionalProperties": {"type": "number"}}),
                    _phase("s", ["id", "cat"], id={"type": "integer"}),
                    _phase("f", ["id", "cat", "bp"], id={"type": "integer"}, bp={"const": "e"}),
                ]
            },
        },
    },
}


def check(trace: dict[str, Any]) -> None:
    """Assert that a trace is valid, that rows have no overlap, and that flows join slices."""
    trace = json.loads(json.dumps(trace, allow_nan=False))
    Draft202012Validator(SCHEMA).validate(trace)
    rows: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in rows.values():
        for (_, end), (start, _) in pairwise(sorted(slices)):
            assert end <= start + 1e-6  # a picosecond: the sum of two floats is rounded
    ends: defaultdict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for event in trace["traceEvents"]:
        if event["ph"] in "sf":
            assert event["ph"] not in ends[event["id"]]
            ends[event["id"]][event["ph"]] = event
    for both in ends.values():
        assert set(both) == {"s", "f"}
        assert (both["s"]["name"], both["s"]["cat"]) == (both["f"]["name"], both["f"]["cat"])
        for event in both.values():
            assert any(a <= event["ts"] <= b for a, b in rows[event["pid"], event["tid"]])
    for (pid, tid), _ in rows.items():
        named = [
            event["name"]
            for event in trace["traceEvents"]
            if event["ph"] == "M" and event["pid"] == pid and event["tid"] in (0, tid)
        ]
        assert {"process_name", "thread_name"} <= {*named}


def test_tasks_are_slices_and_edges_are_flows(tmp_path: Path) -> None:
    writer = replace(task("writer[0]", 10.0, 11.0), writes=("/d/ü",), cpu_seconds=0.5)
    reader = replace(
        task("reader", 11.5, 12.0),
        reads=("/d/ü",),
        state="failed",
        error="ValueError: no",
        waits_for=(edge("writer[0]", "RAW"),),
        worker="tcp://10.0.0.1:2",
    )
    unborn = task("unborn", None, None, "reader")
    run = RunRecord("r1", "mine", tasks=(writer, reader, unborn), slots=slots(2))
    path = write_trace(run, tmp_path / "run.json")
    trace = json.loads(path.read_text("utf-8"))
    check(trace)
    found = {event["name"]: event for event in trace["traceEvents"] if event["ph"] == "X"}
    assert set(found) == {"writer[0]", "reader"}
    assert (found["writer[0]"]["ts"], found["writer[0]"]["dur"]) == (0, 1_000_000)
    assert (found["reader"]["ts"], found["reader"]["dur"]) == (1_500_000, 500_000)
    assert found["writer[0]"]["cat"] == "writer"
    assert found["writer[0]"]["args"]["CPU seconds"] == 0.5
    assert found["reader"]["args"]["error"] == "ValueError: no"
    (flow,) = (event for event in trace["traceEvents"] if event["ph"] == "s")
    assert (flow["name"], flow["cat"]) == ("RAW /d/ü", "RAW")
    counts = [e["args"]["slots"] for e in trace["traceEvents"] if e["ph"] == "C"]
    assert counts == [1, 0, 1, 0]
    assert trace["otherData"]["program"] == "mine"


def test_an_arrow_leads_from_the_last_task_behind_a_barrier() -> None:
    tasks = [task(f"t{n}", 0.0, 1.0 + n / 10) for n in range(9)]
    barrier = BarrierEntry("b", tuple(edge(f"t{n}", "RAW") for n in range(9)))
    last = replace(task("last", 2.0, 3.0), waits_for=(edge("b", "RAW"), edge("t0", "argument")))
    trace = make_trace(RunRecord("r", "r", tasks=(*tasks, last), barriers=(barrier,)))
    check(trace)
    flows = [event["cat"] for event in trace["traceEvents"] if event["ph"] == "s"]
    assert sorted(flows) == ["RAW", "argument"]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 30))
def test_any_run_makes_a_valid_trace(seed: int, count: int, tasks: int) -> None:
    rng = random.Random(seed)
    waits = {n: {rng.randrange(n): rng.choice([ARG, RAW, WAR])} for n in range(1, tasks)}
    graph = Graph([f"t{n}" for n in range(tasks)], waits, range(tasks))
    times = {str(n): rng.choice([0.0, 1e-9, 1e-4, rng.random()]) for n in range(tasks)}
    run = execute(run_of(graph), times, count)
    # As on a real clock: seconds since the epoch have steps of a quarter of a microsecond.
    epoch = 1.8e9 + rng.random()
    moved = [
        replace(each, started=epoch + (each.started or 0), ended=epoch + (each.ended or 0))
        for each in run.tasks
    ]
    moved_run = replace(run, tasks=tuple(moved))
    check(make_trace(moved_run))
    check_perfetto(moved_run)


def test_a_trace_of_nothing_is_valid() -> None:
    check(make_trace(RunRecord("r", "r")))
    check_perfetto(RunRecord("r", "r"))


# -- Perfetto's own format -------------------------------------------------------------------


def check_perfetto(run: RunRecord) -> list[Any]:
    """Assert that a trace is valid by Perfetto's schema; return its packets."""
    schema = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    data = make_perfetto_trace(make_trace_model(run))
    trace = schema.Trace()
    trace.ParseFromString(data)
    assert trace.IsInitialized()
    # All fields are known to the schema, with these types.
    trace.DiscardUnknownFields()
    assert len(trace.SerializeToString()) == len(data)
    tracks = {
        packet.track_descriptor.uuid
        for packet in trace.packet
        if packet.HasField("track_descriptor")
    }
    assert len(tracks) == sum(packet.HasField("track_descriptor") for packet in trace.packet)
    open_slices: dict[int, int] = {}
    begun: set[int] = set()
    ended: set[int] = set()
    last = 0
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id == 1
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        assert packet.timestamp >= last
        last = packet.timestamp
        assert event.track_uuid in tracks
        if event.type == event.TYPE_SLICE_BEGIN:
            # A row has one open slice at a time: none overlap, and none is nested.
            assert open_slices.setdefault(event.track_uuid, 0) == 0
            open_slices[event.track_uuid] = 1
            assert begun.isdisjoint(event.flow_ids)
            begun.update(event.flow_ids)
            ended.update(event.terminating_flow_ids)
        elif event.type == event.TYPE_SLICE_END:
            assert open_slices[event.track_uuid] == 1
            open_slices[event.track_uuid] = 0
    assert not any(open_slices.values())
    assert begun == ended
    return list(trace.packet)


def test_perfetto_reads_names_rows_and_arrows(tmp_path: Path) -> None:
    first = replace(task("größe[0]", 0.0, 1.0), cpu_seconds=0.25, writes=("/d/x",))
    second = replace(
        task("second", 1.5, 2.0), waits_for=(edge("größe[0]", "RAW"),), reads=("/d/x",)
    )
    run = RunRecord("r", "r", tasks=(first, second), slots=slots(2))
    packets = check_perfetto(run)
    events = [p.track_event for p in packets if p.HasField("track_event")]
    one, two = (event for event in events if event.type == event.TYPE_SLICE_BEGIN)
    assert (one.name, two.name, list(one.categories)) == ("größe[0]", "second", ["größe"])
    assert list(one.flow_ids) == list(two.terminating_flow_ids) == [1]
    said = {each.name: each for each in two.debug_annotations}
    assert said["waited because of"].string_value == "RAW /d/x"
    assert {e.name: e for e in one.debug_annotations}["CPU seconds"].double_value == 0.25
    counts = [event.counter_value for event in events if event.type == event.TYPE_COUNTER]
    assert counts == [1, 0, 1, 0]
    rows = [p.track_descriptor for p in packets if p.HasField("track_descriptor")]
    assert [row.thread.thread_name for row in rows if row.HasField("thread")] == ["slot 0"] * 2
    path = write_trace(run, tmp_path / "run.pftrace")
    assert path.read_bytes() == make_perfetto_trace(make_trace_model(run))

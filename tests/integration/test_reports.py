"""Reports, traces, critical paths, pictures and notebook forms of programs that have run."""

from __future__ import annotations

import json
import os
import pickle
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from support.waiting import wait_for_file, wait_until_running

import daskbatch
from daskbatch import Batch, TasksFailedWarning, as_executor
from daskbatch.batch.reporting.live_record import program_record
from daskbatch.report.analysis.timeline import make_rows

SVG = "{http://www.w3.org/2000/svg}"


def same(x: Any, *_: Any) -> Any:
    return x


def fail(text: str) -> None:
    print("before it fails")
    raise ValueError(text)


def wait_for(path: str, *_: Any) -> None:
    wait_for_file(Path(path))


def make_program(batch: Batch, directory: Path, name: str = "mine") -> daskbatch.CompiledTask:
    """Return a program with edges of all hazards, a failure and a task that is skipped."""
    load = batch.function(same, 1, writes=[batch.write(directory, "a")], name="load")
    clean = [
        batch.function(same, load, n, reads=[batch.read(directory, "a")], name="clean")
        for n in range(3)
    ]
    purge = batch.function(same, 2, writes=[batch.write(directory, "a")], name="purge <&>")
    bad = batch.function(fail, "the reason", name="bad")
    after = batch.function(same, bad, name="after")
    return batch.compile([load, *clean, purge, bad, after], name=name, check=None)


# -- the critical path -----------------------------------------------------------------------


def test_the_critical_path_is_a_list_of_tasks_with_reasons(batch: Batch, tmp_path: Path) -> None:
    first = batch.function(same, 1, writes=[batch.write(tmp_path, "a")], name="first")
    reader = batch.function(same, 2, reads=[batch.read(tmp_path, "a")], name="reader")
    last = batch.function(same, 3, writes=[batch.write(tmp_path, "a")], name="last")
    program = batch.compile([first, reader, last], check=None)
    assert program.critical_path() == []
    program.run(timeout=60)
    path = program.critical_path()
    assert path == [first, reader, last]
    assert isinstance(path, list)
    assert [step.reason for step in path.steps] == [
        *("", f"RAW {tmp_path / 'a'}", f"WAR {tmp_path / 'a'}"),
    ]
    assert path.length == pytest.approx(sum(task.info.seconds or 0 for task in path), abs=1e-6)
    info = program.info
    assert info.started is not None
    assert info.ended is not None
    assert path.length + path.gaps == pytest.approx(info.ended - info.started, abs=1e-6)
    assert path.makespan == path.length + path.gaps
    assert f"reader: waited for the task above: RAW {tmp_path / 'a'};" in str(path)
    assert pickle.loads(pickle.dumps(path.steps)) == path.steps


def test_edges_to_tasks_of_earlier_programs_are_no_steps(batch: Batch) -> None:
    first = batch.function(same, 1)
    first.run(timeout=60)
    program = batch.compile([batch.function(same, first, name="second")])
    program.run(timeout=60)
    assert [task.name for task in program.critical_path()] == ["second"]


# -- reports and traces ----------------------------------------------------------------------


def test_all_can_be_had_after_the_batch_has_ended(tmp_path: Path) -> None:
    batch = Batch(num_workers=2, name="of <all>")
    program = make_program(batch, tmp_path)
    program.run(timeout=60)
    single = batch.function(same, 1, name="single")
    single.run(timeout=60)
    members = [batch.function(same, n, name="member") for n in range(2)]
    batch.compile(members).run(timeout=60)
    gone = batch.function(same, 1, name="gone")
    gone.run(timeout=60)
    del gone
    assert "8 done" in batch._repr_html_()
    before = [program.report(tmp_path / "1.html"), batch.report(tmp_path / "2.html")]
    batch.close()
    # A report is no look at a failure.
    with pytest.warns(TasksFailedWarning, match="1 task failed"):
        batch.join(timeout=60)
    after = [program.report(tmp_path / "3.html"), batch.report(tmp_path / "4.html")]
    for report in (*before, *after):
        page = report.read_text("utf-8")
        for part in ("purge &lt;&amp;&gt;", "ValueError: the reason", "before it fails", "mine"):
            assert part in page
        assert "because of <b>bad</b>" in page
    page = batch.report(tmp_path / "batch.html").read_text("utf-8")
    # What the program holds: also members of a compiled task that it has dropped.
    for part in ("of &lt;all&gt;", "single", "member[1]", "10 tasks"):
        assert part in page
    assert "gone" not in page
    trace = json.loads(program.trace(tmp_path / "t.json").read_text())
    names = {event["name"] for event in trace["traceEvents"] if event["ph"] == "X"}
    assert names == {"load", "clean[0]", "clean[1]", "clean[2]", "purge <&>", "bad"}
    hazards = {event["cat"] for event in trace["traceEvents"] if event["ph"] == "s"}
    assert {"argument,RAW", "WAR"} <= hazards
    assert len(program.critical_path()) >= 1
    run = program_record(program)
    assert run.capacity == 2
    for row in make_rows(run):
        assert not row.is_extra
    for form in (batch._repr_html_(), program._repr_html_(), program.tasks[5]._repr_html_()):
        assert "the reason" in form


def test_a_report_of_a_program_that_runs(batch: Batch, tmp_path: Path) -> None:
    file = tmp_path / "go"
    first = batch.function(same, 1, name="first")
    waits = batch.function(wait_for, str(file), first, name="waits")
    program = batch.compile([first, waits, batch.function(same, waits, name="after")])
    assert "3 tasks" in program.report(tmp_path / "before.html").read_text("utf-8")
    program.start()
    wait_until_running(waits)
    page = program.report(tmp_path / "now.html").read_text("utf-8")
    assert 'data-state="running"><b>1</b>' in page
    assert 'data-state="waiting"><b>1</b>' in page
    assert program.critical_path() == [first]
    picture = program.visualize(tmp_path / "now.svg").read_text("utf-8")
    assert "waits (1): running" in picture
    file.touch()
    program.wait(timeout=60)


def test_a_report_has_relative_and_odd_paths(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = batch.compile([batch.function(same, 1, name="\ud800 \x00 </script>")])
    program.run(timeout=60)
    monkeypatch.chdir(tmp_path)
    for path in (Path("a b ü.html"), "c.html"):
        assert program.report(path) == Path(path)
        assert "\ufffd" in Path(path).read_text("utf-8") or "?" in Path(path).read_text("utf-8")
    program.trace("t.json")
    assert program.visualize("g.svg", files=True).exists()
    assert program.visualize("g.dot").exists()
    ET.parse("g.svg")
    with pytest.raises(OSError, match="none"):
        program.report("none/r.html")
    assert sorted(os.listdir()) == ["a b ü.html", "c.html", "g.dot", "g.svg", "t.json"]


# -- pictures --------------------------------------------------------------------------------


def test_pictures_have_files_and_groups_on_demand(batch: Batch, tmp_path: Path) -> None:
    program = make_program(batch, tmp_path)
    plain = program.visualize(tmp_path / "plain.svg").read_text("utf-8")
    labelled = program.visualize(tmp_path / "files.svg", files=True).read_text("utf-8")
    assert ">a<" not in plain
    assert labelled.count(">a</text>") == 3 + 3
    grouped = ET.fromstring(program.visualize(tmp_path / "g.svg", collapse=True).read_text())
    texts = [each.text for each in grouped.iter(f"{SVG}text")]
    assert {"clean", "3 tasks"} <= {*texts}
    assert "clean[0]" not in texts
    assert 'label="clean (3)"' in program.to_dot(collapse=True)
    assert program._repr_svg_() == plain
    many = batch.compile([batch.function(same, n) for n in range(201)])
    assert "201 tasks" in many._repr_svg_()
    assert "same[200]" in many.visualize(tmp_path / "all.svg", collapse=False).read_text()


# -- notebook forms --------------------------------------------------------------------------


class Hostile:
    """An object that tells nothing of itself."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_forms_tell_what_is_here(batch: Batch, tmp_path: Path) -> None:
    program = make_program(batch, tmp_path, "<program>")
    load, *_, bad, after = program.tasks
    for shown in (batch, program, load, load.result, load.stdout, program.result):
        assert "created" in shown._repr_html_() or shown is batch
    program.run(timeout=60)
    form = program._repr_html_()
    for part in (
        "&lt;program&gt;",
        "5 done",
        "1 failed",
        "1 skipped",
        "of 7",
        "the reason",
        "<svg",
    ):
        assert part in form
    assert batch.dashboard_link in form
    assert "&lt;program&gt;" in batch._repr_html_()
    assert "ValueError: the reason" in bad._repr_html_()
    assert "before it fails" in bad.stdout._repr_html_()
    assert "did not run because of bad" in after.result._repr_html_()
    assert ">1<" in load.result._repr_html_()
    assert load.as_future()._repr_html_() == load._repr_html_()
    assert str(tmp_path / "a") in load._repr_html_()
    assert program.failures == (bad,)  # a look, so that nothing is told at the end


def test_forms_never_raise(batch: Batch) -> None:
    hostile = batch.function(Hostile)
    large = batch.function(bytes, 1 << 20)
    program = batch.compile([hostile, large])
    program.run(timeout=60)
    assert "cannot be shown" not in hostile.result._repr_html_()
    assert "get() fetches it" in large.result._repr_html_()
    many = batch.compile([batch.function(same, n) for n in range(300)])
    form = many._repr_html_()
    assert "graph of 300 tasks, by name" in form
    assert len(form) < 20_000


def test_an_executor_and_its_futures_have_forms(batch: Batch) -> None:
    with as_executor(batch) as executor:
        future = executor.submit(pow, 2, 3)
        assert future.result(timeout=60) == 8
        assert re.search(r"pow.*done", future._repr_html_())
        assert "calls at once" in executor._repr_html_()
    assert "Executor" in executor._repr_html_()

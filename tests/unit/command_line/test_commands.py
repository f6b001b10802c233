"""The command line: help, reports of logs, templates, and the checks of `doctor`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from daskbatch.command_line import doctor
from daskbatch.command_line.doctor import Level, check_directories, check_launcher, check_versions
from daskbatch.command_line.main import main

TEMPLATE = """
import_args: [model, base_dir]
args: [day, word]
kwargs: {times: n}
type: function
name: simulate
executables:
  - target: model
    args: [day]
    kwargs: {word: word, n: n}
reads:
  - files: [[base_dir, day]]
timeout: {min: 2}
"""


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in ("doctor", "report", "template"):
        assert re.search(rf"^ +{name} ", text, re.MULTILINE)


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "daskbatch", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("daskbatch 0")


@pytest.mark.parametrize("words", [[], ["nothing"], ["report"], ["template", "a", "b"]])
def test_wrong_words_are_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: python -m daskbatch" in capsys.readouterr().err


# -- template --------------------------------------------------------------------------------


def test_a_template_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "día 1.yml"
    file.write_text(TEMPLATE, encoding="utf-8")
    assert main(["template", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{file}: a template of tasks of type function",
        f"  make = batch.import_func({str(file)!r}, model, base_dir)",
        "  task = make(day, word, times=...)",
        "name: 'simulate'",
        "runs: model(day, word=word, n=n)",
        "reads: file [base_dir, day]",
        "timeout: 2 min",
    ]


def test_a_wrong_template_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.yml"
    file.write_text(TEMPLATE.replace("type: function", "type: functoin"))
    assert main(["template", str(file)]) == 1
    assert re.search(r"wrong\.yml.*5.*functoin", capsys.readouterr().err)
    assert main(["template", str(tmp_path / "nothing.yml")]) == 1
    assert "nothing.yml" in capsys.readouterr().err


# -- report ----------------------------------------------------------------------------------


def write_log(directory: Path) -> None:
    common = {"run": "r1", "name": "clean <1>", "uid": "u1", "kind": "task"}
    events = [
        {**common, "kind": "run", "state": "begun", "time": 1.0, "uid": "r1", "name": "mine"},
        {**common, "state": "waiting", "time": 2.0, "created": 1.5, "waits_for": []},
        {**common, "state": "done", "time": 4.0, "started": 3.0, "ended": 4.0, "seconds": 1.0},
    ]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (directory / "events.jsonl").write_text(text)


def test_a_report_is_made_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "clean &lt;1&gt;" in page
    assert "<title>mine" in page
    other = tmp_path / "other.html"
    trace = tmp_path / "trace.json"
    words = ["report", str(tmp_path), "--output", str(other), "--trace", str(trace), "--run", "r1"]
    assert main(words) == 0
    assert other.exists()
    assert json.loads(trace.read_text())["traceEvents"]


def test_no_report_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "not the log_dir of a Batch" in capsys.readouterr().err
    write_log(tmp_path)
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "no" / "r.html")]) == 1
    assert "no report: " in capsys.readouterr().err


# -- doctor ----------------------------------------------------------------------------------


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = {finding.subject: finding.level for finding in check_versions()}
    assert levels["dask"] is Level.GOOD
    found = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: None if name in ("zict", "yappi") else found(name)
    )
    levels = {finding.subject: finding.level for finding in check_versions()}
    assert levels["zict"] is Level.BAD
    assert levels["yappi"] is Level.NOTE


def test_the_launcher_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpiexec = tmp_path / "mpiexec"
    mpiexec.write_text("#!/bin/sh\necho 'HYDRA build details:'\n")
    mpiexec.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (finding,) = check_launcher()
    assert (finding.level, finding.text) == (Level.GOOD, f"MPICH: {mpiexec}")


def test_a_directory_that_cannot_be_written_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    levels = {finding.subject: finding.level for finding in check_directories()}
    assert levels["temporary directory"] is Level.BAD
    assert levels["working directory"] is not Level.BAD


def test_the_exit_code_says_whether_there_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--no-cluster"]) == 0
    assert capsys.readouterr().out.endswith("no faults found\n")
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert main(["doctor", "--no-cluster"]) == 1
    assert "FAULT  dask: is not installed" in capsys.readouterr().out

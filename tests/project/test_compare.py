"""The comparison with other libraries ends what they leave, and says why one has no time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.paths import PROJECT

COMPARE = PROJECT / "benchmarks" / "compare"

#: A program that starts a process in another session, writes its number, and goes on or ends.
PROGRAM = "setsid sleep 600 & echo $!; sleep "

RUN = """
import os, sys
from fresh_process import run_alone
run = run_alone(["sh", "-c", sys.argv[1]], float(sys.argv[2]), os.environ)
print(run.returncode, run.remaining, run.stdout)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")
@pytest.mark.parametrize(("sleeps", "limit", "code"), [("0", "60", "0"), ("600", "3", "None")])
def test_no_process_of_a_library_remains(sleeps: str, limit: str, code: str) -> None:
    # In another process, since this one has children that must stay.
    run = subprocess.run(
        [sys.executable, "-c", RUN, PROGRAM + sleeps, limit],
        cwd=COMPARE,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    returncode, _, left = run.stdout.split()
    assert returncode == code
    assert not psutil.pid_exists(int(left))


def test_the_page_says_why_a_library_has_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(COMPARE)
    import compare

    monkeypatch.setattr(
        compare, "measure", lambda library, _: 2.0 if library == "daskbatch" else "no result in 9 s"
    )
    page = tmp_path / "page.md"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *("compare.py", "--repeats", "1", "--page", str(page)),
            *("--libraries", "daskbatch", "Dask", "--programs", "chain", "queue"),
        ],
    )
    compare.main()
    text = page.read_text("utf-8")
    assert "| a chain of 500 calls | 2 s | failed |" in text
    assert "- a chain of 500 calls, Dask: `no result in 9 s`" in text
    assert "No library was faster." in text

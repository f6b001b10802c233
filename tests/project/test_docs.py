"""The programs in the documents run, and print the output that the documents show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.dask_log import without_what_dask_says
from support.paths import PROJECT as HOME

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "examples/README.md",
    *sorted(str(page.relative_to(HOME)) for page in HOME.glob("docs/**/*.md")),
]

_PROGRAM = re.compile(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL)


def programs() -> list[tuple[str, str, str]]:
    return [
        (f"{document}-{number}", *found)
        for document in DOCUMENTS
        for number, found in enumerate(_PROGRAM.findall((HOME / document).read_text("utf-8")))
    ]


@pytest.mark.parametrize(
    ("program", "printed"),
    [found[1:] for found in programs()],
    ids=[found[0] for found in programs()],
)
def test_a_program_of_a_document_prints_what_stands_there(
    program: str, printed: str, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    assert without_what_dask_says(run.stderr) == ""
    assert run.stdout.replace(str(tmp_path), "<here>") == printed


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_program_runs_or_the_page_says_why_not(document: str) -> None:
    text = (HOME / document).read_text("utf-8")
    languages = re.findall(r"^```(\S.*)$", text, re.MULTILINE)
    assert set(languages) <= {"python", "py", "sh", "text", "yaml", "json", "html"} | {
        language for language in languages if language.startswith("{")
    }
    for before in text.split("```py\n")[:-1]:
        assert re.search(r"<!-- not run: .+ -->\s*$", before), "say above it why it is not run"


def test_the_readme_has_a_program() -> None:
    assert any(name.startswith("README.md") and text for name, _, text in programs())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_within_the_project_lead_somewhere(document: str) -> None:
    text = (HOME / document).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((HOME / document).parent / target).exists(), target


def test_the_demo_leaves_what_a_sequential_run_leaves(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, HOME / "examples" / "library_census.py", "--files", "6", "--workers", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert "same files yes" in run.stdout
    assert "44: 20 functions, 24 executables" in run.stdout
    assert (tmp_path / "demo-output" / "parallel" / "words.txt").read_text().split()[1] == "self"

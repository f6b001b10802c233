"""The pages of the site name all that there is: errors, settings, commands, keys of templates."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from support.paths import DOCS, NOTEBOOKS, PROJECT

import daskbatch
from daskbatch.command_line.main import main

REFERENCE = "\n".join(path.read_text("utf-8") for path in (DOCS / "reference").glob("*.md"))


def words(text: str) -> list[str]:
    """Return the words of a text, however it is wrapped."""
    return text.split()


@pytest.mark.parametrize("name", sorted({*daskbatch.__all__} - {"__version__"}))
def test_the_reference_has_each_public_name(name: str) -> None:
    assert re.search(rf":: daskbatch\.{name}\n|`{name}`", REFERENCE)


@pytest.mark.parametrize("command", ["doctor", "report", "template"])
def test_the_page_of_the_command_line_is_its_help(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    page = (DOCS / "reference" / "command-line.md").read_text("utf-8")
    shown = page.split(f"## {command}\n")[1].split("```text\n")[1].split("```")[0]
    assert words(shown) == words(capsys.readouterr().out)


def keys_of(schema: object) -> set[str]:
    """Return the keys that a file of a JSON Schema may have."""
    if isinstance(schema, dict):
        inner = set().union(*map(keys_of, schema.values()), set())
        named = schema.get("properties", {})
        return inner | (set(named) if isinstance(named, dict) else set())
    if isinstance(schema, list):
        return set().union(*map(keys_of, schema), set())
    return set()


def test_the_page_of_templates_has_each_key_of_the_format() -> None:
    schema = json.loads((PROJECT / "daskbatch" / "ptd.schema.json").read_text("utf-8"))
    page = (DOCS / "guides" / "templates.md").read_text("utf-8")
    keys = keys_of(schema)
    assert {"target", "num_procs", "import_kwargs", "sec", "ddict"} <= keys
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_each_notebook_is_a_step_of_the_tutorial() -> None:
    page = (DOCS / "tutorial" / "index.md").read_text("utf-8")
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert page.count(f"../../notebooks/{path.stem}") == 2, path.stem  # table and contents


def test_each_page_of_a_section_is_in_its_contents() -> None:
    for section in ("guides", "coming-from", "reference", "about"):
        contents = (DOCS / section / "index.md").read_text("utf-8").split("{toctree}")[1]
        for path in (DOCS / section).glob("*.md"):
            assert path.stem in ("index", *contents.split()), path


def test_the_readme_and_its_first_program_are_short() -> None:
    text = (PROJECT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split("```python\n")[1].split("```")[0].splitlines()) <= 15


def test_the_comparison_is_dated_and_can_be_repeated() -> None:
    page = (DOCS / "about" / "comparison.md").read_text("utf-8")
    assert re.search(r"Date: \d{4}-\d\d-\d\d", page)
    assert "make compare" in page
    assert "Where others are faster" in page or "No library was faster" in page


def test_broken_links_of_the_site_are_found(tmp_path: Path) -> None:
    broken_links = runpy.run_path(str(DOCS / "check_links.py"))["broken_links"]
    (tmp_path / "b.html").write_text('<h1 id="here">B</h1><a name="there"></a>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html">1</a><a href="b.html#here">2</a><a href="b.html#there">3</a>'
        '<a href="#gone">4</a><a href="c.html">5</a><img src="d%20e.png">'
        '<a href="b.html#no">6</a><a href="https://example.org/x">7</a><a href="mailto:a@b">8</a>'
    )
    broken, count = broken_links(tmp_path)
    assert broken == [
        "a.html: #gone has no such anchor",
        "a.html: c.html is not there",
        "a.html: d%20e.png is not there",
        "a.html: b.html#no has no such anchor",
    ]
    assert count == 7
    (tmp_path / "c.html").touch()
    (tmp_path / "d e.png").touch()
    assert len(broken_links(tmp_path)[0]) == 2

"""Imports go one way: this is the table that says which."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import DOCS

import daskbatch

ROOT = Path(daskbatch.__file__).parent

FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")

#: Each part, and the parts of daskbatch that it may import, apart from itself.
MAY_IMPORT = {
    "errors": set(),
    "_version": set(),
    "config": set(),
    "spaces": set(),
    "pickling": {"errors", "spaces"},
    "worker": {"errors", "pickling", "spaces"},
    "describe": {"errors", "pickling", "worker"},
    "plan": {"errors", "describe"},
    "dispatch": {"errors", "config", "pickling", "describe", "plan", "worker"},
    "shared": {"errors", "config", "pickling", "describe", "dispatch", "worker"},
    # The face: what the user holds.
    "failure": {"errors", "dispatch", "worker"},
    "handle": {"task"},
    "task": {"errors", "pickling", "dispatch", "worker", "failure", "handle", "batch"},
    "compiled": {"errors", "plan", "dispatch", "handle", "task", "batch"},
    "configured": {"errors", "describe", "dispatch", "task", "batch"},
    "imported": {"errors", "describe", "task", "configured", "batch"},
    "identity": {"errors", "pickling", "dispatch", "worker"},
    "making": {
        *("errors", "describe", "dispatch", "identity", "task"),
        *("compiled", "configured", "imported", "batch"),
    },
    "sharing": {"describe", "dispatch", "plan", "shared", "identity", "ddict", "queue"},
    "batch": {
        *("errors", "describe", "dispatch"),
        *("identity", "task", "compiled", "making", "sharing"),
    },
    # What tasks share.
    "keyed": {"describe", "shared"},
    "ddict": {"errors", "config", "describe", "dispatch", "shared", "keyed"},
    "queue": {"errors", "describe", "dispatch", "shared", "worker"},
    # The executor.
    "future": {"errors", "dispatch", "worker", "task", "pool"},
    "lanes": {"dispatch"},
    "cpus": {"errors"},
    "gatherer": {"errors", "dispatch", "lanes"},
    "settler": {"dispatch", "future"},
    "pool": {"errors", "dispatch", "worker", "task", "future", "gatherer", "settler", "batch"},
    "calls": {"pickling", "describe", "dispatch", "worker", "compiled", "configured", "batch"},
    "mapping": {"errors", "dispatch", "worker", "failure", "calls", "pool"},
    "executor": {
        *("errors", "worker", "configured", "batch", "calls", "cpus", "future", "mapping", "pool"),
    },
}

#: Only these may import `distributed`; and these `dask`, besides.
DISTRIBUTED = {
    *("dispatch", "worker/plugin.py", "worker/cores.py", "batch.py", "executor.py"),
    *("shared/actor.py", "shared/admitting.py", "shared/opening.py"),
    *("shared/reach.py", "shared/registry.py"),
}
DASK = {"config.py", *DISTRIBUTED}


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            if node.module == "daskbatch":
                yield from (f"daskbatch.{alias.name}" for alias in node.names)
            else:
                yield node.module


def _may(path: Path, allowed: set[str]) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return name in allowed or name.split("/")[0] in allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports(path: Path) -> None:
    allowed = MAY_IMPORT[_part(path)] | {_part(path)}
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "daskbatch":
            assert rest[0] in allowed, f"{path.name} must not import {name}"
        if top == "distributed":
            assert _may(path, DISTRIBUTED), f"{path.name} must not import {name}"
        if top == "dask":
            assert _may(path, DASK), f"{path.name} must not import {name}"


def test_the_table_is_that_of_the_document() -> None:
    text = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert {part: set(re.findall(r"`(\w+)`", may)) for part, may in rows} == MAY_IMPORT


def test_each_module_has_its_place_in_the_house() -> None:
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    house: dict[str, set[str]] = {}
    part = ""
    for line in text.split("## The house")[1].split("```")[1].splitlines()[1:]:
        # A word or none, names, and what they are for, which is set off from them.
        found = re.match(r"(.{13})(.*?)(?:  |$)", line)
        assert found is not None, line
        part = found[1].strip() or part
        house.setdefault(part, set()).update(found[2].split())
    modules: dict[str, set[str]] = {}
    for path in FILES:
        folder = path.relative_to(ROOT).parent
        modules.setdefault("the face" if folder.name == "" else f"{folder}/", set()).add(path.stem)
    assert house == modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400

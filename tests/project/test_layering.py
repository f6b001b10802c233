"""Imports go one way, without circles; files are small; each module has a place in the design."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.paths import DOCS

import daskbatch

ROOT = Path(daskbatch.__file__).parent

FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")

#: What all packages may use.
GROUND = {"_version", "errors", "config", "timeouts", "forking", "threads", "user_code"}

#: Each part, and the parts of daskbatch that it may import, besides itself. From top to bottom:
#: a part never imports one that stands above it.
MAY_IMPORT = {
    "__main__": {"command_line"},
    "command_line": {*GROUND, "batch", "describe", "worker", "records", "report"},
    "execute": {*GROUND, "batch", "cluster", "dispatch", "describe", "worker", "serialization"},
    "executor": {*GROUND, "batch", "cluster", "dispatch", "describe", "worker", "serialization"},
    "batch": {
        *(*GROUND, "shared", "cluster", "dispatch", "plan", "describe", "worker"),
        *("serialization", "report", "observation", "records", "dashboard"),
    },
    "observation": {
        *(*GROUND, "dispatch", "plan", "describe", "worker", "serialization", "records"),
    },
    "shared": {*GROUND, "cluster", "describe", "worker", "serialization", "memory"},
    "cluster": {
        *(*GROUND, "dashboard", "dispatch", "plan", "describe", "worker", "serialization"),
        "memory",
    },
    "dashboard": {"dispatch"},
    "dispatch": {*GROUND, "plan", "describe", "worker", "serialization"},
    "plan": {"errors", "describe"},
    "report": {"errors", "_version", "records"},
    "records": {"errors", "threads"},
    "describe": {"errors", "timeouts", "user_code", "worker", "serialization"},
    "worker": {
        *("errors", "timeouts", "forking", "threads", "uninterrupted", "serialization", "memory"),
    },
    "serialization": {"errors", "timeouts", "forking", "memory"},
    "memory": {"forking", "threads", "uninterrupted"},
    "timeouts": {"errors"},
    "forking": set(),
    "threads": set(),
    "uninterrupted": set(),
    "user_code": set(),
    "config": set(),
    "errors": set(),
    "_version": set(),
}

#: The files that may import `distributed`; these and `config` may import `dask`, too.
DISTRIBUTED = {
    *("cluster", "dashboard", "shared/sizes.py", "worker/plugin.py", "worker/slot_holding.py"),
    "worker/future_value.py",
    "worker/relayed_values.py",
    *("worker/same_host.py", "worker/host_transfers.py", "worker/dask_types.py"),
    *("worker/departure.py", "worker/termination.py"),
    "worker/open_blocks/server.py",
    *("batch/batch.py", "batch/context_creation.py", "executor/executor.py"),
    *("execute/running/remote_method.py", "execute/profiling/cluster_profiler.py"),
    *("shared/actor.py", "shared/actor_admission.py", "shared/actor_creation.py"),
    *("shared/creation.py", "shared/scheduler_rpc.py", "shared/waiting.py", "shared/registry.py"),
}
DASK = {
    "config.py",
    "command_line/doctor.py",
    "dispatch/lower.py",
    "dispatch/graph_order.py",
    "dispatch/recovery.py",
    *DISTRIBUTED,
}

#: How many lines of code a file may have: docstrings, comments and empty lines do not count.
MOST_LINES = 400
#: And half of the files have no more than so many.
MEDIAN_LINES = 200


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _module(path: Path) -> str:
    return ".".join(("daskbatch", *path.relative_to(ROOT).with_suffix("").parts))


def _imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports anywhere, for type checking alone included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in modules)


def _may(path: Path, allowed: set[str]) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return name in allowed or name.split("/")[0] in allowed


def _lines_of_code(path: Path) -> int:
    """Count the lines that hold code, and not only a docstring, a comment or nothing."""
    text = path.read_text(encoding="utf-8")
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout and token.type != tokenize.ENDMARKER:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


MODULES = {_module(path): path for path in FILES}
IDS = [path.relative_to(ROOT).as_posix() for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports(path: Path) -> None:
    allowed = MAY_IMPORT[_part(path)] | {_part(path)}
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "daskbatch" and rest:
            assert rest[0] in allowed, f"{path.name} must not import {name}"
        if top == "distributed":
            assert _may(path, DISTRIBUTED), f"{path.name} must not import {name}"
        if top == "dask":
            assert _may(path, DASK), f"{path.name} must not import {name}"


def test_parts_import_only_what_stands_below_them() -> None:
    order = list(MAY_IMPORT)
    for position, (part, allowed) in enumerate(MAY_IMPORT.items()):
        assert allowed <= set(order[position + 1 :]), part


def test_no_modules_import_each_other_in_a_circle() -> None:
    needs = {name: set(_imports(path)) & set(MODULES) for name, path in MODULES.items()}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_table_is_that_of_the_document() -> None:
    text = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert {part: set(re.findall(r"`(\w+)`", may)) for part, may in rows} == MAY_IMPORT


def test_each_module_has_its_place_in_the_house() -> None:
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    layout: dict[str, set[str]] = {}
    folder = ""
    for line in text.split("## Layout")[1].split("```")[1].splitlines()[1:]:
        # A folder or none, then modules, and what they are for, which is set off from them.
        found = re.match(r"(.{22})(.*?)(?:  |$)", line)
        assert found is not None, line
        folder = found[1].strip() or folder
        layout.setdefault(folder, set()).update(found[2].split())
    modules: dict[str, set[str]] = {}
    for path in FILES:
        folder = path.relative_to(ROOT.parent).parent.as_posix()
        modules.setdefault(f"{folder}/".removeprefix("daskbatch/") or "daskbatch/", set()).add(
            path.stem
        )
    assert layout == modules


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_are_small(path: Path) -> None:
    assert _lines_of_code(path) <= MOST_LINES


def test_most_files_are_much_smaller() -> None:
    counts = sorted(_lines_of_code(path) for path in FILES)
    assert counts[len(counts) // 2] < MEDIAN_LINES

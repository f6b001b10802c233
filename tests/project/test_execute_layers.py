"""The sub-packages of `daskbatch.execute` import each other one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import daskbatch

ROOT = Path(daskbatch.__file__).parent / "execute"

FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")

#: Each part, and the parts of `daskbatch.execute` that it may import, besides itself.
MAY_IMPORT = {
    "context": {"profiling", "running", "scheduling", "jobs", "workers"},
    "profiling": {"workers"},
    "running": {"scheduling", "jobs", "workers"},
    "scheduling": set[str](),
    "jobs": {"workers"},
    "workers": set[str](),
}


def imports(path: Path) -> Iterator[str]:
    """Yield the parts of `daskbatch.execute` that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in names:
            if name.startswith("daskbatch.execute."):
                yield name.split(".")[2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert set(imports(path)) <= MAY_IMPORT[part] | {part}

"""The glossary of docs/design.md explains each class, and the layout each module, in a line."""

from __future__ import annotations

import ast
import re

import pytest
from support.paths import DOCS, PROJECT

import daskbatch

FILES = sorted((PROJECT / "daskbatch").rglob("*.py"))


def classes() -> dict[str, str]:
    """Return the classes of the package that are not private, with their files."""
    return {
        node.name: path.relative_to(PROJECT).as_posix()
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }


def is_named_after_its_module(name: str, path: str) -> bool:
    stem = path.rsplit("/", 1)[-1].removesuffix(".py")
    return name.lower() == stem.replace("_", "")


@pytest.mark.parametrize(("name", "path"), classes().items(), ids=classes())
def test_each_class_is_public_or_explained(name: str, path: str) -> None:
    if name in daskbatch.__all__ or path == "daskbatch/errors.py":
        return
    if is_named_after_its_module(name, path):
        return  # the layout explains the module
    page = (DOCS / "design.md").read_text("utf-8")
    glossary = page.split("## Glossary")[1].split("\n## ")[0]
    assert re.search(rf"`{name}`", page.split("## Layout")[1].split("## Decisions")[0] + glossary)


def test_the_glossary_names_no_class_that_is_not_there() -> None:
    glossary = (DOCS / "design.md").read_text("utf-8").split("## Glossary")[1].split("\n## ")[0]
    named = set(re.findall(r"`([A-Z][A-Za-z]+)s?`", glossary))
    assert named - set(classes()) == set()

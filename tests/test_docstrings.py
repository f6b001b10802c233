"""The examples in the docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import daskbatch
from daskbatch import Batch

MODULES = sorted(
    each.name for each in pkgutil.walk_packages(daskbatch.__path__, prefix="daskbatch.")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, request: pytest.FixtureRequest) -> None:
    module = importlib.import_module(name)
    failures = []
    for test in doctest.DocTestFinder().find(module):
        if any("batch." in example.source for example in test.examples):
            test.globs.setdefault("batch", request.getfixturevalue("batch"))
        if any("executor." in example.source for example in test.examples):
            shared = daskbatch.as_executor(request.getfixturevalue("batch"))
            test.globs.setdefault("executor", shared)
        runner = doctest.DocTestRunner()
        said: list[str] = []
        runner.run(test, out=said.append)
        if runner.summarize(verbose=False).failed:
            failures.append("".join(said))
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", daskbatch.__all__)
def test_public_names_have_an_example(name: str) -> None:
    public = getattr(daskbatch, name)
    if name != "__version__":
        assert ">>>" in (public.__doc__ or ""), f"{name} has no example"


def test_module_docstrings_say_what_they_do_and_what_they_do_not_know() -> None:
    for name in MODULES:
        text = importlib.import_module(name).__doc__ or ""
        assert text.strip(), f"{name} has no docstring"


def test_a_batch_is_there_for_examples(batch: Batch) -> None:
    assert not batch.closed

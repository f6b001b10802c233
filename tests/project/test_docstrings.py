"""Docstrings have all sections that they need, and their examples give what they show."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import daskbatch
from daskbatch import Batch
from daskbatch.batch.compiled import CompiledTask
from daskbatch.batch.handle import Handle
from daskbatch.batch.options import TaskFactory
from daskbatch.batch.task import Task
from daskbatch.batch.template_function import ImportedFunction
from daskbatch.execute import ExecutionContext
from daskbatch.executor.future import BatchPoolFuture
from daskbatch.plan.graph import Graph

MODULES = sorted(
    ["daskbatch", *(m.name for m in pkgutil.walk_packages(daskbatch.__path__, "daskbatch."))]
)

#: What users hold of daskbatch, and do not make themselves.
GIVEN = [Task, CompiledTask, Handle, TaskFactory, ImportedFunction, Graph, BatchPoolFuture]
PUBLIC = [each for name in daskbatch.__all__ if inspect.isclass(each := getattr(daskbatch, name))]
#: Bases stand before the classes that inherit from them.
CLASSES = sorted(dict.fromkeys([*PUBLIC, *GIVEN]), key=lambda each: len(each.__mro__))

#: What users call by other signs than by a name.
OPERATORS = {
    *("__call__", "__await__", "__enter__", "__exit__", "__eq__"),
    *("__getitem__", "__setitem__", "__delitem__", "__contains__", "__iter__", "__len__"),
}


class Member(NamedTuple):
    """A method, property or operator, and the public class that has it."""

    of: type
    name: str
    what: Any

    def __str__(self) -> str:
        return f"{self.of.__name__}.{self.name}"

    @property
    def text(self) -> str:
        # What stands there itself; `inspect.getdoc` would look at the bases.
        return inspect.cleandoc(self.what.__doc__ or "")


def members() -> Iterator[Member]:
    """Return the members of the public classes; an inherited member once."""
    seen: set[Any] = set()
    for cls in CLASSES:
        for name in dir(cls):
            what = inspect.getattr_static(cls, name)
            what = what.__func__ if isinstance(what, (classmethod, staticmethod)) else what
            function = what.fget if isinstance(what, property) else what
            if name.startswith("_") and name not in OPERATORS:
                continue
            if not inspect.isfunction(function) or function in seen:
                continue
            if function.__module__.startswith("daskbatch") and not _is_of_a_dataclass(function):
                seen.add(function)
                yield Member(cls, name, what)


def _is_of_a_dataclass(function: Callable[..., Any]) -> bool:
    return function.__code__.co_filename == "<string>"


MEMBERS = list(members())


def has_parameters(text: str, function: Callable[..., Any]) -> bool:
    """Return whether a docstring names all parameters, or refers to one that does."""
    wanted = [
        name
        for name, each in inspect.signature(function).parameters.items()
        if name not in ("self", "cls")
        and not (inspect.isclass(function) and each.kind == each.VAR_POSITIONAL)
    ]
    section = re.search(r"^Parameters\n-+\n(.*?)(?:\n\n\S|\Z)", text, re.DOTALL | re.MULTILINE)
    if section is None:
        return not wanted or re.search(r"\b[Ss]ee `[\w.]+`", text) is not None
    lines = re.findall(r"^\S.*", section[1], re.MULTILINE)
    named = {name.strip("* ") for line in lines for name in line.split(" : ")[0].split(",")}
    return named >= set(wanted)


def examples(text: str) -> str:
    """Return the lines of a docstring that are run."""
    return "".join(each.source for each in doctest.DocTestParser().get_examples(text))


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
        if any("ctx" in example.source for example in test.examples):
            test.globs.setdefault("batch", request.getfixturevalue("batch"))
            test.globs.setdefault("ctx", ExecutionContext(request.getfixturevalue("batch")))
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


@pytest.mark.parametrize("cls", GIVEN)
def test_what_users_are_given_has_an_example(cls: type) -> None:
    assert ">>>" in (cls.__doc__ or "")


@pytest.mark.parametrize("name", [n for n in daskbatch.__all__ if n != "__version__"])
def test_public_names_have_their_parameters(name: str) -> None:
    public = getattr(daskbatch, name)
    text = inspect.cleandoc(public.__doc__)
    own = not isinstance(public, type) or "__init__" in vars(public)
    assert not own or has_parameters(text, public), f"{name} has parameters that it does not name"


def test_the_members_that_users_know_are_found() -> None:
    found = {str(member) for member in MEMBERS}
    assert found >= {"Batch.function", "Batch.ddict", "Batch.client", "Task.wait", "Task.__await__"}
    assert found >= {"DDict.load", "DDict.__getitem__", "BatchPoolFuture.cancel", "Graph.edges"}
    assert not {"CompiledTask.wait", "Task.__repr__", "CommunicationDomain.__eq__"} & found


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_members_have_a_docstring_that_names_their_parameters(member: Member) -> None:
    assert member.text, f"{member} has no docstring"
    if inspect.isfunction(member.what) and member.name not in OPERATORS:
        assert has_parameters(member.text, member.what), f"{member} does not name its parameters"


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.name not in OPERATORS], ids=str)
def test_members_stand_in_an_example_of_their_own_or_of_their_class(member: Member) -> None:
    used = re.compile(rf"\.{member.name}\b")
    texts = member.text, inspect.cleandoc(member.of.__doc__ or "")
    assert any(used.search(examples(text)) for text in texts), f"{member} has no example"


@pytest.mark.parametrize("name", MODULES)
def test_module_docstrings_say_what_they_do_and_what_a_caller_needs(name: str) -> None:
    text = importlib.import_module(name).__doc__ or ""
    does, *rest = text.split("\n\n")
    assert "\n" not in does
    assert does.rstrip().endswith((".", ":"))
    assert rest, f"{name} says nothing of its limits: threads, errors, or what it does not know"


def test_a_batch_is_there_for_examples(batch: Batch) -> None:
    assert not batch.closed

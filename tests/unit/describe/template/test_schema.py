"""The JSON schema and the reader agree: the reader refuses everything that the schema refuses."""

from __future__ import annotations

import copy
import importlib.resources
import json
import re
from collections.abc import Iterator
from keyword import kwlist
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from support.paths import EXAMPLES

from daskbatch import TemplateError
from daskbatch.describe.template.reader import parse_template

SCHEMA = json.loads(importlib.resources.files("daskbatch").joinpath("ptd.schema.json").read_text())
VALIDATOR = Draft7Validator(SCHEMA)

#: A valid file; each test changes one thing.
FILE = """
import_args: [f, g]
import_kwargs: {k: name, made: {g: [name, [1, null]]}}
args: [a, b]
kwargs: {c: d}
type: job
executables:
  - {target: f, args: [a, {g: [{g: []}]}, [1, x]], kwargs: {k: a}, num_procs: 2, cwd: a, env: b}
  - {target: ./x, nprocs: {g: [a]}, env: {A: text, B: b}}
reads:
  - files: [x, [a, y], {g: [a]}]
  - {ddict: a, keys: [1, text, true, null, {g: [b]}]}
writes:
  - {ddict: {g: [a]}}
name: {g: [a]}
timeout: {day: 0, hour: a, min: 1.5, sec: {g: [b]}}
"""

GOOD = [
    {},
    {"import_kwargs": None, "reads": None, "writes": [], "name": None, "timeout": None},
    {"name": "text"},
    {"timeout": {"sec": 5}},
    {"type": "function", "executables": [{"target": "f", "args": None, "env": None}]},
    {"type": "function", "executables": [{"target": {"g": [1]}, "kwargs": {"any": "a"}}]},
    {"type": "process", "executables": [{"target": "ls", "args": ["-l", 5], "cwd": "/tmp"}]},
    {"executables": [{"target": "ls", "env": {"g": [1]}}]},
    {"executables": [{"target": "ls", "env": {}}]},
    {"reads": [{"ddict": "a", "keys": None}]},
    {"reads": [{"ddict": "a", "files": None}, {"files": ["x"], "ddict": None, "keys": None}]},
    {"executables": [{"target": "f", "num_procs": 2, "nprocs": None}]},
    {"executables": [{"target": "f", "num_procs": None, "nprocs": None}]},
    {"timeout": {"sec": None, "min": 1}},
    {"args": ["a", "b", "\N{CJK UNIFIED IDEOGRAPH-20000}"]},
]

BAD: list[dict[str, Any]] = [
    {"typ": "function"},
    {"type": "Function"},
    {"type": None},
    {"type": ["job"]},
    {"import_args": {"a": "b"}},
    {"import_args": ["f", "g", "g"]},
    {"import_args": ["f", "g", 5]},
    {"import_args": ["f", "g", "a-b"]},
    {"import_kwargs": ["k"]},
    {"import_kwargs": {"name": "name", "k": 5}},
    {"import_kwargs": {"name": "name", "self": "k"}},
    {"import_kwargs": {"name": "name", "k": {"f": [], "g": []}}},
    {"args": "a"},
    {"kwargs": {"k": {"g": []}}},
    {"kwargs": {"a b": "k"}},
    {"kwargs": {"k": None}},
    {"executables": None},
    {"executables": []},
    {"executables": {"target": "f"}},
    {"executables": ["f"]},
    {"executables": [{}]},
    {"executables": [{"target": None}]},
    {"executables": [{"target": ""}]},
    {"executables": [{"target": 5}]},
    {"executables": [{"target": "f", "arg": []}]},
    {"executables": [{"target": "f", "args": "a"}]},
    {"executables": [{"target": "f", "args": [{}]}]},
    {"executables": [{"target": "f", "args": [{"g": "a"}]}]},
    {"executables": [{"target": "f", "args": [{"g": [], "f": []}]}]},
    {"executables": [{"target": "f", "kwargs": ["a"]}]},
    {"executables": [{"target": "f", "num_procs": 0}]},
    {"executables": [{"target": "f", "num_procs": 1.5}]},
    {"executables": [{"target": "f", "num_procs": True}]},
    {"executables": [{"target": "f", "num_procs": 1, "nprocs": 1}]},
    {"executables": [{"target": "f", "cwd": 5}]},
    {"executables": [{"target": "f", "env": {"A": 5}}]},
    {"executables": [{"target": "f", "env": {"A=": "x"}}]},
    {"executables": [{"target": "f", "env": ["A"]}]},
    {"type": "function", "executables": [{"target": "f"}, {"target": "f"}]},
    {"type": "function", "executables": [{"target": "f", "num_procs": 2}]},
    {"type": "function", "executables": [{"target": "./x"}]},
    {"type": "process", "executables": [{"target": "ls", "kwargs": {"a": 1}}]},
    {"type": "process", "executables": [{"target": "ls", "nprocs": 1}]},
    {"reads": {"files": ["x"]}},
    {"reads": [{}]},
    {"reads": [{"files": "x"}]},
    {"reads": [{"files": []}]},
    {"reads": [{"files": [5]}]},
    {"reads": [{"files": [["a"]]}]},
    {"reads": [{"files": [["a", "b", "c"]]}]},
    {"reads": [{"files": ["x"], "keys": ["a"]}]},
    {"reads": [{"files": ["x"], "ddict": "a"}]},
    {"reads": [{"files": None}]},
    {"reads": [{"files": None, "ddict": None, "keys": None}]},
    {"reads": [{"files": ["x"], "ddict": None, "keys": ["a"]}]},
    {"writes": [{"keys": ["a"]}]},
    {"writes": [{"keys": ["a"], "ddict": None}]},
    {"writes": [{"ddict": 5, "keys": ["a"]}]},
    {"writes": [{"ddict": "a", "keys": []}]},
    {"writes": [{"ddict": "a", "keys": [["a"]]}]},
    {"name": 5},
    {"name": ["a"]},
    {"timeout": 5},
    {"timeout": {}},
    {"timeout": {"second": 5}},
    {"timeout": {"sec": -5}},
    {"timeout": {"sec": True}},
    {"timeout": {"sec": [5]}},
    {"timeout": {"sec": 0}},
    {"timeout": {"sec": None}},
    {"timeout": {"sec": 0.0, "min": None, "hour": 0}},
    *({"kwargs": {word: "d"}} for word in kwlist),
    {"import_kwargs": {"name": "name", "class": "k"}},
]

#: Errors that only the reader finds.
BEYOND = [
    {"args": ["a", "b", "f"]},  # is declared twice
    {"executables": [{"target": "f", "args": [{"h": []}]}]},  # h is declared nowhere
    {"type": "function", "executables": [{"target": "h"}]},
    {"reads": [{"ddict": "h"}]},
    {"timeout": {"sec": "h"}},
    {"kwargs": {"a": "d"}},  # is a name in args
    {"import_kwargs": {"made": {"g": ["name"]}, "name": "name"}},  # not known yet
    {"executables": [{"target": "f", "num_procs": 1.0}]},
]


def changed(change: dict[str, Any]) -> str:
    return yaml.safe_dump({**yaml.safe_load(FILE), **change}, sort_keys=False)


def refusal(text: str) -> str | None:
    """Return the message of the reader for a file that it refuses."""
    try:
        parse_template(text.encode(), "my.yml")
    except TemplateError as error:
        return str(error)
    return None


def read(text: str) -> bool:
    return refusal(text) is None


def conforms(text: str) -> bool:
    return VALIDATOR.is_valid(yaml.safe_load(text))


def test_the_schema_is_one() -> None:
    Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("change", GOOD, ids=str)
def test_both_take_what_is_good(change: dict[str, Any]) -> None:
    text = changed(change)
    parse_template(text.encode(), "my.yml")
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize("change", BAD, ids=str)
def test_both_refuse_what_is_bad(change: dict[str, Any]) -> None:
    text = changed(change)
    assert not read(text)
    assert not conforms(text)


@pytest.mark.parametrize("missing", ["type", "executables"])
def test_both_miss_what_must_be_there(missing: str) -> None:
    whole = yaml.safe_load(FILE)
    del whole[missing]
    text = yaml.safe_dump(whole)
    assert not read(text)
    assert not conforms(text)


@pytest.mark.parametrize("change", BEYOND, ids=str)
def test_what_a_schema_cannot_know(change: dict[str, Any]) -> None:
    text = changed(change)
    assert not read(text)
    assert conforms(text)


@pytest.mark.parametrize("name", ["template.yml", "seeds/gpu_matmul_ptd.yml"])
def test_both_take_the_examples(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    parse_template(text.encode(), name)
    VALIDATOR.validate(yaml.safe_load(text))


# -- any file -----------------------------------------------------------------------------

#: The values that replace each part of a file.
ODD: list[Any] = [
    *(None, True, -1, 0, 0.0, 1, 1.5, "", "f", "a b", "5", [], {}, ["f"], ["f", "x"], [[]]),
    *({"g": []}, {"g": ["x"]}, {"g": None}, {"A": "x"}, {"A=B": "x"}, {"class": "x"}, {"k": None}),
    *({"sec": 0}, {"sec": 0, "min": None}, {"ddict": "f"}, {"ddict": "f", "keys": None}),
]

#: Keys that are added, with odd values.
KEYS = [
    *("import_args", "args", "kwargs", "type", "executables", "reads", "timeout", "name", "class"),
    *("target", "num_procs", "nprocs", "cwd", "env", "files", "ddict", "keys", "sec", "A"),
]

#: The only reasons for which the reader refuses a file that conforms to the schema.
REASONS = re.compile(
    "is declared (nowhere|already)|is not known yet|is a name in args|"
    "is 1.0: expected a whole number|"
    r"is '[^\W\d]\w*': expected a (whole )?number|"  # a word may be a name
    "in env is a list: expected a text"  # a map of one key may be a call
)


def parts(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the place of each part of a file: its container and its key."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from parts(node[key])


def files_like(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield files that differ from a valid one in one place."""
    for number in range(len(list(parts(whole)))):
        for odd in [*ODD, "a key less"]:
            changed = copy.deepcopy(whole)
            node, key = list(parts(changed))[number]
            node[key] = copy.deepcopy(odd)
            if odd == "a key less":
                del node[key]
            yield changed
    for number, (node, _) in enumerate(parts({"": whole})):
        if not isinstance(node, dict):
            continue
        for more in KEYS:
            for odd in (None, 0, "a", {}, ["f"], {"g": []}):
                changed = copy.deepcopy(whole)
                list(parts({"": changed}))[number][0].setdefault(more, odd)
                yield changed


SMALL = [
    """
import_args: [f, g]
import_kwargs: {k: name, made: {g: [name]}}
args: [a]
kwargs: {c: d}
type: function
executables: [{target: f, args: [a], kwargs: {k: d}, env: {A: x}}]
reads: [{files: [x, [a, y]]}]
timeout: {sec: 1}
""",
    """
import_args: [f, g]
type: job
executables: [{target: f, num_procs: 2}, {target: ./x, env: f}]
writes: [{ddict: f, keys: [1]}]
name: {g: [f]}
""",
    "import_args: [f, g]\ntype: process\nexecutables: [{target: ls, args: [f], cwd: f}]",
]


@pytest.mark.slow
@pytest.mark.parametrize("base", SMALL, ids=["function", "job", "process"])
def test_both_say_the_same_of_whatever_is_changed(base: str) -> None:
    seen = set()
    for changed in files_like(yaml.safe_load(base)):
        text = json.dumps(changed)
        if text in seen:
            continue
        seen.add(text)
        why = refusal(text)
        if VALIDATOR.is_valid(changed):
            assert why is None or REASONS.search(why), (text, why)
        else:
            assert why is not None, text
    assert len(seen) > 300


# -- the example --------------------------------------------------------------------------


def test_the_commented_template_names_every_key() -> None:
    text = (EXAMPLES / "template.yml").read_text(encoding="utf-8")
    executable = SCHEMA["definitions"]["executable"]["properties"]
    for key in (*SCHEMA["properties"], *executable, "files", "ddict", "keys", "day", "hour"):
        assert f"{key}:" in text or f"`{key}`" in text or f" {key}, " in text, key


def test_the_commented_template_says_where_the_schema_is() -> None:
    first, *_ = (EXAMPLES / "template.yml").read_text(encoding="utf-8").splitlines()
    address = first.partition("$schema=")[2]
    assert json.loads((EXAMPLES / address).read_text(encoding="utf-8")) == SCHEMA

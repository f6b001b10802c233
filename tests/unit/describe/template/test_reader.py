"""PTD files are read whole or refused, with the line, what was found and what was expected."""

from __future__ import annotations

import math
import os
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from support.paths import EXAMPLES

from daskbatch import TemplateError
from daskbatch.describe.template.expressions import (
    CallExpression,
    Expression,
    Identifier,
    ListExpression,
    Literal,
)
from daskbatch.describe.template.model import EnvMap, KeyAccess, Template
from daskbatch.describe.template.model import FileAccess as PathItem
from daskbatch.describe.template.reader import parse_template, read_template
from daskbatch.describe.template.yaml_nodes import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    YamlMap,
    read_nodes,
)
from daskbatch.describe.template.yaml_scalars import resolve

#: The start of most files in this module.
HEAD = """\
import_args: [f, base_dir]
import_kwargs: {env: new_env}
args: [matrix, i]
kwargs: {limit: seconds}
type: function
"""
BODY = "executables: [{target: f, args: [matrix, i]}]\n"


def parse(text: str) -> Template:
    return parse_template(text.encode(), "my.yml")


def value(written: str) -> Expression:
    """Read a value, as an argument."""
    (executable,) = parse(HEAD + f"executables: [{{target: f, args: [{written}]}}]").executables
    (found,) = executable.args
    return found


def refusal(text: str | bytes) -> str:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    with pytest.raises(TemplateError) as caught:
        parse_template(data, "my.yml")
    return str(caught.value)


# -- what is read -------------------------------------------------------------------------


def test_the_documents_example() -> None:
    template = read_template(str(EXAMPLES / "seeds" / "gpu_matmul_ptd.yml"), "ptd.yml")
    assert template.type == "function"
    assert [each.name for each in template.import_args] == ["gpu_matmul", "base_dir", "get_file"]
    assert [each.name for each in template.args] == ["matrix", "i"]
    assert template.import_kwargs == template.kwargs == ()
    (executable,) = template.executables
    assert executable.target == Identifier(28, "gpu_matmul")
    assert executable.args == (Identifier(30, "matrix"), Identifier(31, "i"))
    arguments = (Identifier(36, "base_dir"), Identifier(37, "i"), Literal(38, 0))
    assert template.reads == (PathItem(35, CallExpression(35, "get_file", arguments)),)
    assert template.writes[0].line == 42
    assert template.name == Literal(47, "gpu_matmul_task")
    assert template.timeout == (
        ("day", Literal(50, 0)),
        ("hour", Literal(51, 0)),
        ("min", Literal(52, 0)),
        ("sec", Literal(53, 30)),
    )
    assert template.uses() == {
        "gpu_matmul": 28,
        "matrix": 30,
        "i": 31,
        "get_file": 35,
        "base_dir": 36,
    }


def test_all_that_a_file_can_hold() -> None:
    template = parse(
        """
import_args: [mpi_job, next_key, some_env]
import_kwargs:
  directory: base_dir
  made: {next_key: [base_dir, [1, base_dir]]}
args: [store, i]
kwargs: {limit: seconds}
type: job
executables:
  - target: mpi_job
    nprocs: i
    args: [i, [base_dir, {next_key: [{next_key: [i]}]}]]
    kwargs: {store: store, 'any text': 1}
    cwd: base_dir
    env: some_env
  - target: ./job
    num_procs: 4
    env: {A: text, B: base_dir, C: {next_key: []}}
reads:
  - ddict: store
    keys: [i, "text", 5, {next_key: [i]}]
  - files: [a.txt, [base_dir, b.txt], base_dir, {next_key: [i]}]
  - ddict: store
writes:
  - ddict: {next_key: [store]}
    keys: [null, true]
name: {next_key: [i]}
timeout: {min: 1.5, sec: seconds, hour: {next_key: [i]}}
"""
    )
    made = template.import_kwargs[1]
    assert (made.name, made.keyword) == ("made", "made")
    assert made.default == CallExpression(
        5,
        "next_key",
        (Identifier(5, "base_dir"), ListExpression(5, (Literal(5, 1), Identifier(5, "base_dir")))),
    )
    assert (template.import_kwargs[0].name, template.import_kwargs[0].keyword) == (
        "base_dir",
        "directory",
    )
    first, second = template.executables
    assert first.num_procs == Identifier(11, "i")
    assert [keyword for keyword, _ in first.kwargs] == ["store", "any text"]
    assert (first.cwd, first.env) == (Identifier(14, "base_dir"), Identifier(15, "some_env"))
    assert (second.target, second.num_procs) == (Literal(16, "./job"), Literal(17, 4))
    assert isinstance(second.env, EnvMap)
    assert dict(second.env.entries)["B"] == Identifier(18, "base_dir")
    assert len(template.reads) == 6
    assert isinstance(template.reads[0], KeyAccess)
    assert len(template.reads[0].keys) == 4
    assert template.reads[2] == PathItem(
        22, ListExpression(22, (Identifier(22, "base_dir"), Literal(22, "b.txt")))
    )
    assert template.reads[5] == KeyAccess(23, Identifier(23, "store"), ())
    assert set(template.uses()) == {
        *("mpi_job", "next_key", "some_env", "base_dir", "store", "i", "seconds")
    }


def test_a_template_never_changes() -> None:
    template = parse(HEAD + BODY)
    with pytest.raises(FrozenInstanceError):
        template.type = "job"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(template)) == template
    assert hash(template) == hash(parse(HEAD + BODY))


def test_a_key_with_nothing_behind_it_is_as_one_left_out() -> None:
    blank = """
import_args: [f]
import_kwargs:
args: null
kwargs:
type: function
executables:
  - target: f
    args:
    kwargs:
    cwd:
    env:
reads:
writes:
name:
timeout:
"""
    with_it = parse(blank)
    without = parse("import_args: [f]\ntype: function\nexecutables:\n  - target: f")
    assert with_it.executables[0].args == without.executables[0].args == ()
    assert with_it.name is without.name is None
    assert with_it.timeout == without.timeout == with_it.reads == ()


def test_json_is_yaml() -> None:
    template = parse(
        '{"import_args": ["f"], "type": "function",\n"executables": [{"target": "f", "args": []}]}'
    )
    assert template.executables[0].target == Identifier(2, "f")


def test_a_mark_of_the_byte_order_is_no_matter() -> None:
    assert parse_template(b"\xef\xbb\xbf" + (HEAD + BODY).encode(), "x") == parse_template(
        (HEAD + BODY).encode(), "x"
    )


def test_lines_end_as_windows_has_them() -> None:
    template = parse((HEAD + BODY).replace("\n", "\r\n"))
    assert template.executables[0].line == 6


# -- values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("0x1F", 31),
        ("9" * 99, int("9" * 99)),
        ("1.5", 1.5),
        ("-1.", -1.0),
        (".5", 0.5),
        ("1.5e+3", 1500.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("NULL", None),
        ("y", "y"),
        ("n", "n"),
        ("word", "word"),
        ("two words", "two words"),
        ("-n", "-n"),
        ("--flag=1", "--flag=1"),
        ("a:b", "a:b"),
        ("host:8080", "host:8080"),
        ("99:99", "99:99"),
        ("1.2.3", "1.2.3"),
        ("/dev/null", "/dev/null"),
        ("~/file", "~/file"),
        ("5s", "5s"),
        ('"010"', "010"),
        ("'on'", "on"),
        ('"1e3"', "1e3"),
        ('""', ""),
        ("größe", "größe"),
    ],
)
def test_literals(written: str, meant: object) -> None:
    found = value(written)
    assert isinstance(found, Literal)
    assert found.value == meant
    assert type(found.value) is type(meant)


def test_not_a_number_is_one() -> None:
    found = value(".nan")
    assert isinstance(found, Literal)
    assert isinstance(found.value, float)
    assert math.isnan(found.value)


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("yes", "true or false"),
        ("No", "true or false"),
        ("ON", "true or false"),
        ("off", "true or false"),
        ("010", "octal"),
        ("-007", "octal"),
        ("08", "a number"),
        ("0o17", "a number"),
        ("0b11", "a number"),
        ("1_000", "a number"),
        ("1e3", "1.0e+3"),
        ("1.5e3", "1.0e+3"),
        ("-.5", "a number"),
        ("1:30", "base of 60"),
        ("12:30:45.5", "base of 60"),
        ("2020-01-01", "a date"),
        ("2001-12-14t21:59:43.10-05:00", "a date"),
        ("~", "home directory"),
        ("=", "something special"),
        ("<<", "merges"),
        ("1.0e+999", "too large"),
        ("9" * 101, "101 characters"),
    ],
)
def test_what_readers_of_yaml_do_not_agree_on_is_refused(written: str, advice: str) -> None:
    text = HEAD + f"executables:\n  - target: f\n    args:\n      - {written}\n"
    said = refusal(text)
    assert said.startswith("my.yml:9: ")
    assert advice in said
    assert "quote" in said or "write" in said
    with pytest.raises(ValueError, match="write|quote"):
        resolve(written)
    assert value(f'"{written}"') == Literal(6, written)


def test_a_name_is_a_name_however_it_is_written() -> None:
    for written in ("matrix", "'matrix'", '"matrix"', '"\\x6datrix"'):
        assert value(written) == Identifier(6, "matrix")
    assert value("matrix2") == Literal(6, "matrix2")
    assert value("a matrix") == Literal(6, "a matrix")


def test_names_may_need_quotes() -> None:
    template = parse(
        "import_args: [f]\nargs: ['on', y]\ntype: function\n"
        "executables: [{target: f, args: ['on', y]}]"
    )
    assert template.executables[0].args == (Identifier(4, "on"), Identifier(4, "y"))


#: Two spellings that look the same: the accent is part of its letter, or follows it.
CAFE, DECOMPOSED = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"


@pytest.mark.parametrize("declared", [CAFE, DECOMPOSED])
@pytest.mark.parametrize("used", [CAFE, DECOMPOSED])
def test_a_name_is_a_name_however_its_accents_are_written(declared: str, used: str) -> None:
    template = parse(
        f"import_args: [{declared}]\n"
        f"import_kwargs: {{k{declared}: l, m{declared}: {{{used}: []}}}}\n"
        f"kwargs: {{{declared}: i}}\ntype: function\n"
        f"executables: [{{target: {used}, args: [{used}, {{{used}: [m{used}]}}],\n"
        f"  kwargs: {{{used}: i}}, env: {{{used}: []}}}}]"
    )
    assert [each.name for each in template.import_args] == [CAFE]
    assert [each.keyword for each in template.import_kwargs] == [f"k{CAFE}", f"m{CAFE}"]
    assert [each.keyword for each in template.kwargs] == [CAFE]
    (executable,) = template.executables
    assert executable.target == Identifier(5, CAFE)
    assert executable.args == (
        Identifier(5, CAFE),
        CallExpression(5, CAFE, (Identifier(5, f"m{CAFE}"),)),
    )
    assert executable.kwargs == ((CAFE, Identifier(6, "i")),)
    assert executable.env == CallExpression(6, CAFE, ())


def test_a_text_keeps_its_accents_as_they_are_written() -> None:
    for written in (CAFE, DECOMPOSED):
        assert value(written) == Literal(6, written)
    (executable,) = parse(
        HEAD + f"executables: [{{target: f, env: {{{DECOMPOSED}: x}}}}]"
    ).executables
    assert executable.env == EnvMap(6, ((DECOMPOSED, Literal(6, "x")),))


# -- what is refused ----------------------------------------------------------------------

WRONG = [
    # the whole
    ("- a", 1, "a template is a list: expected a map"),
    ("word", 1, "a template is 'word': expected a map"),
    ("", 1, "is empty"),
    ("# only a comment", 1, "is empty"),
    ("null", 1, "a template is nothing"),
    (HEAD + BODY + "nam: x", 7, "unknown key 'nam' in a template: expected 'import_args', "),
    (HEAD + BODY + "nam: x", 7, "; did you mean 'name'?"),
    (HEAD + BODY + "5: x", 7, "5 is not a key: expected a text"),
    (HEAD + BODY + "on: x", 7, "'on' is true or false"),
    (HEAD + BODY + "? [a]\n: x", 7, "a list is not a key"),
    (HEAD + BODY + "name: a\nname: b", 8, "key 'name' is there already, in line 7"),
    (HEAD + BODY + "--- \nname: x", 7, "a second document begins"),
    (HEAD + BODY + "name: &x a", 7, "found the anchor '&x'"),
    (HEAD + BODY + "name: *x", 7, "found the alias '*x'"),
    (HEAD + BODY + "name: !!str a", 7, "found the tag 'tag:yaml.org,2002:str'"),
    (HEAD + BODY + "name: !mine a", 7, "found the tag '!mine'"),
    (HEAD + BODY + "reads: !!seq []", 7, "found the tag"),
    (HEAD + BODY + "reads: &a []", 7, "found the anchor '&a'"),
    (HEAD + BODY + "timeout:\n  <<: {sec: 1}", 8, "'<<' merges maps"),
    (HEAD + BODY + "name: [", 7, "is not valid YAML: "),
    (HEAD + BODY + "\tname: x", 7, "is not valid YAML: "),
    (HEAD + BODY + 'name: "\\UFFFFFFFF"', 7, "is not valid YAML: "),
    (HEAD + BODY + 'name: "\\0"', 7, "a character that is not allowed in a text"),
    (HEAD + BODY + 'name: "\\uD800"', 7, "a character that is not allowed in a text"),
    (HEAD + BODY + "name: a\0b", 7, "character U+0000"),
    (HEAD + BODY + "name: a\x07b", 7, "character U+0007"),
    # declarations
    ("args: a\n" + BODY, 1, "args is 'a': expected a list of names"),
    ("args: {a: b}\n" + BODY, 1, "args is a map: expected a list"),
    ("args: [a, {f: [a]}]\n" + BODY, 1, "args holds a map: expected a name"),
    ("args: [a, 5]\n" + BODY, 1, "args holds 5: expected a name"),
    ("args:\n  - a\n  -\n" + BODY, 3, "args holds nothing: expected a name"),
    ("args: [a-b]\n" + BODY, 1, "args holds 'a-b': expected a name of letters, digits and _"),
    ("args: [a,\n a]\n" + BODY, 2, "'a' is declared already, in args in line 1"),
    (HEAD.replace("matrix", "base_dir") + BODY, 3, "already, in import_args in line 1"),
    ("args: [a]\nkwargs: {k: a}\n" + BODY, 2, "already, in args in line 1"),
    ("kwargs: {k: a,\n l: a}\n" + BODY, 2, "already, in kwargs in line 1"),
    ("kwargs: [a]\n" + BODY, 1, "kwargs is a list: expected a map of keywords to names"),
    ("kwargs: {k: }\n" + BODY, 1, "kwargs holds nothing: expected a name"),
    ("kwargs: {k: {f: [a]}}\n" + BODY, 1, "kwargs holds a map: expected a name"),
    ("kwargs: {a b: c}\n" + BODY, 1, "'a b' in kwargs is not a keyword"),
    ("kwargs: {class: c}\n" + BODY, 1, "'class' in kwargs is not a keyword"),
    ("import_kwargs: {ptd_file: c}\n" + BODY, 1, "'ptd_file' in import_kwargs is one of"),
    ("args: [a]\nkwargs:\n  k: b\n  a: c\n" + BODY, 4, "'a' in kwargs is a name in args, in l"),
    ("import_kwargs: {k: [c]}\n" + BODY, 1, "or a call {function: [arguments]}"),
    ("import_kwargs: {k: {f: [a]}}\n" + BODY, 1, "'f' is declared nowhere"),
    ("import_kwargs: {k: {f: [a]}}\nargs: [f]\n" + BODY, 1, "'f' cannot be used yet"),
    ("import_args: [f]\nimport_kwargs: {k: {f: [[a]]}}\nargs: [a]\n", 2, "'a' cannot be used yet"),
    ("import_args: [f]\nimport_kwargs:\n  k: {f: [b]}\n  l: b\n", 3, "'b' cannot be used yet"),
    ("import_args: [f]\nimport_kwargs:\n  k: {f: [k]}\n", 3, "'k' cannot be used yet"),
    (f"args: [{CAFE},\n {DECOMPOSED}]\n" + BODY, 2, f"{CAFE!r} is declared already, in args"),
    (
        f"kwargs:\n  {CAFE}: a\n  {DECOMPOSED}: b\n" + BODY,
        3,
        f"{CAFE!r} in kwargs is there already",
    ),
    (
        f"args: [{CAFE}]\nkwargs: {{{DECOMPOSED}: b}}\n" + BODY,
        2,
        f"{CAFE!r} in kwargs is a name in",
    ),
    (
        "kwargs: {\N{FULLWIDTH LATIN SMALL LETTER I}f: c}\n" + BODY,
        1,
        "'if' in kwargs is not a keyword",
    ),
    # type
    ("args: [a]\n" + BODY, 1, "there is no 'type': expected 'function', 'process' or 'job'"),
    ("type: Function\n" + BODY, 1, "type is 'Function': expected 'function', "),
    ("type: Function\n" + BODY, 1, "did you mean 'function'?"),
    ("type: [job]\n" + BODY, 1, "type is a list"),
    ("type:\n" + BODY, 1, "there is no 'type'"),
    ("type: 5\n" + BODY, 1, "type is 5"),
    # executables
    ("args: [a]\ntype: process", 1, "there are no 'executables': expected a list of maps"),
    (HEAD + "executables: f", 6, "executables is 'f': expected a list"),
    (HEAD + "executables: []", 6, "executables is empty"),
    (HEAD + "executables: [f]", 6, "an executable of a function is 'f': expected a map"),
    (HEAD + "executables: [{args: [i]}]", 6, "an executable lacks its 'target'"),
    (HEAD + "executables: [{target: }]", 6, "an executable lacks its 'target'"),
    (HEAD + "executables:\n- target: f\n- target: f", 8, "a second executable: expected one"),
    (HEAD + "executables:\n- target: f\n  arg: [i]", 8, "did you mean 'args'?"),
    (HEAD + "executables:\n- target: f\n  num_procs: 2", 8, "unknown key 'num_procs' in an"),
    ("type: process\nexecutables:\n- target: ls\n  kwargs: {a: 1}", 4, "unknown key 'kwargs'"),
    (HEAD + "executables: [{target: g}]", 6, "target 'g' is declared nowhere: expected the name"),
    (HEAD + "executables: [{target: base_dri}]", 6, "did you mean 'base_dir'?"),
    (HEAD + "executables: [{target: 5}]", 6, "target is 5: expected the name"),
    (HEAD + "executables: [{target: [f]}]", 6, "target is a list: expected the name"),
    ("type: process\nexecutables: [{target: 5}]", 2, "target is 5: expected a text, quoted"),
    ("type: process\nexecutables: [{target: ''}]", 2, "target is '': expected a text, a"),
    (HEAD + "executables: [{target: f, args: i}]", 6, "args is 'i': expected a list of values"),
    (HEAD + "executables: [{target: f, kwargs: [i]}]", 6, "kwargs is a list: expected a map"),
    (HEAD + "executables: [{target: f, kwargs: {a: }}]", 6, "a value is missing: write null"),
    (
        HEAD + f"executables: [{{target: f, kwargs: {{{CAFE}: i,\n {DECOMPOSED}: i}}}}]",
        7,
        f"{CAFE!r} is in kwargs already",
    ),
    (HEAD + "executables:\n- target: f\n  args:\n  - i\n  -\n", 10, "a value is missing"),
    (HEAD + "executables: [{target: f, cwd: 5}]", 6, "cwd is 5: expected a text, quoted"),
    (HEAD + "executables: [{target: f, cwd: [a]}]", 6, "cwd is a list"),
    (HEAD + "executables: [{target: f, env: [a]}]", 6, "env is a list: expected a map of texts"),
    (HEAD + "executables: [{target: f, env: nev_env}]", 6, "did you mean 'new_env'?"),
    (HEAD + "executables: [{target: f, env: {A: 4}}]", 6, "A in env is 4: expected a text, quoted"),
    (HEAD + "executables: [{target: f, env: {A=B: a}}]", 6, "'A=B' cannot be the name"),
    (HEAD + "executables: [{target: f, env: {g: [a]}}]", 6, "g in env is a list"),
    # calls
    (HEAD + "executables: [{target: f, args: [{g: [i]}]}]", 6, "'g' is declared nowhere: a map is"),
    (HEAD + "executables: [{target: f, args: [{f: i}]}]", 6, "has 'i' for its arguments: expected"),
    (HEAD + "executables: [{target: f, args: [{f: }]}]", 6, "has nothing for its arguments"),
    (HEAD + "executables: [{target: f, args: [{}]}]", 6, "a map of 0 keys: a map is a call"),
    (HEAD + "executables: [{target: f, args: [{a: 1, b: 2}]}]", 6, "a dict must come as an arg"),
    (HEAD + "executables: [{target: f, args: [{f: [{f: 5}]}]}]", 6, "has 5 for its arguments"),
    # accesses
    (
        HEAD + BODY + "reads: {files: [a]}",
        7,
        "reads is a map: expected a list of maps with 'files'",
    ),
    (HEAD + BODY + "reads: [a]", 7, "an item of reads is 'a': expected a map"),
    (HEAD + BODY + "reads: [{}]", 7, "an item of reads has nothing: expected 'files', or"),
    (HEAD + BODY + "reads: [{file: [a]}]", 7, "did you mean 'files'?"),
    (HEAD + BODY + "reads: [{files: a}]", 7, "files is 'a': expected a list of paths"),
    (HEAD + BODY + "reads: [{files: []}]", 7, "files is empty"),
    (HEAD + BODY + "reads: [{files: [5]}]", 7, "an item of files is 5: expected a text, quoted"),
    (HEAD + BODY + "reads: [{files: [[a]]}]", 7, "a list of 1 among files: expected a path, or"),
    (HEAD + BODY + "reads: [{files: [[a, [b, c]]]}]", 7, "a path is a list"),
    (HEAD + BODY + "reads: [{keys: [a]}]", 7, "an item of reads has 'keys': expected"),
    (HEAD + BODY + "reads: [{files: [a], keys: [a]}]", 7, "has 'files' and 'keys'"),
    (HEAD + BODY + "writes: [{files: [a], ddict: i}]", 7, "an item of writes has 'files' and"),
    (HEAD + BODY + "reads: [{ddict: d, keys: [a]}]", 7, "ddict 'd' is declared nowhere: expected"),
    (HEAD + BODY + "reads: [{ddict: 5, keys: [a]}]", 7, "ddict is 5: expected the name"),
    (HEAD + BODY + "reads: [{ddict: i, keys: a}]", 7, "keys is 'a': expected a list of keys"),
    (HEAD + BODY + "reads: [{ddict: i, keys: []}]", 7, "keys is empty"),
    (HEAD + BODY + "reads: [{ddict: i, keys: [[a]]}]", 7, "a list among keys"),
    # name, timeout
    (HEAD + BODY + "name: 5", 7, "name is 5: expected a text, quoted"),
    (HEAD + BODY + "name: []", 7, "name is a list: expected a text, a declared name or a call"),
    (HEAD + BODY + "timeout: 30", 7, "timeout is 30: expected a map such as {min: 1, sec: 30}"),
    (HEAD + BODY + "timeout: {seconds: 3}", 7, "unknown key 'seconds' in timeout: expected 'day'"),
    (HEAD + BODY + "timeout: {sec: -1}", 7, "sec in timeout is -1: expected a number from 0"),
    (HEAD + BODY + "timeout: {sec: .nan}", 7, "sec in timeout is nan"),
    (HEAD + BODY + "timeout: {sec: .inf}", 7, "sec in timeout is inf"),
    (HEAD + BODY + "timeout: {sec: true}", 7, "sec in timeout is True"),
    (HEAD + BODY + "timeout: {sec: '5'}", 7, "sec in timeout is '5'"),
    (HEAD + BODY + "timeout: {sec: secnds}", 7, "but 'seconds' is: quote it"),
    (HEAD + BODY + "timeout: {sec: 0, min: 0.0}", 7, "timeout adds up to 0"),
    (HEAD + BODY + "timeout: {}", 7, "timeout adds up to 0"),
]


@pytest.mark.parametrize(("text", "line", "fragment"), WRONG, ids=[each[2] for each in WRONG])
def test_what_is_wrong_is_told_with_its_line(text: str, line: int, fragment: str) -> None:
    said = refusal(text)
    assert said.startswith(f"my.yml:{line}: "), said
    assert fragment in said


JOB = "args: [i]\ntype: job\nexecutables: [{target: ls, %s}]"


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "true", "'2'", "[2]", "null_", ".inf"])
def test_num_procs_is_a_whole_number(number: str) -> None:
    said = refusal(JOB % f"num_procs: {number}")
    assert "my.yml:3: num_procs is " in said
    assert "expected a whole number from 1, a declared name or a call" in said


def test_num_procs_has_two_names_and_one_value() -> None:
    assert parse(JOB % "nprocs: 2") == parse(JOB % "num_procs: 2")
    assert "num_procs and nprocs are the same" in refusal(JOB % "num_procs: 2, nprocs: 2")


@pytest.mark.parametrize("written", ["matrx", "martix", "matrixx", "Matrix", "base_dri", "basedir"])
def test_a_mistyped_name_is_no_text(written: str) -> None:
    said = refusal(HEAD + f"executables: [{{target: f, args: [{written}]}}]")
    assert "is declared nowhere, but" in said
    assert "quote it" in said
    assert value(f"'{written}'") == Literal(6, written)


@pytest.mark.parametrize("written", ["matrix1", "mat", "matrices", "j", "base", "x-matrix"])
def test_a_text_may_resemble_a_name(written: str) -> None:
    assert value(written) == Literal(6, written)


def test_executables_and_short_words_may_be_close_to_names() -> None:
    text = "args: [port, sorts]\ntype: process\nexecutables: [{target: sorte, args: [sort]}]"
    (executable,) = parse(text).executables
    assert (executable.target, executable.args) == (Literal(3, "sorte"), (Literal(3, "sort"),))


def test_the_name_of_a_task_may_be_close_to_another() -> None:
    assert parse(HEAD + BODY + "name: matrixx").name == Literal(7, "matrixx")


# -- limits -------------------------------------------------------------------------------


def test_a_file_is_no_place_for_data() -> None:
    assert "is larger than 64 KiB" in refusal("#" * (MAX_BYTES + 1))
    assert "is empty" in refusal("#" * MAX_BYTES)
    assert f"holds more than {MAX_NODES} values" in refusal("- a\n" * (MAX_NODES + 1))
    names = ", ".join(f"a{n}" for n in range(101))
    assert "'a100' is one too many" in refusal(f"args: [{names}]\n" + BODY)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_depth_is_limited(opening: str) -> None:
    said = refusal(opening * 10_000)
    assert f"my.yml:1: is nested more than {MAX_DEPTH} deep" in said


def test_what_is_as_deep_as_it_may_be() -> None:
    depth = MAX_DEPTH - 4
    assert isinstance(value("[" * depth + "]" * depth), ListExpression)


# -- files --------------------------------------------------------------------------------


def refused_file(path: Path | str) -> str:
    with pytest.raises(TemplateError) as caught:
        read_template(str(path), "my.yml")
    return str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "my.yml: there is no such file" in refused_file(tmp_path / "none.yml")
    assert "my.yml: is a directory: expected a template" in refused_file(tmp_path)
    assert "my.yml: cannot be read: " in refused_file("a\0b")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait, since no process writes to it
    assert "my.yml: is not a regular file" in refused_file(tmp_path / "pipe")
    assert "my.yml: is not a regular file" in refused_file("/dev/zero")
    (tmp_path / "file").touch()
    assert "my.yml: cannot be read: Not a directory" in refused_file(tmp_path / "file" / "x")


def test_a_job_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    text = JOB % "num_procs: 2"
    path.write_text(text)
    assert read_template(str(path), "my.yml") == parse(text)
    assert parse(text).type == "job"


def test_the_types_that_are_supported_are_told_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text("type: procss\n" + BODY)
    assert refused_file(path) == (
        "my.yml:1: type is 'procss': expected 'function', 'process' or 'job'; "
        "did you mean 'process'?"
    )


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    for data, line in ((b"a: 1\nb: \xff", 2), ("a: 1".encode("utf-16"), 1)):
        path.write_bytes(data)
        assert f"my.yml:{line}: byte 0xff is not UTF-8" in refused_file(path)


def test_no_character_of_another_kind_gets_in() -> None:
    assert "byte 0xed is not UTF-8" in refusal("name: \ud800")


def test_keys_keep_their_order_and_lines() -> None:
    node = read_nodes(b"b: 1\na: 2\n", "x")
    assert isinstance(node, YamlMap)
    assert [(key, line) for key, line, _ in node.entries] == [("b", 1), ("a", 2)]

"""Five thousand files with mistakes: each soon gives a template or a `TemplateError`.

Time is the CPU time of this thread, and the limit is one that only a hang reaches. With the
environment variable FUZZ_PARTS=20 there are ten thousand.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import EXAMPLES
from support.waiting import HANG_SECONDS

from daskbatch import CommunicationDomain, CommunicationObject, SpecError, TemplateError
from daskbatch.describe.access import Mode, make_access
from daskbatch.describe.spec import make_options
from daskbatch.describe.template.binding import BoundTemplate
from daskbatch.describe.template.model import Template
from daskbatch.describe.template.reader import parse_template

#: How many files each part has, and how many parts there are.
FILES, PARTS = 500, int(os.environ.get("FUZZ_PARTS", "10"))
SEED = 20_261_121

JOB = b"""\
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
    kwargs: {store: store}
    cwd: base_dir
    env: some_env
  - target: ./job
    num_procs: 4
    env: {A: text, B: base_dir}
reads:
  - ddict: store
    keys: [i, "text", 5, {next_key: [i]}]
  - files: [a.txt, [base_dir, b.txt], {next_key: [i]}]
writes:
  - ddict: store
name: a job
timeout: {min: 1.5, sec: seconds}
"""

#: Pieces that are difficult for parsers.
TOKENS = [
    *(b"[", b"]", b"{", b"}", b"- ", b"? ", b": ", b",", b"&a ", b"*a", b"!!str ", b"!x ", b"| "),
    *(b"> ", b"'", b'"', b"\\", b"#", b"%YAML 1.1\n", b"---\n", b"...\n", b"<<: ", b"=", b"~"),
    *(b"null", b"on", b"010", b"1:30", b"1e3", b".inf", b".nan", b"0x", b"2020-01-01", b"-1"),
    *(b"\t", b"\r\n", b"\0", b"\x07", b"\x85", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\n\n"),
    *(
        b'"\\UFFFFFFFF"',
        b'"\\uD800"',
        b'"\\0"',
        b"9" * 5000,
        b"[" * 5000,
        b"{a: " * 500,
        b"@",
        b"`",
    ),
    *(b"!<" + b"x" * 100, b"%" + b"9" * 5000, b"&" + b"a" * 2000, b"- " * 200, b"\xef\xbb\xbf"),
    *(b"target: ", b"args: ", b"keys: ", b"files: ", b"type: ", b"executables: ", b"  ", b"    "),
]


# -- mutations ----------------------------------------------------------------------------


def compact(data: bytes) -> bytes:
    """Remove comments: they do not matter, and take time to read."""
    whole = yaml.safe_load(data)
    return yaml.safe_dump(whole, sort_keys=False, default_flow_style=None).encode()


def change_bytes(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(changed) + 1)
        kind = dice.randrange(4)
        if kind == 3:
            changed[at : at + 1] = bytes([dice.choice(b"abcijk019 .")])
        elif kind == 0:
            changed[at : at + 1] = bytes([dice.randrange(256)])
        elif kind == 1:
            changed[at:at] = bytes([dice.randrange(32, 127)])
        else:
            del changed[at : at + dice.randint(1, 8)]
    return bytes(changed)


def change_lines(data: bytes, dice: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    for _ in range(dice.randint(1, 2)):
        at = dice.randrange(len(lines) + 1)
        other = dice.choice(lines) if lines else b"a\n"
        kind = dice.randrange(5)
        if kind == 0:
            lines[at : at + 1] = []
        elif kind == 1:
            lines.insert(at, other)
        elif kind == 2:
            lines.insert(at, b" " * dice.randint(0, 6) + other.lstrip())
        elif kind == 3:
            lines[at : at + 1] = [line[dice.randint(0, 4) :] for line in lines[at : at + 1]]
        else:
            dice.shuffle(lines)
    return b"".join(lines)


def change_tokens(data: bytes, dice: random.Random) -> bytes:
    changed = data
    for _ in range(dice.randint(1, 2)):
        at = dice.randrange(len(changed) + 1)
        token = dice.choice(TOKENS)
        changed = changed[:at] + token + changed[at + dice.choice((0, 0, 1, len(token))) :]
    return changed


#: Keys that are names elsewhere in the file, or not names at all.
WORDS = ["i", "store", "mpi_job", "class", "A=B", "", "i\N{COMBINING ACUTE ACCENT}", "\xed"]


def change_structure(data: bytes, dice: random.Random) -> bytes:
    """Replace, delete, duplicate and rename parts of the content."""
    whole = yaml.safe_load(data)
    for _ in range(dice.randint(1, 2)):
        parts: list[tuple[Any, Any]] = []
        _collect(whole, parts)
        owner, key = dice.choice(parts)
        odd = dice.choice(
            [None, True, -1, 0, 1.5, "i", "f", "", "on", "1e3", [], {}, ["i"], {"f": ["i"]}, [[]]]
        )
        kind = dice.randrange(7)
        if kind == 0:
            owner[key] = copy.deepcopy(odd)
        elif kind > 4:
            owner, key = dice.choice([each for each in parts if isinstance(each[0], dict)])
            owner[dice.choice(WORDS)] = owner.pop(key)
        elif kind == 1:
            del owner[key]
        elif kind == 2:
            owner[key] = [owner[key]]
        elif kind == 3 and isinstance(owner, dict):
            owner[f"{key}s"] = copy.deepcopy(owner[key])
        else:
            other = dice.choice(parts)[0]
            # Not a copy: the object occurs twice, or contains itself, so YAML gives it an anchor.
            owner[key] = other if dice.random() < 0.1 else copy.deepcopy(other)
        if not isinstance(whole, (dict, list)) or not whole:
            break
    return yaml.safe_dump(
        whole, sort_keys=False, default_flow_style=dice.choice((None, True))
    ).encode()


def _collect(node: Any, parts: list[tuple[Any, Any]], seen: frozenset[int] = frozenset()) -> None:
    if id(node) in seen:
        return
    inside = seen | {id(node)}
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        parts.append((node, key))
        if isinstance(node[key], (dict, list)):
            _collect(node[key], parts, inside)


KINDS: list[Callable[[bytes, random.Random], bytes]] = [
    change_bytes,
    change_lines,
    change_tokens,
    change_structure,
]


def mutated(dice: random.Random) -> list[bytes]:
    whole = [
        (EXAMPLES / name).read_bytes() for name in ("template.yml", "seeds/gpu_matmul_ptd.yml")
    ]
    bases = [*map(compact, whole), JOB, compact(JOB)]
    files = []
    for number in range(FILES):
        # One in a hundred is the example with all its comments.
        base = dice.choice(whole if number % 100 == 0 else bases)
        data = dice.choice(KINDS)(base, dice)
        if dice.random() < 0.3:
            data = dice.choice(KINDS[:3])(data, dice)
        files.append(data)
    return files


# -- reading ------------------------------------------------------------------------------


def anything(*_: object) -> str:
    return "x"


#: Arguments that fit where valid files use their names.
FITTING: dict[str, Any] = {
    **dict.fromkeys(("mpi_job", "next_key", "get_file", "gpu_matmul"), anything),
    **dict.fromkeys(("count_words", "file_name"), anything),
    **dict.fromkeys(("i", "seconds", "limit"), 2),
    "some_env": {"A": "b"},
    "store": CommunicationObject(CommunicationDomain(), "store"),
}

#: Arguments that do not fit in most places.
ODD_ARGUMENTS: list[Any] = [
    *(anything, "", "a\0b", Path("p"), ("d", "f"), ["d", ""], b"x", None, object(), [10**5_000]),
    *(0, 2, 1.5, -1, True, math.nan, math.inf, 10**400, 10**5_000, Decimal("sNaN")),
    *({"A": "b"}, {"A=": "b"}, {"": ""}, {"A": 1}, {1: "A"}, {"A": "\ud800"}, {"A": Path("p")}),
]


def fill(template: Template, dice: random.Random) -> bool:
    """Fill a changed template with arguments that may not fit; return whether they did."""

    odd = dice.choice((0.0, 0.1, 0.5))

    def given(name: str) -> Any:
        return dice.choice(ODD_ARGUMENTS) if dice.random() < odd else FITTING.get(name, "x")

    try:
        form = BoundTemplate(
            template,
            [given(each.name) for each in template.import_args],
            {str(each.keyword): given(each.name) for each in template.import_kwargs},
        )
        assert form.signature is not None
        filled = form.fill(
            tuple([given(each.name) for each in template.args]),
            {str(each.keyword): given(each.name) for each in template.kwargs},
        )
        for use in (*filled.reads, *filled.writes):
            make_access(Mode.READ, use.object, use.channels, "/")
        for each in filled.executables:
            make_options(timeout=filled.timeout, env=each.env)
    except SpecError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_template_or_a_template_error_and_nothing_else(part: int) -> None:
    dice = random.Random(SEED + part)
    outcomes: Counter[str] = Counter()
    filled = 0
    slowest = 0.0
    for data in mutated(dice):
        began = time.thread_time()
        try:
            template = parse_template(data, "my.yml")
        except TemplateError as error:
            outcomes["TemplateError" if str(error).startswith("my.yml:") else str(error)] += 1
        else:
            assert type(template) is Template
            outcomes["Template"] += 1
            filled += sum(fill(template, dice) for _ in range(3))
        slowest = max(slowest, time.thread_time() - began)
    assert outcomes.keys() == {"Template", "TemplateError"}
    assert outcomes.total() == FILES
    assert slowest < HANG_SECONDS
    # The mutations are useful: some files are still valid, most are not.
    assert min(outcomes["Template"], outcomes["TemplateError"], filled) > FILES / 20, outcomes


@pytest.mark.parametrize(
    "data",
    [
        b"- a\n" * 16_000,
        b"[" + b"a," * 32_000,
        b"[" + b"[]," * 21_000,
        b"[" + b"{a: b}," * 9_000,
        b"{" + b"a: b, " * 10_000,
        b"a" * 65_000,
        b'"' + b"\\n" * 32_000 + b'"',
        b"a\n" * 32_000,
        b"#\n" * 32_000,
        b"a:\n" * 21_000,
        b"---\n" * 16_000,
        b"%A\n" * 21_000,
        b"\n" * 65_000,
        b"? " * 32_000,
        b"!" * 65_000,
        b"&" + b"a" * 65_000,
        b"'" * 65_000,
        b"args: [" + b", ".join(b"abcd%d" % n for n in range(100)) + b"]\nimport_args: ["
        b"f]\ntype: function\nexecutables: [{target: f, args: ["
        + b", ".join(b"bbcd%s" % (b"xyz"[n % 3 : n % 3 + 1] * (1 + n % 4)) for n in range(4_500))
        + b"]}]",
        b"kwargs: {" + b"a" * 30_000 + b": b}\ntype: " + b"c" * 30_000,
        b"args: [a" + b"\xcc\x81" * 16_000 + b"\xcc\x96" * 16_000 + b"]",  # accents, out of order
        b"args: [" + b"a" * 30_000 + b"]\nreads: [{ddict: " + b"b" * 30_000 + b"}]",
    ],
    ids=lambda data: data[:12].decode().replace("\n", " "),
)
def test_large_files_take_no_time(data: bytes) -> None:
    assert len(data) <= 64 * 1024
    began = time.thread_time()
    with contextlib.suppress(TemplateError):
        parse_template(data, "my.yml")
    assert time.thread_time() - began < HANG_SECONDS

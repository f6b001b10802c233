"""Texts are plain English: the patterns that CONTRIBUTING.md rules out are not there.

A reader from any country should understand a sentence at the first reading. The patterns below
are those that this project once used often; they do not replace a reader.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import PROJECT

#: What is not written, by what to write instead.
AVOIDED = {
    "name the person or thing: 'the caller', 'a task that waits'": (
        r"(?<![\w,] )(?<!\w)[Ww]ho(ever)? (asks?|gets?|waits?|has|is told|looks?|puts?|says?|"
        r"needs?|gives?|takes?|makes?|wants?|starts?|reads?|writes?|joins?|calls?|uses?|does|"
        r"knows?|means?)\b"
    ),
    "say 'close' or 'end'": r"\b[Bb]e no more\b|\bis no more\b|\bare no more\b",
    "say 'which', 'the n-th', 'how many'": r"\bhow manieth\b",
    "say 'no longer'": r"\b(is|are|was|were) not? \w+ any ?more\b",
    "say 'record' or 'receive'": r"\b[Tt]akes? in (that|what|a|the)\b",
    "say 'is not available'": r"\b(is|are|was|be) (not )?to be had\b",
    "say 'N' or 'that many'": r"\b[Ss]o (many|much) (shards|tasks|bytes|seconds|calls|members)\b",
    "say 'in the queue' or 'waits'": r"\bin line\b",
    "say 'release'": r"\b[Ll]ets? go of\b",
}

SOURCES = [
    *sorted((PROJECT / "daskbatch").rglob("*.py")),
    *sorted((PROJECT / "examples").rglob("*.py")),
    *sorted((PROJECT / "benchmarks").rglob("*.py")),
]
PAGES = sorted(
    [*(PROJECT / "docs").glob("*.md"), *PROJECT.glob("*.md"), *(PROJECT / "examples").glob("*.md")]
)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a file's comments and texts with their first lines; of a page, its paragraphs."""
    if path.suffix == ".md":
        prose = re.sub(
            r"```.*?```",
            lambda code: "\n" * code[0].count("\n"),
            path.read_text("utf-8"),
            flags=re.DOTALL,
        )
        line = 1
        for paragraph in prose.split("\n\n"):
            yield line, paragraph
            line += paragraph.count("\n") + 2
        return
    comment: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.COMMENT:
            first = first or token.start[0]
            comment.append(token.string.lstrip("#: "))
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            if comment:
                yield first, " ".join(comment)
                comment, first = [], 0
            if token.type == tokenize.STRING:
                yield token.start[0], token.string


@pytest.mark.parametrize(
    "path", [*SOURCES, *PAGES], ids=lambda path: path.relative_to(PROJECT).as_posix()
)
def test_plain_english(path: Path) -> None:
    found = []
    for line, text in texts(path):
        folded = re.sub(r"\s+", " ", text)
        for advice, pattern in AVOIDED.items():
            found += [f"line {line}: {m[0]!r}: {advice}" for m in re.finditer(pattern, folded)]
    assert not found, "\n".join(found)

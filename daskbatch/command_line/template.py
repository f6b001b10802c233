"""The command ``template``: says what a template takes, or what is wrong with it.

Needs no cluster, and calls nothing that the template names.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from daskbatch.describe.template.expressions import (
    CallExpression,
    Expression,
    Identifier,
    ListExpression,
)
from daskbatch.describe.template.model import FileAccess, KeyAccess, Parameter, Template
from daskbatch.describe.template.reader import read_template
from daskbatch.errors import TemplateError


def add_parser(commands: Any) -> None:
    """Add the command to those of the command line."""
    parser = commands.add_parser(
        "template",
        help="say what a PTD file takes, or what is wrong with it",
        description="Reads a template, a PTD file, and prints what batch.import_func and each call "
        "of the function that it returns take. If the file is wrong, it prints the line and what "
        "was expected, and the exit code is 1.",
    )
    parser.add_argument("file", metavar="FILE", help="the PTD file")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print what the template takes; return 0, or 1 if the file is wrong."""
    try:
        template = read_template(os.path.abspath(options.file), options.file)
    except (TemplateError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for line in describe(template):
        print(line)
    return 0


def describe(template: Template) -> Iterator[str]:
    """Yield the lines that say what a template takes.

    Parameters
    ----------
    template : Template
        The content of the file.
    """
    yield f"{template.file}: a template of tasks of type {template.type}"
    imports = _signature(template.import_args, template.import_kwargs)
    first = ", ".join(filter(None, [repr(template.file), imports]))
    yield f"  make = batch.import_func({first})"
    yield f"  task = make({_signature(template.args, template.kwargs)})"
    if template.name is not None:
        yield f"name: {_text(template.name)}"
    for executable in template.executables:
        words = [_text(each) for each in executable.args]
        words += [f"{name}={_text(value)}" for name, value in executable.kwargs]
        ranks = executable.num_procs
        times = "" if ranks is None else f", on {_text(ranks)} ranks"
        yield f"runs: {_text(executable.target)}({', '.join(words)}){times}"
    for verb, accesses in (("reads", template.reads), ("writes", template.writes)):
        for access in accesses:
            yield f"{verb}: {_access(access)}"
    if template.timeout:
        parts = (f"{_text(value)} {unit}" for unit, value in template.timeout)
        yield f"timeout: {' '.join(parts)}"


def _signature(positional: Sequence[Parameter], keywords: Sequence[Parameter]) -> str:
    words = [each.name for each in positional]
    for each in keywords:
        default = "..." if each.default is None else _text(each.default)
        words.append(f"{each.keyword or each.name}={default}")
    return ", ".join(words)


def _text(expression: Expression) -> str:
    """Write an expression as a call would be in Python."""
    if isinstance(expression, Identifier):
        return expression.name
    if isinstance(expression, ListExpression):
        return f"[{', '.join(map(_text, expression.items))}]"
    if isinstance(expression, CallExpression):
        return f"{expression.function}({', '.join(map(_text, expression.args))})"
    return repr(expression.value)


def _access(access: FileAccess | KeyAccess) -> str:
    if isinstance(access, FileAccess):
        return f"file {_text(access.item)}"
    keys = ", ".join(map(_text, access.keys)) or "all keys"
    return f"{_text(access.object)}: {keys}"

"""Checks whether the files that a task declares are there, before and after it.

Pure but for looking at the file system. The thread of a block calls it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from time import monotonic

from daskbatch.errors import MissingInput, MissingOutput
from daskbatch.worker.execution.block import DeclaredFiles
from daskbatch.worker.execution.near_names import suggestion

#: A message names at most this many paths.
_MAX_NAMED_PATHS = 5

#: The two kinds of a `MissingReport`.
INPUT, OUTPUT = "input", "output"


def missing_inputs(declared: DeclaredFiles) -> tuple[str, ...]:
    """Return the declared inputs of a task that are not there."""
    return _missing(declared.reads)


def missing_outputs(declared: DeclaredFiles) -> tuple[str, ...]:
    """Return the declared outputs of a task that are not there and that it was not to remove."""
    if declared.removes:
        return _missing(path for path in declared.writes if path not in declared.removes)
    return _missing(declared.writes)


def missing_error(kind: str, label: str, paths: tuple[str, ...]) -> MissingInput | MissingOutput:
    """Make the error of a strict Batch.

    Parameters
    ----------
    kind : str
        `INPUT` or `OUTPUT`.
    label : str
        What messages call the task.
    paths : tuple of str
        The paths that are not there.
    """
    named = ", ".join(paths[:_MAX_NAMED_PATHS])
    if len(paths) > _MAX_NAMED_PATHS:
        named += f" and {len(paths) - _MAX_NAMED_PATHS} more"
    if kind == INPUT:
        return MissingInput(
            f"task {label} declares to read {named}, which was not there when it was to begin"
            f"{suggestion(paths[0])}"
        )
    return MissingOutput(
        f"task {label} declares to write {named}, which was not there when it had succeeded; if it "
        "is to remove a file, declare that with options(removes=[batch.write(...)])"
    )


def _missing(paths: Iterable[str]) -> tuple[str, ...]:
    global _symbolic
    missing = []
    for path in paths:
        first = _first_directory(path)
        symbolic, until = _symbolic
        if (first == symbolic and monotonic() < until) or _exists(path):
            continue
        if not _exists(first):
            _symbolic = first, monotonic() + _SYMBOLIC_SECONDS
        elif not _is_listed(path):
            missing.append(path)
    return tuple(missing)


#: The last first directory that did not exist, and until when that is believed.
_symbolic = "", 0.0

#: Names of files that never exist are often used again and again. Each look would also let another
#: thread of Python run, which takes longer than the look.
_SYMBOLIC_SECONDS = 0.1


def is_symbolic(path: str) -> bool:
    """Return whether a path can only be a name: not even its first directory exists.

    A program may declare names of files that never exist, to order its tasks. And a file system of
    the workers need not be there where the program runs.
    """
    return not _exists(_first_directory(path))


def _first_directory(path: str) -> str:
    end = path.find(os.sep, 1)
    return path[:end] if end > 0 else os.sep


def _exists(path: str) -> bool:
    # What `os.path.lexists` does, in half of its time: no exception is made.
    try:
        return os.access(path, os.F_OK, follow_symlinks=False)
    except ValueError:
        return False
    except NotImplementedError:  # another system than Linux
        return os.path.lexists(path)


def _is_listed(path: str) -> bool:
    """Return whether the directory of a path lists it.

    On a network file system, a host may remember for some seconds that a file was not there.
    """
    try:
        return os.path.basename(path) in os.listdir(os.path.dirname(path))
    except OSError:
        return False

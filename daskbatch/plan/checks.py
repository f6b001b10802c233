"""Finds declarations of a program that do not fit together, or not to the files that are there.

The caller says which paths exist: nothing here reads the file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from daskbatch.describe.access import FILES, Channel
from daskbatch.plan.program import PlannedTask

#: What makes a name look like a pattern.
_PATTERN_CHARACTERS = frozenset("*?[")

#: A path is compared with at most this many others, to find one that was meant.
_MAX_COMPARED_PATHS = 2000

#: Only for this many missing paths it is found out what was meant.
_MAX_HINTS = 10

#: How much two names may differ of which one is a typo.
_MAX_TYPO_CHARACTERS, _MIN_SIMILARITY = 3, 0.75


class Finding(NamedTuple):
    """A declaration that is probably wrong.

    Parameters
    ----------
    position : int
        The position of the task in the program.
    text : str
        What is wrong with it; continues the task's name.
    missing : str
        The path that is missing, if nothing in the program says what was meant.
    """

    position: int
    text: str
    missing: str = ""


def check_program(
    tasks: Sequence[PlannedTask],
    find_missing: Callable[[Iterable[str]], set[str]],
    is_written_before: Callable[[str], bool],
) -> list[Finding]:
    """Return the declarations that are probably wrong, in program order.

    Parameters
    ----------
    tasks : sequence of PlannedTask
        The tasks of the program.
    find_missing : callable
        Returns those of some paths at which there is neither a file nor a directory.
    is_written_before : callable
        Returns whether a task of another program, which comes before, writes a path.
    """
    accesses = [
        (position, _paths(task.reads), _paths(task.writes))
        for position, task in enumerate(tasks)
        if task.reads or task.writes
    ]
    if not accesses:
        return []
    findings = _replaced_writes(tasks, accesses)
    unwritten = [
        (position, path)
        for position, path in _reads_of_unwritten(accesses)
        if not is_written_before(path)
    ]
    missing = find_missing({path for _, path in unwritten})
    found = [each for each in unwritten if each[1] in missing]
    written = dict.fromkeys(path for _, _, writes in accesses for path in writes) if found else {}
    for number, (position, path) in enumerate(found):
        findings.append(_missing(position, path, written, number < _MAX_HINTS))
    return sorted(findings)


_Accesses = list[tuple[int, list[str], list[str]]]


def _paths(channels: Sequence[Channel]) -> list[str]:
    # Many tasks have one channel, or none.
    return [str(each.key) for each in channels if each.object.name is FILES.name]


def _reads_of_unwritten(accesses: _Accesses) -> Iterator[tuple[int, str]]:
    """Yield each read of a path that no earlier task writes, as a whole or in part."""
    written: set[str] = set()
    above: set[str] = set()
    for position, reads, writes in accesses:
        for path in reads:
            if path in written or path in above:
                continue
            if not any(each in written for each in _directories(path)):
                yield position, path
        for path in writes:
            if path not in written:
                written.add(path)
                for each in _directories(path):
                    if each in above:
                        break
                    above.add(each)


def _replaced_writes(tasks: Sequence[PlannedTask], accesses: _Accesses) -> list[Finding]:
    """Find the writes that the next write of the same path replaces before any read."""
    findings = []
    #: By path, the task whose write no other task has read so far.
    unread: dict[str, int] = {}
    read_directories = {path for _, reads, _ in accesses for path in reads}
    #: By directory that some task reads, the paths below it that were written since.
    below: dict[str, list[str]] = {}
    for position, reads, writes in accesses:
        for path in reads:
            unread.pop(path, None)
            for each in _directories(path):
                unread.pop(each, None)
            for each in below.pop(path, ()):
                unread.pop(each, None)
        for path in writes:
            before = unread.get(path)
            if before is not None:
                findings.append(
                    Finding(
                        before,
                        f"writes {path}, and {tasks[position].name!r} writes it again before any "
                        "task reads it",
                    )
                )
            unread[path] = position
            for each in _directories(path):
                if each in read_directories:
                    below.setdefault(each, []).append(path)
    return findings


def _missing(position: int, path: str, written: Iterable[str], hint: bool) -> Finding:
    text = f"reads {path}, which is not there, and which no task before it writes"
    if not _PATTERN_CHARACTERS.isdisjoint(path):
        text += "; it is taken as the name of one file, and not as a pattern"
        return Finding(position, text)
    if path in written:
        return Finding(position, f"{text}; a later task writes it")
    if not hint:
        return Finding(position, text)
    near = next((each for each in islice(written, _MAX_COMPARED_PATHS) if _is_near(path, each)), "")
    if near:
        return Finding(position, f"{text}; did you mean {near}?")
    return Finding(position, text, path)


def _is_near(path: str, other: str) -> bool:
    """Return whether two paths differ by little behind the directory that they share."""
    shared = len(os.path.commonpath([path, other]))
    one, another = path[shared:], other[shared:]
    if abs(len(one) - len(another)) > _MAX_TYPO_CHARACTERS:
        return False
    return SequenceMatcher(None, one, another, autojunk=False).ratio() >= _MIN_SIMILARITY


def _directories(path: str) -> tuple[str, ...]:
    """Return the directories above a path, from the inside out."""
    return _with_parents(path[: path.rfind(os.sep)] or os.sep) if len(path) > 1 else ()


@lru_cache(maxsize=4096)
def _with_parents(directory: str) -> tuple[str, ...]:
    """Return a directory and those above it; many files are in few directories."""
    return (directory, *_directories(directory))

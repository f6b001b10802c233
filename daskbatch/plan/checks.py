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
    written_before: Callable[[], Iterable[Channel]],
) -> list[Finding]:
    """Return the declarations that are probably wrong, in program order.

    Parameters
    ----------
    tasks : sequence of PlannedTask
        The tasks of the program.
    find_missing : callable
        Returns those of some paths at which there is neither a file nor a directory.
    written_before : callable
        Returns what tasks of other programs write that may run before this one. It is called only
        if something is missing.
    """
    read = _all_paths(task.reads for task in tasks)
    written = _all_paths(task.writes for task in tasks)
    if not read and not written:
        return []
    if _are_nested(read | written):
        accesses = _accesses(tasks)
        findings = _replaced_writes(tasks, accesses)
        unwritten = list(_reads_of_unwritten(accesses))
    else:
        findings, unwritten = _check_files(tasks)
    missing = find_missing({path for _, path in unwritten}) if unwritten else ()
    if missing:
        found = _not_covered([each for each in unwritten if each[1] in missing], written_before())
        in_order = dict.fromkeys(path for task in tasks for path in _paths(task.writes))
        for number, (position, path) in enumerate(found):
            findings.append(_missing(position, path, in_order, number < _MAX_HINTS))
    return sorted(findings)


_Accesses = list[tuple[int, list[str], list[str]]]


def _accesses(tasks: Sequence[PlannedTask]) -> _Accesses:
    return [
        (position, _paths(task.reads), _paths(task.writes))
        for position, task in enumerate(tasks)
        if task.reads or task.writes
    ]


def _paths(channels: Iterable[Channel]) -> list[str]:
    return [str(each.key) for each in channels if each.object.name is FILES.name]


# The next three functions see each task of each program. They make no object for each task: many
# of those would have Python's garbage collector look through all tasks, which takes longer.


def _all_paths(groups: Iterable[Sequence[Channel]]) -> set[str]:
    files = FILES.name
    # Tasks that are given one access object share a tuple.
    different = {id(channels): channels for channels in groups}.values()
    return {str(path) for channels in different for owner, path in channels if owner.name is files}


def _are_nested(paths: set[str]) -> bool:
    """Return whether one of some paths is a directory above another one."""
    above: set[str] = set()
    for directory in {path[: path.rfind(os.sep)] for path in paths}:
        above.update(_with_parents(directory or os.sep))
    above.discard(os.sep)
    return os.sep in paths or not paths.isdisjoint(above)


def _check_files(tasks: Sequence[PlannedTask]) -> tuple[list[Finding], list[tuple[int, str]]]:
    """Return what `_replaced_writes` and `_reads_of_unwritten` do, if no path is above another.

    That is the most frequent case, and takes a small part of the time.
    """
    findings: list[Finding] = []
    unwritten: list[tuple[int, str]] = []
    #: By path, the task that wrote it last, or -1 if a task has read it since.
    writers: dict[object, int] = {}
    files = FILES.name
    for position, task in enumerate(tasks):
        for owner, path in task.reads:
            if owner.name is not files:
                continue
            if path in writers:
                writers[path] = -1
            else:
                unwritten.append((position, str(path)))
        for owner, path in task.writes:
            if owner.name is files:
                before = writers.get(path, -1)
                if 0 <= before < position:  # a task may name a path twice
                    findings.append(_replaced(before, str(path), task))
                writers[path] = position
    return findings, unwritten


def _not_covered(
    reads: Sequence[tuple[int, str]], channels: Iterable[Channel]
) -> list[tuple[int, str]]:
    """Return the reads of paths that no channel overlaps."""
    written = set(_paths(channels))
    if not written:
        return list(reads)
    above = {each for path in written for each in _directories(path)}
    return [
        (position, path)
        for position, path in reads
        if path not in written and path not in above and written.isdisjoint(_directories(path))
    ]


def _replaced(position: int, path: str, by: PlannedTask) -> Finding:
    text = f"writes {path}, and {by.name!r} writes it again before any task reads it"
    return Finding(position, text)


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
            if before is not None and before < position:
                findings.append(_replaced(before, path, tasks[position]))
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
    matcher = SequenceMatcher(None, one, another, autojunk=False)
    # The first two are upper bounds, and much quicker.
    return (
        matcher.real_quick_ratio() >= _MIN_SIMILARITY
        and matcher.quick_ratio() >= _MIN_SIMILARITY
        and matcher.ratio() >= _MIN_SIMILARITY
    )


def _directories(path: str) -> tuple[str, ...]:
    """Return the directories above a path, from the inside out."""
    return _with_parents(path[: path.rfind(os.sep)] or os.sep) if len(path) > 1 else ()


@lru_cache(maxsize=4096)
def _with_parents(directory: str) -> tuple[str, ...]:
    """Return a directory and those above it; many files are in few directories."""
    return (directory, *_directories(directory))

"""Adds a hint to an error that a declaration of another task explains, or a similar file name.

A task that reads a file which another task of its program writes, and does not declare that, may
run before the other task. The hint is a note of the exception: its type and its arguments stay.
Any thread may call `add_hint`.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator
from typing import Any

from daskbatch.describe.access import FILES
from daskbatch.dispatch.task_record import Group, TaskRecord
from daskbatch.errors import ProcessFailed
from daskbatch.serialization.safe_text import guarded, has_type
from daskbatch.worker.execution.near_names import suggestion

#: Only so much of what an executable has written to stderr is searched for paths, from its end.
_MAX_SEARCHED_CHARACTERS = 10_000

#: What may stand beside a path in a message.
_BETWEEN_PATHS = re.compile(r"[\s'\"‘’“”:,;()\[\]<>]+")

#: For each written path: the position in the program of the task that writes it first, and that
#: task.
Writers = dict[str, tuple[int, "weakref.ref[TaskRecord]"]]


def add_hint(error: BaseException, record: TaskRecord) -> None:
    """Add a note to the error of a task, if another task of its program writes the missing file,
    or if there is a file of a similar name.

    Parameters
    ----------
    error : BaseException
        What the task has raised: only for a `FileNotFoundError` and a `ProcessFailed` there may
        be a hint.
    record : TaskRecord
        The task.
    """
    if not has_type(error, FileNotFoundError, ProcessFailed):
        return

    def find() -> str:
        paths = list(_paths_in(error))
        group = record.group
        if group is not None and group.members:
            for path in paths:
                if hint := _hint(path, record, group):
                    return hint
        if has_type(error, ProcessFailed):  # not each of its words is a path
            return ""
        for path in paths:
            directory = record.options.cwd or ("" if group is None else group.directory)
            if near := suggestion(os.path.join(directory, path)):
                return f"{path} is not there{near}"
        return ""

    hint = guarded(find, lambda _: "")
    if hint:
        error.add_note(hint)


def _hint(path: str, record: TaskRecord, group: Group) -> str:
    path = os.path.normpath(os.path.join(record.options.cwd or group.directory, path))
    if any(each in _declared(record) for each in _with_parents(path)):
        return ""
    writers = _writers(group)
    for each in _with_parents(path):
        if each not in writers:
            continue
        position, reference = writers[each]
        writer = reference()
        if writer is None or writer is record:
            return ""
        own = next((n for n, member in enumerate(group.members) if member() is record), -1)
        written = path if each == path else f"{each}, and so all that is below it as {path}"
        if position > own:
            return (
                f"task {writer.label}, which comes later in the program, writes {written}: put it "
                f"before task {record.label}, and add reads=[batch.read({path!r})]"
            )
        return (
            f"task {writer.label} of the same program writes {written}, and task {record.label} "
            f"does not declare to read it, so it need not wait: add reads=[batch.read({path!r})]"
        )
    return ""


def _paths_in(error: BaseException) -> Iterator[str]:
    """Yield what may be the path of the file that was missing."""
    if has_type(error, ProcessFailed):
        seen = set()
        for word in _BETWEEN_PATHS.split(error.stderr[-_MAX_SEARCHED_CHARACTERS:]):
            if word and word not in seen:
                seen.add(word)
                yield word
        return
    assert has_type(error, OSError)
    names: tuple[Any, Any] = error.filename, error.filename2
    for name in names:
        if isinstance(name, (str, bytes, os.PathLike)):
            yield os.fsdecode(name)


def _declared(record: TaskRecord) -> set[str]:
    return {str(each.key) for each in record.reads if each.object.name is FILES.name}


def _writers(group: Group) -> Writers:
    """Return which task of a program writes which path first; made once for each program."""
    if group.writers is None:
        found: Writers = {}
        for position, reference in enumerate(group.members):
            record = reference()
            for channel in () if record is None else record.writes:
                if channel.object.name is FILES.name:
                    found.setdefault(str(channel.key), (position, reference))
        group.writers = found
    return group.writers


def _with_parents(path: str) -> Iterator[str]:
    """Yield a path and the directories above it."""
    while True:
        yield path
        above = os.path.dirname(path)
        if above == path:
            return
        path = above

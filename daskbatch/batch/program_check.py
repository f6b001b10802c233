"""Checks what the tasks of a program declare, when it is compiled.

`check_declarations` looks at the file system of this process; any thread may call it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from daskbatch.batch.user_warnings import Notice, warn
from daskbatch.describe.access import Channel
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.dispatch.unfinished_records import UnfinishedRecords
from daskbatch.errors import GraphError, ProgramWarning, SpecError
from daskbatch.plan.checks import check_program
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.worker.execution.declared_files import is_symbolic
from daskbatch.worker.execution.near_names import suggestion

#: The number of findings that a warning names.
_MAX_NAMED_FINDINGS = 10

#: From this many paths in one directory on, the directory is listed.
_MIN_PATHS_TO_LIST = 16


def require_check(check: object) -> None:
    """Check that a ``check=`` of `Batch.compile` is one of those that exist."""
    if check not in ("warn", "error", None):
        raise SpecError(f'check= must be "warn", "error" or None, not {safe_repr(check)}')


def check_declarations(
    records: Sequence[TaskRecord], name: str, check: str | None, writers: UnfinishedRecords
) -> None:
    """Warn of declarations that are probably wrong.

    Parameters
    ----------
    records : sequence of TaskRecord
        The tasks of a program, in its order.
    name : str
        The name of the program.
    check : str, optional
        ``"warn"``, ``"error"``, or None for no check.
    writers : UnfinishedRecords
        The tasks of the same client that declare to write. Those of other programs may run before
        this one: the program decides when it starts them. If such a task has not run when a task
        of this program begins, the worker notices that.

    Raises
    ------
    GraphError
        The check is ``"error"``, and something is wrong.
    ProgramWarning
        A filter makes exceptions of warnings.
    """
    if check is None:
        return

    def written_before() -> list[Channel]:
        own = set(records)
        others = [each for each in writers.records() if each not in own]
        return [channel for record in others for channel in record.writes]

    findings = check_program(records, _find_missing, written_before)
    if not findings:
        return
    count = "1 declaration" if len(findings) == 1 else f"{len(findings)} declarations"
    lines = [f"{count} of the program {name!r} may be wrong:"]
    for position, text, missing in findings[:_MAX_NAMED_FINDINGS]:
        hint = suggestion(missing) if missing else ""
        lines.append(f"  {records[position].label} {text}{hint}")
    if len(findings) > _MAX_NAMED_FINDINGS:
        lines.append(f"  and {len(findings) - _MAX_NAMED_FINDINGS} more")
    lines.append('compile(..., check=None) switches this check off, check="error" makes it strict.')
    if check == "error":
        raise GraphError("\n".join(lines))
    warn(Notice(ProgramWarning, "\n".join(lines)))


def _find_missing(paths: Iterable[str]) -> set[str]:
    """Return the paths at which there is nothing."""
    by_directory: dict[str, list[str]] = {}
    for path in paths:
        by_directory.setdefault(path[: path.rfind(os.sep)] or os.sep, []).append(path)
    missing: set[str] = set()
    for directory, some in by_directory.items():
        if is_symbolic(some[0]):
            continue
        if len(some) < _MIN_PATHS_TO_LIST:
            missing.update(path for path in some if not os.path.lexists(path))
            continue
        try:
            names = set(os.listdir(directory))
        except PermissionError:
            missing.update(path for path in some if not os.path.lexists(path))
        except OSError:
            missing.update(some)
        else:
            missing.update([path for path in some if path[path.rfind(os.sep) + 1 :] not in names])
    return missing

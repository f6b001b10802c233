"""Describes the run of a parallel job of executables, and the parts that it consists of.

The records are immutable. Any number of threads may call the functions, which raise `SpecError`
for a value that is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from daskbatch.describe.spec import Call, checked_environment, is_task_or_handle, make_call
from daskbatch.errors import SpecError
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.worker.mpi.job import JobPart, run_job
from daskbatch.worker.mpi.rank_function import RankFunction


@dataclass(frozen=True, slots=True)
class ProcessTemplate:
    """The executable of one part of a parallel job that runs several executables.

    Parameters
    ----------
    target : str or Path
        The executable.
    args : sequence
        Its arguments. A task among them stands for its result, as text.
    cwd : str or Path, optional
        Its working directory; by default that of the job.
    env : mapping, optional
        Environment variables that are added to those of the job.

    Raises
    ------
    SpecError
        A parameter is of the wrong type.

    Notes
    -----
    It never changes, so several threads may use it, and several jobs.

    Examples
    --------
    >>> ProcessTemplate("./ocean", args=("--steps", 10)).target
    './ocean'
    """

    target: str | Path
    args: Sequence[Any] = ()
    cwd: str | Path | None = None
    env: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        require_executable(self.target)
        if isinstance(self.args, (str, bytes)) or not isinstance(self.args, Sequence):
            raise SpecError(f"args= must be a list of arguments, not {safe_repr(self.args)}")
        if self.cwd is not None and not isinstance(self.cwd, (str, os.PathLike)):
            raise SpecError(f"cwd= must be a path, not {safe_repr(self.cwd)}")
        checked_environment(self.env)


def require_executable(target: object) -> None:
    """Check that an executable of a job is a path that is not empty."""
    if not isinstance(target, (str, Path)) or not str(target):
        raise SpecError(
            f"cannot run {safe_repr(target)} on the ranks of a job: give an executable as str or "
            "Path, or a function, then its arguments; or a list of pairs "
            "(num_procs, ProcessTemplate) of executables"
        )


def count_ranks(num_procs: object) -> int:
    """Return a user's number of ranks as an `int`.

    Examples
    --------
    >>> count_ranks(4)
    4
    """
    if not isinstance(num_procs, Integral) or isinstance(num_procs, bool) or num_procs < 1:
        what = "is missing: it" if num_procs is None else f"is {safe_repr(num_procs)}: it"
        raise SpecError(f"num_procs= {what} must be a whole number from 1")
    return int(num_procs)


def split_parts(target: Sequence[Any], num_procs: object) -> list[tuple[int, ProcessTemplate]]:
    """Check the parts of a job of several executables.

    Parameters
    ----------
    target : sequence
        What the user gave: pairs of a number of ranks and a `ProcessTemplate`.
    num_procs : object
        The number of all ranks, if the user gave it.
    """
    parts = []
    for part in target:
        if not (isinstance(part, (tuple, list)) and len(part) == 2):
            raise SpecError(
                f"target= holds {safe_repr(part)}: give pairs (num_procs, ProcessTemplate)"
            )
        count, template = part
        if not isinstance(template, ProcessTemplate):
            raise SpecError(
                f"target= holds {safe_repr(template)}: give pairs (num_procs, ProcessTemplate)"
            )
        parts.append((count_ranks(count), template))
    if not parts:
        raise SpecError("target= is an empty list: give pairs (num_procs, ProcessTemplate)")
    total = sum(count for count, _ in parts)
    if num_procs is not None and count_ranks(num_procs) != total:
        raise SpecError(
            f"num_procs= is {safe_repr(num_procs)}, but the parts of target= have {total} ranks"
        )
    return parts


def job_call(
    parts: Sequence[tuple[int, ProcessTemplate]],
    *,
    cwd: str,
    env: Mapping[str, str],
    stdin: Any,
    check: bool,
    timeout: float | None,
    launcher: str,
    is_mpmd: bool,
) -> Call:
    """Describe the run of a job of executables; see `run_job`.

    Parameters
    ----------
    parts : sequence of (int, ProcessTemplate)
        The number of ranks of each executable. Their directories are absolute.
    cwd, env
        The directory of parts that have none, and the environment of all parts.
    stdin, check, timeout, launcher, is_mpmd
        See `run_job`.
    """
    if not (stdin is None or isinstance(stdin, (str, bytes, Path)) or is_task_or_handle(stdin)):
        raise SpecError(f"stdin= must be a text, bytes, a Path or a task, not {safe_repr(stdin)}")
    ready = [
        JobPart(
            count,
            [template.target, *template.args],
            cwd if template.cwd is None else os.fspath(template.cwd),
            {**env, **checked_environment(template.env)},
        )
        for count, template in parts
    ]
    arguments = {
        "parts": ready,
        "stdin": stdin,
        "check": bool(check),
        "timeout": timeout,
        "launcher": launcher,
        "is_mpmd": is_mpmd,
    }
    family = tuple((count, os.fspath(template.target)) for count, template in parts)
    return make_call(run_job, family, ((), arguments))


def is_job(call: Call | None) -> bool:
    """Return whether a call runs on the ranks of a parallel job."""
    return call is not None and (
        call.function is run_job or isinstance(call.function, RankFunction)
    )

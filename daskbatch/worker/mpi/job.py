"""The run of a parallel job of executables as a task: its arguments, its result and its errors.

Any number of threads may run jobs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daskbatch.errors import ProcessFailed
from daskbatch.worker.execution import capture
from daskbatch.worker.execution.allocation import Allocation
from daskbatch.worker.execution.executable import RunningExecutable, as_text, open_stdin
from daskbatch.worker.execution.measures import Usage
from daskbatch.worker.execution.task_context import current_context

# Clients, workers and children import this module, and start faster without what runs a job.
if TYPE_CHECKING:
    from daskbatch.worker.mpi.job_run import JobRun, RankEnd
    from daskbatch.worker.mpi.launcher import Part
    from daskbatch.worker.mpi.rank_output import RankOutput

#: How much of each stream is kept where no capture is active.
_DEFAULT_OUTPUT_BYTES = 1 << 20

#: How much of the launcher's own output a message contains at most.
_MAX_LAUNCHER_CHARACTERS = 2000

_NOT_FOUND = 127


class JobPart(NamedTuple):
    """Ranks of a job that run the same executable.

    Parameters
    ----------
    num_procs : int
        The number of ranks.
    command : sequence
        The executable and its arguments; those that are not text are converted to it.
    cwd : str
        The working directory.
    env : mapping
        Variables that are added to the environment.
    """

    num_procs: int
    command: Sequence[Any]
    cwd: str
    env: Mapping[str, str]


def run_job(
    parts: Sequence[JobPart],
    stdin: Any,
    check: bool,
    timeout: float | None,
    launcher: str,
    is_mpmd: bool,
    directory: str = "",
    measured: Callable[[Usage], None] | None = None,
) -> int | list[int]:
    """Run a job and wait for its end.

    A launcher beside this interpreter is preferred for executables that are there, too, such as
    the interpreter itself: they use the MPI of its environment.

    Parameters
    ----------
    parts : sequence of JobPart
        What the ranks run, in the order of the ranks.
    stdin : str, bytes, Path or None
        The input of the first rank, as in `execute`.
    check : bool
        Whether an exit code other than 0 is an error.
    timeout : float, optional
        After this time all ranks are ended. Seconds.
    launcher : str
        The setting ``daskbatch.mpi-launcher``.
    is_mpmd : bool
        Whether the result is a list with the exit code of each part.
    directory : str
        Where files of the job may be made on this host.
    measured : callable, optional
        Called with what the ranks have used, when they have ended.

    Returns
    -------
    int or list of int
        The exit code of the lowest rank that has failed by itself, or 0.

    Raises
    ------
    ProcessFailed
        A rank has failed, and `check` is set; or there is no launcher, or it has failed.
    TaskTimeout
        The job ran for longer than `timeout`.
    ValueError
        An argument contains a zero byte: no process can receive it.
    OSError
        A working directory, or the file that `stdin` names, cannot be used.
    ProcessStopped
        Another thread has stopped the job.
    """
    from daskbatch.worker.mpi.job_run import JobRun
    from daskbatch.worker.mpi.launcher import Part, find_launcher
    from daskbatch.worker.mpi.rank_output import RankOutput

    ready = [
        Part(part.num_procs, [as_text(each) for each in part.command], part.cwd, part.env)
        for part in parts
    ]
    for part in ready:
        _require_no_zero(part)
    size = sum(part.num_procs for part in ready)
    sink = capture.current_capture.get() or capture.Capture(_DEFAULT_OUTPUT_BYTES)
    output = RankOutput(sink, size)
    found = find_launcher(launcher, any(_is_beside_python(part.command[0]) for part in ready))
    job = JobRun(ready, _allocation(size), found, output, directory)
    with open_stdin(stdin, ready[0].cwd or "") as source, RunningExecutable(job.marker) as running:
        try:
            job.run(running, None if isinstance(source, int) else source, timeout)
        finally:
            output.settle()
            if measured is not None and running.pid:
                measured(job.usage())
    return _result(job, output, check, is_mpmd)


def _is_beside_python(executable: str) -> bool:
    """Return whether an executable belongs to the environment of this interpreter."""
    return os.path.dirname(executable) == os.path.dirname(sys.executable)


def _require_no_zero(part: Part) -> None:
    for text in (*part.command, part.cwd or ""):
        if "\0" in text:
            raise ValueError(
                f"embedded null byte in {text!r}: {part.command[0]!r} cannot receive it"
            )


def _allocation(size: int) -> Allocation:
    """Return where the ranks run: what has been granted, else this host."""
    from daskbatch.worker.mpi.job_run import LOOPBACK

    context = current_context()
    granted = None if context is None else context.allocation
    return Allocation(((LOOPBACK, size),)) if granted is None else granted


# -- the result -----------------------------------------------------------------------------


def _result(job: JobRun, output: RankOutput, check: bool, is_mpmd: bool) -> int | list[int]:
    """Return the exit codes of the parts, or raise why the job has failed."""
    rank = failed_rank(job.ends)
    if rank is None or not job.ends[rank].by_itself:
        if job.started < job.size or job.lost:
            raise _launch_error(job, output)
        if job.launcher_code:
            # A rank has called MPI_Abort, and the launcher has ended all ranks.
            return _aborted(job, output, check, is_mpmd)
    if check and rank is not None:
        part, code = job.part_of(rank), job.ends[rank].code
        raise ProcessFailed(
            f"rank {rank} of {job.size}{job.place_of(rank)}: {part.command[0]} "
            f"{describe_code(code)}{output.last_errors()}",
            returncode=code,
            command=list(part.command),
            stderr=output.errors(),
        )
    codes = []
    begin = 0
    for part in job.parts:
        ranks = range(begin, begin + part.num_procs)
        begin += part.num_procs
        lowest = failed_rank({each: job.ends[each] for each in ranks if each in job.ends})
        lost = -signal.SIGKILL if any(each not in job.ends for each in ranks) else 0
        codes.append(lost if lowest is None else job.ends[lowest].code)
    return codes if is_mpmd else codes[0]


def _aborted(job: JobRun, output: RankOutput, check: bool, is_mpmd: bool) -> int | list[int]:
    code = job.launcher_code
    assert code
    if not check:
        return [code] * len(job.parts) if is_mpmd else code
    command = list(job.parts[0].command)
    raise ProcessFailed(
        f"{command[0]} was aborted: the launcher {job.command[0]} {describe_code(code)}, and has "
        f"ended all ranks{output.last_errors()}",
        returncode=code,
        command=command,
        stderr=output.errors(),
    )


def failed_rank(ends: Mapping[int, RankEnd]) -> int | None:
    """Return the lowest rank that has failed by itself, else the lowest one that was stopped.

    Examples
    --------
    >>> from daskbatch.worker.mpi.job_run import RankEnd
    >>> failed_rank({0: RankEnd(-15, by_itself=False), 1: RankEnd(0), 2: RankEnd(3), 3: RankEnd(4)})
    2
    """
    failed = [(not end.by_itself, rank) for rank, end in ends.items() if end.code]
    return min(failed)[1] if failed else None


def describe_code(code: int) -> str:
    """Return how an executable has ended, in words.

    Examples
    --------
    >>> describe_code(3), describe_code(-9)
    ('ended with exit code 3', 'was ended by SIGKILL')
    """
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with exit code {code}"


def _launch_error(job: JobRun, output: RankOutput) -> ProcessFailed:
    """Return why some ranks have no end, if no rank has failed by itself."""
    from daskbatch.worker.mpi.rank_output import describe_ranks

    code = job.launcher_code or _NOT_FOUND
    command = job.command
    if job.started == job.size:
        code = -signal.SIGKILL
        command = list(job.part_of(min(job.lost)).command)
        ranks = describe_ranks(sorted(job.lost))
        what = (
            f"{command[0]} lost rank {ranks} of {job.size}{job.place_of(min(job.lost))}: the "
            "process that supervises the rank was killed, or its host has failed"
        )
    elif job.launcher_code:
        what = f"the launcher {command[0]} {describe_code(code)}"
    else:
        what = f"the launcher {command[0]} has not started all ranks"
    if job.started < job.size:
        what += f", and has started {job.started} of {job.size} ranks"
    if said := job.launcher_output.text().strip()[-_MAX_LAUNCHER_CHARACTERS:]:
        what += f"\noutput of the launcher: {said}"
    return ProcessFailed(
        f"{what}{output.last_errors()}", returncode=code, command=command, stderr=output.errors()
    )

"""Runs a parallel job of a Python callable, in ranks that are idle or new.

Any number of threads may run jobs. Neither the callable nor its arguments, values and exceptions
are unpickled here: their modules may start MPI, which must not happen in a worker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter

from daskbatch.errors import TaskCrashed, TaskTimeout
from daskbatch.worker.execution import capture
from daskbatch.worker.execution.executable import RunningExecutable
from daskbatch.worker.execution.measures import Usage
from daskbatch.worker.execution.task_context import TaskContext
from daskbatch.worker.inproc_scheduler import address_for_children
from daskbatch.worker.mpi.rank_function import PackedCall, RankSettings, RankValue
from daskbatch.worker.mpi.rank_job import RankCrash, RankJob
from daskbatch.worker.mpi.rank_output import RankOutput
from daskbatch.worker.mpi.rank_pool import get_rank_pool
from daskbatch.worker.mpi.rank_set import JobStopped, RankSet, SetKey
from daskbatch.worker.mpi.request import make_request

#: The host of a job that has been granted no slots: this one.
_THIS_HOST = "localhost"

#: How much of each stream is kept where no capture is active.
_DEFAULT_OUTPUT_BYTES = 1 << 20


def run_callable(
    call: PackedCall,
    settings: RankSettings,
    *,
    topic: str,
    label: str,
    context: TaskContext | None,
    started: Callable[[float], None] = lambda seconds: None,
    measured: Callable[[Usage], None] = lambda usage: None,
    directory: str = "",
) -> list[RankValue]:
    """Run a callable on every rank; return the values of the ranks, in their order.

    Parameters
    ----------
    call : PackedCall
        The callable and its arguments.
    settings : RankSettings
        How the ranks are started and run.
    topic, label : str
        The client, and what messages call the task.
    context : TaskContext, optional
        The context of the task: its slots, and where they are.
    started : callable
        Called with the seconds that it took to start ranks, if none were idle.
    measured : callable
        Called with what the ranks have used, when the call has ended on all of them.
    directory : str
        Where files may be made that end with the worker; empty for temporary files.

    Raises
    ------
    PackedError
        A rank has raised an exception.
    TaskCrashed
        A rank has ended.
    TaskTimeout
        The call has run for longer than its timeout.
    ProcessFailed
        The ranks could not be started.
    ProcessStopped
        The job was stopped by another thread.
    """
    sink = capture.current_capture.get() or capture.Capture(_DEFAULT_OUTPUT_BYTES)
    output = RankOutput(sink, settings.num_procs)
    allocation = None if context is None else context.allocation
    hosts = ((_THIS_HOST, settings.num_procs),) if allocation is None else allocation.hosts
    key = SetKey(topic, hosts, settings.cores, settings.env, settings.launcher)
    pool = get_rank_pool()
    ranks = (None if settings.fresh else pool.take(key)) or RankSet(key)
    job = None
    try:
        with RunningExecutable(ranks.marker) as running:
            try:
                if not ranks.ranks:
                    began = perf_counter()
                    ranks.start(running.fileno(), directory)
                    started(perf_counter() - began)
                request, layout = make_request(
                    call,
                    topic,
                    label,
                    list(sys.path),
                    settings.cwd,
                    None if context is None else _fields_of(context),
                )
                job = RankJob(ranks, None if context is None else context.slot, output)
                values = job.run(request, layout, running.fileno(), settings.timeout)
                measured(job.usage())
                output.settle()
            except JobStopped:
                _end(ranks, job, output)  # leaving `running` raises ProcessStopped
    except BaseException as error:
        _end(ranks, job, output)
        if isinstance(error, RankCrash):
            raise TaskCrashed(
                f"task {label!r}: {error}{output.last_errors()}", exitcode=error.code
            ) from None
        if isinstance(error, TaskTimeout):
            error.args = (f"{error}{output.last_errors()}",)
        raise
    assert job is not None
    if settings.fresh or not job.may_be_reused:
        ranks.end_idle()
    else:
        if job.uses_mpi:
            ranks.expect_check(job.checked)
        pool.give_back(ranks, settings.idle_timeout)
    return [RankValue(value) for value in values]


def _fields_of(context: TaskContext) -> tuple[str, object, str, bytes | None, str]:
    scheduler = address_for_children(context.scheduler)
    return context.topic, context.key, scheduler, context.security, context.worker


def _end(ranks: RankSet, job: RankJob | None, output: RankOutput) -> None:
    """End the ranks of a job that has failed or was stopped, and keep what they have written."""
    if ranks.closed:
        return
    ranks.end(close=False)
    if job is not None:
        job.finish_output()
        output.settle()
    ranks.end()

"""Makes tasks of parallel jobs: of an executable, of several ones, or of a callable.

Any number of threads may call `make_job`. It raises what the functions of `factory` raise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from daskbatch import config
from daskbatch.batch.context import BatchContext
from daskbatch.batch.factory import TaskSettings, make_record
from daskbatch.batch.task import Task
from daskbatch.describe.gang import Gang
from daskbatch.describe.job_call import (
    ProcessTemplate,
    count_ranks,
    job_call,
    require_executable,
    split_parts,
)
from daskbatch.describe.spec import Call, Options, rank_call
from daskbatch.errors import SpecError
from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import callable_name
from daskbatch.worker.mpi.rank_function import RankSettings

#: What a job runs.
Target = str | Path | Callable[..., Any] | Sequence[tuple[int, ProcessTemplate]]


def make_job(
    context: BatchContext,
    target: Target,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    settings: TaskSettings,
    *,
    num_procs: int | None,
    stdin: Any = None,
    check: bool = True,
) -> Task:
    """Make a task of a parallel job; see `Batch.job`."""
    options = settings.options
    if callable(target):
        ranks = count_ranks(num_procs)
        initializer = context.initializer
        with pickling.within(None if initializer is None else initializer.namespace):
            call = _callable_job(context, target, args, kwargs, options, ranks, stdin, check)
        options = context.with_initializer(options)
        name = callable_name(target)
    else:
        if kwargs:
            raise SpecError(f"an executable takes no keyword arguments: {', '.join(kwargs)}")
        if isinstance(target, (list, tuple)):
            if args:
                raise SpecError(
                    "the arguments of a list of executables are in its ProcessTemplates"
                )
            parts = split_parts(target, num_procs)
        else:
            require_executable(target)
            assert isinstance(target, (str, Path))
            parts = [(count_ranks(num_procs), ProcessTemplate(target, args))]
        ranks = sum(count for count, _ in parts)
        call = job_call(
            [(count, _with_directory(context, template)) for count, template in parts],
            cwd=options.cwd or context.directory,
            env=dict(options.env),
            stdin=stdin,
            check=check,
            timeout=options.timeout,
            launcher=config.get("mpi-launcher"),
            is_mpmd=isinstance(target, (list, tuple)),
        )
        name = ":".join(os.path.basename(template.target) for _, template in parts)
    cores = 1 if options.gang is None else options.gang.cores
    # The ranks are processes apart, with the directory and the environment of the call.
    settings = settings._replace(
        options=replace(
            options, isolated=False, fresh=False, cwd=None, env=(), gang=Gang(ranks, cores)
        )
    )
    session = context.session
    record = make_record(context, session, call, settings.name or name, settings)
    return Task(context, record, session)


def _with_directory(context: BatchContext, template: ProcessTemplate) -> ProcessTemplate:
    if template.cwd is None:
        return template
    return replace(template, cwd=context.absolute(template.cwd))


def _callable_job(
    context: BatchContext,
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Options,
    num_procs: int,
    stdin: Any,
    check: bool,
) -> Call:
    if stdin is not None or not check:
        name = "check=" if stdin is None else "stdin="
        raise SpecError(f"{name} is for executables, and {callable_name(target)!r} is a function")
    ranks = RankSettings(
        num_procs=num_procs,
        cores=1 if options.gang is None else options.gang.cores,
        cwd=options.cwd or context.directory,
        env=options.env,
        timeout=options.timeout,
        fresh=options.fresh,
        launcher=config.get("mpi-launcher"),
        idle_timeout=config.get_seconds("rank-idle-timeout"),
    )
    return rank_call(target, args, kwargs, ranks)

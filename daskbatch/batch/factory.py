"""Makes tasks, and their records, from a function or an executable, its arguments and settings.

All functions may be called by several threads at once. They raise `SpecError` for a value of the
wrong type and `SubmitAfterCloseError` once the Batch has been closed; nothing is started here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from daskbatch.batch.context import BatchContext
from daskbatch.batch.task import Task
from daskbatch.cluster.session import Session
from daskbatch.describe.access import Access, Channel, Mode
from daskbatch.describe.spec import (
    DEFAULT_OPTIONS,
    Call,
    Options,
    function_call,
    make_options,
    process_call,
)
from daskbatch.describe.values import path_of, text_of
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import SpecError
from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import callable_name, safe_repr

#: What ``reads=`` and ``writes=`` accept.
Accesses = Access | Iterable[Access] | None


class TaskSettings(NamedTuple):
    """How tasks are to be run, apart from what they call.

    Parameters
    ----------
    options : Options
        The validated options.
    reads, writes : tuple of Channel
        What the tasks read and write.
    name : str, optional
        Their name; None for the name of the function or executable.
    removes : tuple of Channel
        Those of `writes` by which files are removed.
    """

    options: Options = DEFAULT_OPTIONS
    reads: tuple[Channel, ...] = ()
    writes: tuple[Channel, ...] = ()
    name: str | None = None
    removes: tuple[Channel, ...] = ()


#: The settings of a task for which the user sets nothing.
DEFAULT_SETTINGS = TaskSettings()


def make_settings(
    context: BatchContext,
    *,
    reads: Accesses = None,
    writes: Accesses = None,
    removes: Accesses = None,
    name: str | None = None,
    timeout: float | timedelta | None = None,
    retries: int = 0,
    resources: Mapping[str, float] | None = None,
    workers: str | Sequence[str] | None = None,
    priority: float = 0,
    isolation: str | None = None,
    cores: int | float | str | None = None,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    restartable: bool = False,
    walltime: float | timedelta | None = None,
) -> TaskSettings:
    """Validate the options of tasks; see `Batch.options`."""
    directory = path_of(cwd)
    if cwd is not None and directory is None:
        raise SpecError(f"cwd= must be a path, not {safe_repr(cwd)}")
    options = make_options(
        timeout=timeout,
        retries=retries,
        resources=resources,
        workers=workers,
        priority=priority,
        isolation=isolation,
        cores=cores,
        cwd=None if directory is None else context.absolute(directory),
        env=env,
        restartable=restartable,
        walltime=walltime,
    )
    name = require_name(name)
    removed = _channels(removes, Mode.WRITE, "removes")
    written = _channels(writes, Mode.WRITE) + removed
    return TaskSettings(options, _channels(reads, Mode.READ), written, name, removed)


def require_name(name: str | None) -> str | None:
    """Return a ``name=``, which must be a text that is not empty, or None."""
    if name is None:
        return None
    text = text_of(name)
    if not text:
        raise SpecError(f"name= must be a text, not {safe_repr(name)}")
    return text


def make_function(
    context: BatchContext,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    settings: TaskSettings = DEFAULT_SETTINGS,
) -> Task:
    """Make a task of a Python function; see `Batch.function`."""
    if len(args) > 1 and type(args[0]) is tuple and not kwargs:
        args, settings = _split_accesses(args, settings)
    initializer = context.initializer
    if initializer is None:
        call = function_call(target, args, kwargs)
    else:
        with pickling.within(initializer.namespace):
            call = function_call(target, args, kwargs)
        settings = settings._replace(options=context.with_initializer(settings.options))
    session = context.session
    name = settings.name or callable_name(target)
    return Task(context, make_record(context, session, call, name, settings), session)


def make_process(
    context: BatchContext,
    target: str | Path,
    args: tuple[Any, ...],
    settings: TaskSettings,
    *,
    stdin: Any = None,
    check: bool = True,
) -> Task:
    """Make a task of a serial executable; see `Batch.process`."""
    options = settings.options
    call = process_call(
        target,
        args,
        cwd=options.cwd or context.directory,
        env=dict(options.env),
        stdin=stdin,
        check=check,
        timeout=options.timeout,
    )
    # An executable always runs in its own process, with the directory and environment of the call.
    settings = settings._replace(
        options=replace(options, isolated=False, fresh=False, cwd=None, env=())
    )
    session = context.session
    name = settings.name or os.path.basename(target)
    return Task(context, make_record(context, session, call, name, settings), session)


def make_record(
    context: BatchContext, session: Session, call: Call, name: str, settings: TaskSettings
) -> TaskRecord:
    """Make the record of a task, with a number that no other task of its client has."""
    if session.closed:
        context.require_open()
    options, reads, writes, _, removes = settings
    if call.references:
        call = session.future_arguments.with_sources(call, session.client_id, repr(name))
    number = next(session.numbers)
    record = TaskRecord(session.client_id, number, name, call, options, reads, writes)
    if removes:
        record.removes = removes
    if writes:
        session.background.writers.add(record)
    return record


def _split_accesses(
    args: tuple[Any, ...], settings: TaskSettings
) -> tuple[tuple[Any, ...], TaskSettings]:
    """Recognize ``function(f, (a, b), [reads…], [writes…])``: a tuple, then lists of accesses."""
    inner, *lists = args
    if not any(
        isinstance(access, Access) for some in lists if type(some) is list for access in some
    ):
        return args, settings
    if len(lists) > 2 or not all(some is None or type(some) is list for some in lists):
        return args, settings  # `function_call` refuses it: an access cannot be an argument
    reads, writes = [*lists, None][:2]
    return inner, settings._replace(
        reads=settings.reads + _channels(reads, Mode.READ),
        writes=settings.writes + _channels(writes, Mode.WRITE),
    )


#: What most users give. To ask for the abstract types takes longer than all else here.
_USUAL = frozenset({Access, list, tuple})


def _channels(accesses: Accesses, mode: Mode, parameter: str = "") -> tuple[Channel, ...]:
    """Return the channels of what a user gave for ``reads=``, ``writes=`` or ``removes=``."""
    if accesses is None:
        return ()
    parameter = parameter or f"{mode.value}s"
    # A text and a mapping are iterable, too: without this check an empty dictionary would mean
    # no access.
    is_usual = type(accesses) in _USUAL
    single = not is_usual and isinstance(accesses, (str, bytes, os.PathLike, Mapping))
    if single or not (is_usual or isinstance(accesses, (Access, Iterable))):
        read = f"batch.{mode.value}"
        wanted = f"a list of what {read}(...) returns"
        if isinstance(accesses, (str, os.PathLike)):
            wanted = f"{parameter}={read}({str(accesses)!r})"
        if hasattr(accesses, "__batch_channels__"):
            wanted = f"{read}(d) or {read}(d, key)" if single else f"{read}(queue)"
        raise SpecError(f"{parameter}= is {safe_repr(accesses)}: give {wanted}")
    groups: list[tuple[Channel, ...]] = []
    for access in (accesses,) if isinstance(accesses, Access) else accesses:
        if not isinstance(access, Access):
            wanted = f"what batch.{mode.value}(...) returns"
            if isinstance(access, (str, os.PathLike)):
                wanted = f"batch.{mode.value}({str(access)!r})"
            raise SpecError(f"{parameter}= holds {safe_repr(access)}: give {wanted}")
        if access.mode is not mode:
            raise SpecError(f"{parameter}= holds a {access}: put it into {access.mode.value}s=")
        groups.append(access.channels)
    # Tasks that are given one access object share its tuple.
    return groups[0] if len(groups) == 1 else tuple(chain.from_iterable(groups))

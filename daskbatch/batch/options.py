"""Makes tasks with options that are given apart from their arguments.

Does not know how tasks are put in order or run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from daskbatch.batch.task import Task
from daskbatch.describe.access import Access, Channel, Mode
from daskbatch.describe.spec import DEFAULT, Call, Options, function_call, process_call
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import SpecError

if TYPE_CHECKING:
    from daskbatch.batch.batch import Batch
    from daskbatch.cluster.session import Session

Accesses = Access | Iterable[Access] | None


class TaskFactory:
    """Makes tasks that share what `Batch.options` was given.

    Examples
    --------
    >>> robust = batch.options(retries=2)
    >>> task = robust.function(int, "ff", base=16)
    >>> other = robust.process("echo", "hello")
    >>> batch.compile([task, other]).run()
    >>> task.get(), other.stdout.get()
    (255, 'hello')
    """

    def __init__(
        self,
        batch: Batch,
        options: Options,
        reads: Accesses = None,
        writes: Accesses = None,
        name: str | None = None,
    ) -> None:
        require_name(name)
        self._batch = batch
        self._options = options
        self._reads = _channels(reads, Mode.READ)
        self._writes = _channels(writes, Mode.WRITE)
        self._name = name

    def function(self, target: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
        """Make a task of a Python function; see `Batch.function`, also for what is raised.

        Parameters
        ----------
        target : callable
            The function.
        *args, **kwargs
            All are its own: what `Batch.function` takes by keyword, `Batch.options` was given.
        """
        return make_function(
            self._batch, target, args, kwargs, self._options, self._reads, self._writes, self._name
        )

    def process(
        self, target: str | Path, /, *args: Any, stdin: Any = None, check: bool = True
    ) -> Task:
        """Make a task of a serial executable; see `Batch.process`, also for what is raised.

        Parameters
        ----------
        target, *args, stdin, check
            See `Batch.process`; all else `Batch.options` was given.
        """
        return make_process(
            self._batch,
            target,
            args,
            self._options,
            self._reads,
            self._writes,
            self._name,
            stdin=stdin,
            check=check,
        )

    def _name_of(self, target: Callable[..., Any]) -> str:
        """Say what messages call the call of a function."""
        return self._name or name_of(target)

    def _record(self, call: Call, target: Callable[..., Any]) -> TaskRecord:
        """Describe the call of a function as what is kept of a task."""
        name = self._name_of(target)
        batch = self._batch
        options, reads, writes = self._options, self._reads, self._writes
        return make_record(batch, batch._session, call, name, options, reads, writes)


def require_name(name: str | None) -> None:
    """Make sure that a name is one, or none."""
    if name is not None and (not isinstance(name, str) or not name):
        raise SpecError(f"name= must be a text, not {name!r}")


def make_function(
    batch: Batch,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Options = DEFAULT,
    reads: tuple[Channel, ...] = (),
    writes: tuple[Channel, ...] = (),
    name: str | None = None,
) -> Task:
    """Make a task of a Python function."""
    if len(args) > 1 and type(args[0]) is tuple and not kwargs:
        args, more_reads, more_writes = _other_form(args)
        reads, writes = reads + more_reads, writes + more_writes
    call = function_call(target, args, kwargs)
    session = batch._session
    record = make_record(batch, session, call, name or name_of(target), options, reads, writes)
    return Task(batch, record, session)


def make_process(
    batch: Batch,
    target: str | Path,
    args: tuple[Any, ...],
    options: Options,
    reads: tuple[Channel, ...] = (),
    writes: tuple[Channel, ...] = (),
    name: str | None = None,
    *,
    stdin: Any = None,
    check: bool = True,
) -> Task:
    """Make a task of a serial executable."""
    call = process_call(
        target,
        args,
        cwd=options.cwd or batch._directory,
        env=dict(options.env),
        stdin=stdin,
        check=check,
        timeout=options.timeout,
    )
    # It is a process of its own as it is.
    options = replace(options, isolated=False, cwd=None, env=())
    name = name or os.path.basename(target)
    session = batch._session
    return Task(batch, make_record(batch, session, call, name, options, reads, writes), session)


def make_record(
    batch: Batch,
    session: Session,
    call: Call,
    name: str,
    options: Options,
    reads: tuple[Channel, ...],
    writes: tuple[Channel, ...],
) -> TaskRecord:
    """Make what is kept of a task, with a number that no other task of its client has."""
    if session.closed:
        batch._require_open()
    return TaskRecord(session.client_id, next(session.numbers), name, call, options, reads, writes)


def name_of(function: Callable[..., Any]) -> str:
    """Say what messages call a function."""
    if type(function) is FunctionType:
        return function.__name__
    inner = getattr(function, "func", function)
    return getattr(inner, "__name__", None) or type(inner).__name__


def _other_form(
    args: tuple[Any, ...],
) -> tuple[tuple[Any, ...], tuple[Channel, ...], tuple[Channel, ...]]:
    """Recognise ``function(f, (a, b), [reads…], [writes…])``: a tuple, then lists of accesses."""
    inner, *lists = args
    if not any(
        isinstance(access, Access) for some in lists if type(some) is list for access in some
    ):
        return args, (), ()
    if len(lists) > 2 or not all(some is None or type(some) is list for some in lists):
        return args, (), ()  # and refused, since an access is no argument
    reads, writes = [*lists, None][:2]
    return inner, _channels(reads, Mode.READ), _channels(writes, Mode.WRITE)


def _channels(given: Accesses, mode: Mode) -> tuple[Channel, ...]:
    if given is None:
        return ()
    # These can be gone through, too: an empty dictionary would silently be no access.
    single = isinstance(given, (str, bytes, os.PathLike, Mapping))
    if single or not isinstance(given, (Access, Iterable)):
        read = f"batch.{mode.value}"
        wanted = f"a list of what {read}(...) returns"
        if hasattr(given, "__batch_channels__"):
            wanted = f"{read}(d) or {read}(d, key)" if single else f"{read}(queue)"
        raise SpecError(f"{mode.value}s= is {given!r}: give {wanted}")
    channels: list[Channel] = []
    for access in (given,) if isinstance(given, Access) else given:
        if not isinstance(access, Access):
            raise SpecError(
                f"{mode.value}s= holds {access!r}: give what batch.{mode.value}(...) returns"
            )
        if access.mode is not mode:
            raise SpecError(f"{mode.value}s= holds a {access}: put it into {access.mode.value}s=")
        channels += access.channels
    return tuple(channels)

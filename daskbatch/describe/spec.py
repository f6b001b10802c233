"""What a task calls, and the options under which it runs.

All records are immutable. The functions may be called by any number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from numbers import Real
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from daskbatch.describe.environment import is_value, is_variable
from daskbatch.describe.future_source import FutureSource
from daskbatch.describe.gang import Gang, count_cores, thread_limits, whole_slots
from daskbatch.describe.generators import warn_of_generator
from daskbatch.describe.initializer import Initializer
from daskbatch.describe.values import isinstance_of, number_of, path_of, text_of, whole_number_of
from daskbatch.errors import SerializationError, SpecError
from daskbatch.serialization import pickling
from daskbatch.serialization.buffers import Buffer
from daskbatch.serialization.diagnosis import hint_on_arguments
from daskbatch.serialization.safe_text import attribute, plain, safe_repr, text_attribute, type_name
from daskbatch.worker.execution.executable import execute
from daskbatch.worker.mpi.job import run_job
from daskbatch.worker.mpi.rank_function import RankFunction, RankSettings, call_object


@dataclass(frozen=True, slots=True)
class Options:
    """How a task runs. Tasks with the same options share one record.

    Parameters
    ----------
    timeout : float, optional
        The seconds after which it is stopped.
    retries : int
        The number of further attempts after a failure.
    resources : tuple of (str, float)
        The amounts of Dask's abstract worker resources that it takes.
    workers : tuple of str
        Addresses or host names of the workers that may run it; all workers if empty.
    priority : float
        Tasks with a higher priority run first.
    isolated : bool
        Whether the function runs in a separate process, which can be killed.
    fresh : bool
        Whether this process is one that no other task uses, before or after.
    gang : Gang, optional
        The slots that the task takes, if they are granted together.
    cwd : str, optional
        The working directory of an isolated function.
    env : tuple of (str, str)
        Variables that are added to the environment of an isolated function.
    prepare : Initializer, optional
        The initializer that each process calls once, before the first task with these options.
    other_workers : bool
        Whether the task may run on another worker if none of `workers` is there.
    apart : hashable
        The caller decides which tasks share a block: tasks that are equal in this and are started
        together share one, others do not. The members of this block run one after another. They
        are not deferred when one of them takes long or waits; the caller revokes them then.
    restartable : bool
        Whether the task may run again after the loss of its worker though it reads what it writes.
    walltime : float, optional
        The seconds that a worker must stay for the task to begin there.
    future : FutureSource, optional
        The Dask future whose result the task fetches.
    """

    timeout: float | None = None
    retries: int = 0
    resources: tuple[tuple[str, float], ...] = ()
    workers: tuple[str, ...] = ()
    priority: float = 0
    isolated: bool = False
    fresh: bool = False
    gang: Gang | None = None
    cwd: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    prepare: Initializer | None = None
    other_workers: bool = False
    apart: Hashable = None
    restartable: bool = False
    walltime: float | None = None
    future: FutureSource | None = None
    #: The options that hold for a whole Dask key: tasks that differ here cannot share a block.
    placement_key: Hashable = field(init=False, default=None)

    def __post_init__(self) -> None:
        key = (
            *(self.resources, self.workers, self.priority, self.isolated, self.prepare),
            *(self.other_workers, self.apart, self.fresh, self.gang, self.walltime, self.future),
        )
        if any(key):
            object.__setattr__(self, "placement_key", key)


#: The options of a task for which the user sets none.
DEFAULT_OPTIONS = Options()


def make_options(
    *,
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
) -> Options:
    """Validate the options of a function; see `Batch.options`.

    A parallel job replaces the `Gang` of the options by one with its number of ranks.

    Raises
    ------
    SpecError
        A value has the wrong type or is out of range.
    """
    if (
        (timeout is None and resources is None and workers is None and isolation is None)
        and (cores is None and cwd is None and env is None and walltime is None)
        and (type(retries) is type(priority) is int and not retries and not priority)
        and restartable is False
    ):
        return DEFAULT_OPTIONS  # tasks that only read and write files
    count = int(retries) if type(retries) is bool else whole_number_of(retries)
    if count is None or count < 0:
        raise SpecError(f"retries= must be a whole number from 0, not {safe_repr(retries)}")
    rank = float(priority) if type(priority) is bool else number_of(priority)
    if rank is None:
        raise SpecError(f"priority= must be a number, not {safe_repr(priority)}")
    if isolation is not None and text_of(isolation) not in ("thread", "process", "fresh"):
        raise SpecError(
            f'isolation= must be "thread", "process" or "fresh", not {safe_repr(isolation)}'
        )
    where = text_of(isolation)
    variables = checked_environment(env)
    if where == "thread" and (cwd is not None or variables):
        raise SpecError(
            'cwd= and env= need isolation="process": a thread shares those of its process'
        )
    if workers is None or isinstance_of(workers, str):
        workers = [] if workers is None else [workers]  # type: ignore[list-item]
    names = list(map(text_of, workers)) if isinstance_of(workers, Iterable) else [None]
    if None in names:
        raise SpecError(f"workers= must be addresses or host names, not {safe_repr(workers)}")
    isolated = where in ("process", "fresh") or (
        where is None and not (timeout is None and cwd is None and not variables and cores is None)
    )
    slots = 1
    if cores is not None:
        amount = count_cores(cores, "cores=")
        slots = whole_slots(amount)
        if where != "thread":
            variables = {**thread_limits(amount), **variables}
    return Options(
        timeout=None if timeout is None else positive_seconds(timeout, "timeout="),
        retries=count,
        resources=_resources(resources),
        workers=tuple(name for name in names if name is not None),
        priority=rank,
        isolated=isolated,
        fresh=where == "fresh",
        gang=None if slots == 1 else Gang(1, slots),
        cwd=None if cwd is None else os.fspath(cwd),
        env=tuple(sorted(variables.items())),
        restartable=bool(restartable),
        walltime=None if walltime is None else positive_seconds(walltime, "walltime="),
    )


def checked_environment(env: Mapping[str, str] | None) -> dict[str, str]:
    if env is None:
        return {}
    if not isinstance_of(env, Mapping):
        raise SpecError(f"env= must be a dict of str to str, not {safe_repr(env)}")
    for name, value in env.items():
        if not isinstance_of(name, str) or not is_value(value):
            raise SpecError(
                f"env= must map str to str; {safe_repr(name)}: {safe_repr(value)} is wrong"
            )
        if not is_variable(name):
            raise SpecError(f"env= holds {safe_repr(name)}, which cannot be the name of a variable")
    return {plain(name): plain(os.fsdecode(value)) for name, value in env.items()}


def _resources(resources: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    if resources is None:
        return ()
    if not isinstance_of(resources, Mapping):
        raise SpecError(
            f'resources= must be a dict such as {{"GPU": 1}}, not {safe_repr(resources)}'
        )
    for name, amount in resources.items():
        if not isinstance_of(name, str) or not isinstance_of(amount, Real) or not amount > 0:
            raise SpecError(
                'resources= must be a dict such as {"GPU": 1}; '
                f"{safe_repr(name)}: {safe_repr(amount)} is wrong"
            )
    return tuple(sorted((plain(name), float(amount)) for name, amount in resources.items()))


def positive_seconds(value: float | timedelta, what: str) -> float:
    """Convert a duration, which must be positive, to seconds.

    Parameters
    ----------
    value : float or timedelta
        The duration; a number is in seconds.
    what : str
        The name of the value in messages.

    Raises
    ------
    SpecError
        The value is neither a positive number nor a positive `timedelta`.
    """
    seconds = number_of(value.total_seconds() if isinstance_of(value, timedelta) else value)  # type: ignore[union-attr]
    if seconds is None or not seconds > 0:
        raise SpecError(
            f"{what} must be a positive number of seconds or timedelta, not {safe_repr(value)}"
        )
    return seconds


class Call(NamedTuple):
    """A function and its arguments, ready to be sent.

    Parameters
    ----------
    function : callable
        The function that the worker calls.
    family : hashable
        Calls of one family are expected to take about the same time.
    data : bytes
        The packed arguments.
    references : tuple
        The tasks among the arguments: for each its record, and the part that is meant (result,
        stdout or stderr). Until `make_record`, Dask futures stand there, too.
    buffers : tuple of Buffer
        The large buffers among the arguments.
    failure : SerializationError, optional
        The error, if the arguments cannot be sent.
    """

    function: Callable[..., Any]
    family: Hashable
    data: bytes
    references: tuple[tuple[Any, str], ...] = ()
    buffers: tuple[Buffer, ...] = ()
    failure: SerializationError | None = None


_new_tuple = tuple.__new__


def make_call(function: Callable[..., Any], family: Hashable, arguments: object) -> Call:
    try:
        return Call(function, family, *pickling.pack(arguments))
    except SerializationError as error:
        if isinstance(error.__cause__, SpecError):
            raise error.__cause__ from None
        hint = hint_on_arguments(_named(function, arguments), error)
        failure = SerializationError(f"{error}{hint}")
        failure.__cause__ = error.__cause__
        return Call(function, family, b"", failure=failure)


def _named(function: Callable[..., Any], arguments: Any) -> dict[str, Any]:
    """Return the arguments by the names that messages have for them."""
    args, kwargs = arguments
    if function in (execute, run_job):
        return dict(kwargs)
    if function is _apply or getattr(function, "function", None) is call_object:
        return dict(zip(("function", "args", "kwargs"), args, strict=True))
    return {"args": args, "kwargs": kwargs}


def function_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Call:
    """Describe the call of a Python function.

    Raises
    ------
    SpecError
        The function is not callable.
    """
    if type(function) is FunctionType:
        if not kwargs and pickling.are_plain(args):
            data = pickling.dumps_plain((args, {}))
            # In a third less time than by `Call(...)`: most tasks are made here.
            return _new_tuple(Call, (function, function.__code__, data, (), (), None))
        packed = None if kwargs else pickling.pack_flat(args)
        if packed is not None:
            return _new_tuple(Call, (function, function.__code__, *packed, None))
        return make_call(function, function.__code__, (args, kwargs))
    if not callable(function):
        raise SpecError(
            f"cannot call {safe_repr(function)}: give a function first, then its arguments; "
            "for an executable use batch.process(...)"
        )
    warn_of_generator(function)
    # A partial, a bound method or a callable object may hold tasks: it is packed with the
    # arguments.
    return make_call(_apply, family_of(function), ((function, args, kwargs), {}))


def rank_call(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    settings: RankSettings,
) -> Call:
    """Describe the call of a Python callable on every rank of a parallel job.

    Raises
    ------
    SpecError
        The function is not callable.
    """
    if not callable(function):
        raise SpecError(f"cannot call {safe_repr(function)} on the ranks of a job")
    if type(function) is FunctionType:
        ranked, arguments = RankFunction(function, settings), (args, kwargs)
    else:
        # It may hold tasks: it is packed with the arguments.
        ranked, arguments = RankFunction(call_object, settings), ((function, args, kwargs), {})
    return make_call(ranked, ("ranks", settings.num_procs, family_of(function)), arguments)


def is_task_or_handle(obj: object) -> bool:
    try:
        _, references, _ = pickling.pack(obj)
    except SerializationError:
        return False
    return len(references) == 1


def _apply(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return function(*args, **kwargs)


def family_of(function: Callable[..., Any]) -> Hashable:
    """Return the family of the calls of a callable that is not a plain function."""
    inner = attribute(function, "func")
    if inner is None:
        inner = attribute(function, "__func__")
    inner = function if inner is None else inner
    name = text_attribute(inner, "__qualname__") or type_name(inner)
    return text_attribute(inner, "__module__"), name


def process_call(
    target: str | Path,
    args: Sequence[Any],
    *,
    cwd: str,
    env: Mapping[str, str] | None,
    stdin: Any,
    check: bool,
    timeout: float | None,
) -> Call:
    """Describe the run of an executable.

    Raises
    ------
    SpecError
        The target is not a path, or a setting has the wrong type.
    """
    path = path_of(target)
    if not path:
        raise SpecError(
            f"cannot run {safe_repr(target)}: give an executable as str or Path, then its "
            "arguments; for a Python function use batch.function(...)"
        )
    if isinstance_of(stdin, os.PathLike):
        stdin = Path(os.fsdecode(stdin))
    elif isinstance_of(stdin, str):
        stdin = plain(stdin)
    elif not (stdin is None or isinstance_of(stdin, bytes) or is_task_or_handle(stdin)):
        raise SpecError(f"stdin= must be a text, bytes, a Path or a task, not {safe_repr(stdin)}")
    command = {
        "command": [path, *args],
        "cwd": cwd,
        "env": checked_environment(env),
        "stdin": stdin,
        "check": bool(check),
        "timeout": timeout,
    }
    return make_call(execute, path, ((), command))

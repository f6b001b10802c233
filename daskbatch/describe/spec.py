"""What a task calls, and under which conditions.

Does not know where or when it runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from numbers import Real
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from daskbatch.describe.environment import is_value, is_variable
from daskbatch.describe.initializer import Initializer
from daskbatch.errors import SerializationError, SpecError
from daskbatch.serialization import pickling
from daskbatch.serialization.diagnosis import hint_on_arguments
from daskbatch.worker.execution import executable as process


@dataclass(frozen=True, slots=True)
class Options:
    """How a task is to be run; the same record serves all tasks that say the same.

    Parameters
    ----------
    timeout : float, optional
        Seconds that it may run.
    retries : int
        How often it is tried again after a failure.
    resources : tuple of (str, float)
        What of Dask's abstract worker resources it takes.
    workers : tuple of str
        Addresses or hosts where it may run; everywhere if empty.
    priority : float
        Higher runs first.
    isolated : bool
        Whether a function runs in a process of its own, which can be killed.
    cwd : str, optional
        The working directory of an isolated function.
    env : tuple of (str, str)
        What is added to its environment.
    prepare : Initializer, optional
        What its process does before.
    other_workers : bool
        Whether it may run elsewhere where none of `workers` is there.
    apart : hashable
        Tasks that differ in this do not share a block. Those that agree and are started together
        do: they run one after another, and are not placed anew when one of them takes long or
        waits. Their caller takes them back then.
    """

    timeout: float | None = None
    retries: int = 0
    resources: tuple[tuple[str, float], ...] = ()
    workers: tuple[str, ...] = ()
    priority: float = 0
    isolated: bool = False
    cwd: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    prepare: Initializer | None = None
    other_workers: bool = False
    apart: Hashable = None
    #: What a Dask key has one of: tasks that differ here cannot share a block.
    placement_key: Hashable = field(init=False, default=None)

    def __post_init__(self) -> None:
        key = (
            *(self.resources, self.workers, self.priority, self.isolated, self.prepare),
            *(self.other_workers, self.apart),
        )
        if any(key):
            object.__setattr__(self, "placement_key", key)


DEFAULT = Options()


def make_options(
    *,
    timeout: float | timedelta | None = None,
    retries: int = 0,
    resources: Mapping[str, float] | None = None,
    workers: str | Sequence[str] | None = None,
    priority: float = 0,
    isolation: str | None = None,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Options:
    """Validate what a user asks for, of a function.

    Raises
    ------
    SpecError
        A value is of the wrong type or out of range.
    """
    if not isinstance(retries, int) or retries < 0:
        raise SpecError(f"retries= must be a whole number from 0, not {retries!r}")
    if not isinstance(priority, Real) or math.isnan(priority):
        raise SpecError(f"priority= must be a number, not {priority!r}")
    if isolation not in (None, "thread", "process"):
        raise SpecError(f'isolation= must be "thread" or "process", not {isolation!r}')
    if isolation == "thread" and (cwd is not None or env):
        raise SpecError('cwd= and env= need isolation="process": a thread has none of its own')
    if workers is None or isinstance(workers, str):
        workers = [] if workers is None else [workers]
    if not isinstance(workers, Iterable) or not all(isinstance(each, str) for each in workers):
        raise SpecError(f"workers= must be addresses or host names, not {workers!r}")
    return Options(
        timeout=None if timeout is None else seconds(timeout, "timeout="),
        retries=retries,
        resources=_resources(resources),
        workers=tuple(workers),
        priority=float(priority),
        isolated=isolation == "process"
        or (isolation is None and not (timeout is None and cwd is None and not env)),
        cwd=None if cwd is None else os.fspath(cwd),
        env=tuple(sorted(_environment(env).items())),
    )


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    if env is not None and not isinstance(env, Mapping):
        raise SpecError(f"env= must be a dict of str to str, not {env!r}")
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not is_value(value):
            raise SpecError(f"env= must map str to str; {name!r}: {value!r} is wrong")
        if not is_variable(name):
            raise SpecError(f"env= holds {name!r}, which cannot be the name of a variable")
    return {name: os.fsdecode(value) for name, value in (env or {}).items()}


def _resources(resources: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    if resources is None:
        return ()
    if not isinstance(resources, Mapping):
        raise SpecError(f'resources= must be a dict such as {{"GPU": 1}}, not {resources!r}')
    for name, amount in resources.items():
        if not isinstance(name, str) or not isinstance(amount, Real) or not amount > 0:
            raise SpecError(
                f'resources= must be a dict such as {{"GPU": 1}}; {name!r}: {amount!r} is wrong'
            )
    return tuple(sorted((name, float(amount)) for name, amount in resources.items()))


def seconds(value: float | timedelta, what: str) -> float:
    """Read a span of time.

    Raises
    ------
    SpecError
        It is neither a positive number of seconds nor a positive `timedelta`.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, Real) or isinstance(value, bool) or not value > 0:
        raise SpecError(f"{what} must be a positive number of seconds or timedelta, not {value!r}")
    return float(value)


class Call(NamedTuple):
    """A function and its arguments, ready to be sent.

    Parameters
    ----------
    function : callable
        What is called on the worker.
    family : hashable
        Calls of one family can be expected to take about the same time.
    data : bytes
        The packed arguments.
    references : tuple
        The tasks among them: their records, and which part of each is meant.
    buffers : tuple of Buffer
        The large buffers among them.
    failure : SerializationError, optional
        Why the arguments cannot be sent.
    """

    function: Callable[..., Any]
    family: Hashable
    data: bytes
    references: tuple[tuple[Any, str], ...] = ()
    buffers: tuple[pickling.Buffer, ...] = ()
    failure: SerializationError | None = None


def _make_call(function: Callable[..., Any], family: Hashable, arguments: object) -> Call:
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
    """Give arguments by the names that messages have for them."""
    args, kwargs = arguments
    if function is process.execute:
        return dict(kwargs)
    if function is _apply:
        return dict(zip(("function", "args", "kwargs"), args, strict=True))
    return {"args": args, "kwargs": kwargs}


def function_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Call:
    """Describe the call of a Python function.

    Raises
    ------
    SpecError
        It is not callable.
    """
    if type(function) is FunctionType:
        if not kwargs and pickling.are_plain(args):
            return Call(function, function.__code__, pickling.dumps_plain((args, {})))
        return _make_call(function, function.__code__, (args, kwargs))
    if not callable(function):
        raise SpecError(
            f"cannot call {function!r}: give a function first, then its arguments; "
            "for an executable use batch.process(...)"
        )
    # A partial, a bound method or an object may itself hold tasks: it is an argument too.
    return _make_call(_apply, _family(function), ((function, args, kwargs), {}))


def _stands_for_a_value(thing: object) -> bool:
    try:
        _, references, _ = pickling.pack(thing)
    except SerializationError:
        return False
    return len(references) == 1


def _apply(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return function(*args, **kwargs)


def _family(function: Callable[..., Any]) -> Hashable:
    inner = getattr(function, "func", getattr(function, "__func__", function))
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return getattr(inner, "__module__", None), name


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
        It is no path, or a setting is of the wrong type.
    """
    if not isinstance(target, (str, Path)) or not str(target):
        raise SpecError(
            f"cannot run {target!r}: give an executable as str or Path, then its arguments; "
            "for a Python function use batch.function(...)"
        )
    if not (stdin is None or isinstance(stdin, (str, bytes, Path)) or _stands_for_a_value(stdin)):
        raise SpecError(f"stdin= must be a text, bytes, a Path or a task, not {stdin!r}")
    command = {
        "command": [target, *args],
        "cwd": cwd,
        "env": _environment(env),
        "stdin": stdin,
        "check": bool(check),
        "timeout": timeout,
    }
    return _make_call(process.execute, os.fspath(target), ((), command))

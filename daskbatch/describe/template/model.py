"""The content of a PTD file, as immutable records.

`reader` makes them from a file, and `binding` fills in the arguments. Any number of threads may use
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daskbatch.describe.template.expressions import CallExpression, Expression, names

#: The types of tasks that a PTD file may describe.
TYPES = ("function", "process", "job")

#: The seconds of each unit of a timeout.
UNITS = {"day": 86_400.0, "hour": 3_600.0, "min": 60.0, "sec": 1.0}

#: The largest number of a unit, or of processes, that is accepted.
MAX_NUMBER = 1e12


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument that the file declares.

    Parameters
    ----------
    line : int
        The line of the declaration.
    name : str
        The identifier that stands for the argument in the file.
    keyword : str, optional
        The keyword of the argument; None for an argument by position.
    default : CallExpression, optional
        The call whose value the argument has if it is left out.
    """

    line: int
    name: str
    keyword: str | None = None
    default: CallExpression | None = None


@dataclass(frozen=True, slots=True)
class EnvMap:
    """Environment variables that are written in the file: each name with its value."""

    line: int
    entries: tuple[tuple[str, Expression], ...]


@dataclass(frozen=True, slots=True)
class Executable:
    """One entry of ``executables``."""

    line: int
    #: The function, or the path of the executable.
    target: Expression
    args: tuple[Expression, ...] = ()
    kwargs: tuple[tuple[str, Expression], ...] = ()
    num_procs: Expression | None = None
    cwd: Expression | None = None
    env: Expression | EnvMap | None = None


@dataclass(frozen=True, slots=True)
class FileAccess:
    """A file that a task reads or writes: an item of ``files``."""

    line: int
    item: Expression


@dataclass(frozen=True, slots=True)
class KeyAccess:
    """Keys of an object that a task reads or writes; all keys if none are named."""

    line: int
    object: Expression
    keys: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """The content of a PTD file, validated; `file` is its name in messages."""

    file: str
    type: str
    executables: tuple[Executable, ...]
    import_args: tuple[Parameter, ...] = ()
    import_kwargs: tuple[Parameter, ...] = ()
    args: tuple[Parameter, ...] = ()
    kwargs: tuple[Parameter, ...] = ()
    reads: tuple[FileAccess | KeyAccess, ...] = ()
    writes: tuple[FileAccess | KeyAccess, ...] = ()
    name: Expression | None = None
    timeout: tuple[tuple[str, Expression], ...] = ()

    def uses(self) -> dict[str, int]:
        """Return the names that a task is made of, each with the line of its first use."""
        used: dict[str, int] = {}
        for expression in self._expressions():
            for name, line in names(expression):
                used[name] = min(line, used.get(name, line))
        return used

    def _expressions(self) -> Iterator[Expression]:
        for executable in self.executables:
            yield executable.target
            yield from executable.args
            yield from (value for _, value in executable.kwargs)
            yield from (each for each in (executable.num_procs, executable.cwd) if each)
            if isinstance(executable.env, EnvMap):
                yield from (value for _, value in executable.env.entries)
            elif executable.env is not None:
                yield executable.env
        for access in (*self.reads, *self.writes):
            if isinstance(access, FileAccess):
                yield access.item
            else:
                yield access.object
                yield from access.keys
        if self.name is not None:
            yield self.name
        yield from (value for _, value in self.timeout)

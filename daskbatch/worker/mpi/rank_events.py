"""What those that watch the ranks of a job report, and what a rank starts with.

Plain records. The thread that runs the job uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple


class RankStart(NamedTuple):
    """What a rank runs.

    Parameters
    ----------
    command : sequence of str
        The executable and its arguments.
    cwd : str
        Its working directory.
    env : mapping
        Variables that are added to the environment.
    stdin : binary file, optional
        Its standard input.
    is_remote : bool
        Whether the rank runs on another host than the worker of the job.
    """

    command: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    stdin: IO[bytes] | None = None
    is_remote: bool = False


#: Returns what a rank runs; None if the job starts no further ranks.
StartOf = Callable[[int], "RankStart | None"]


class Output(NamedTuple):
    """A rank has written something to its stdout or stderr."""

    rank: int
    is_error: bool
    data: bytes


class Ended(NamedTuple):
    """A rank has ended.

    Parameters
    ----------
    rank, code : int
        Which one, and its exit code.
    was_signalled : bool
        Whether the launcher had ended it.
    cpu_seconds : float
        The processor time of its executable.
    max_memory : int
        The peak of the memory of its executable. Bytes.
    """

    rank: int
    code: int
    was_signalled: bool
    cpu_seconds: float
    max_memory: int


class NotStarted(NamedTuple):
    """A rank could not start: the number of the error, and whether its directory is the reason."""

    rank: int
    number: int
    is_directory: bool


class Lost(NamedTuple):
    """The process that supervises a rank has ended without a report."""

    rank: int


Event = Output | Ended | NotStarted | Lost

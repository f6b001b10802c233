"""Measures what a task uses: processor time, memory, and where and when it ran.

Pure records, and functions that read the kernel's counters. Any thread may call them. Times are
seconds since the epoch by the clock of the worker's host.
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_ENDED, _CPU = struct.Struct("d"), struct.Struct("f")

#: In place of a processor time that is not known.
UNKNOWN_CPU = -1.0


class Usage(NamedTuple):
    """What the processes of one attempt have used.

    Parameters
    ----------
    cpu_seconds : float
        Their processor time; `UNKNOWN_CPU` if it is not known.
    max_memory : int, optional
        The peak of their resident memory. Bytes.
    pid : int, optional
        The first of the processes.
    """

    cpu_seconds: float = UNKNOWN_CPU
    max_memory: int | None = None
    pid: int | None = None

    def after(self, earlier: Usage | None) -> Usage:
        """Return the usage of a task that was tried again after an earlier attempt."""
        if earlier is None:
            return self
        memory = max(self.max_memory or 0, earlier.max_memory or 0)
        cpu = [each for each in (self.cpu_seconds, earlier.cpu_seconds) if each >= 0]
        return Usage(sum(cpu) if cpu else UNKNOWN_CPU, memory or None, self.pid)


def sum_usage(parts: Iterable[Usage], pid: int | None) -> Usage:
    """Return the usage of a job: the sums of what its ranks have used.

    Parameters
    ----------
    parts : iterable of Usage
        The usage of each rank.
    pid : int, optional
        The first process of the job.
    """
    ranks = list(parts)
    cpu = [rank.cpu_seconds for rank in ranks if rank.cpu_seconds >= 0]
    memory = sum(rank.max_memory or 0 for rank in ranks)
    return Usage(sum(cpu) if cpu else UNKNOWN_CPU, memory or None, pid)


class MemberDetails(NamedTuple):
    """What is recorded only of members that need it.

    Parameters
    ----------
    attempts : int
        The number of attempts.
    pid : int, optional
        The process that it ran in, if that was not the worker.
    max_memory : int, optional
        The peak of its resident memory. Bytes.
    """

    attempts: int = 1
    pid: int | None = None
    max_memory: int | None = None


_ORDINARY = MemberDetails()


class RunElsewhere(NamedTuple):
    """What is known of a member that another process has run, or that nothing has run.

    Parameters
    ----------
    seconds : float
        How long it ran.
    ended : float
        When it ended; 0 if it has not begun.
    cpu_seconds : float
        Its processor time; `UNKNOWN_CPU` if it is not known.
    details : MemberDetails, optional
        Its details.
    journaled : bool
        Whether that process has recorded it in the journal.
    """

    seconds: float = 0.0
    ended: float = 0.0
    cpu_seconds: float = UNKNOWN_CPU
    details: MemberDetails | None = None
    journaled: bool = False


class MemberBegin(NamedTuple):
    """Where and when a member has begun.

    Parameters
    ----------
    worker : str
        The address of the worker; empty if it is not known.
    pid : int
        The process.
    attempt : int
        The number of the attempt, from 1.
    started : float
        When.
    """

    worker: str
    pid: int
    attempt: int
    started: float


class Measured(NamedTuple):
    """What was measured of one member that has run.

    Parameters
    ----------
    worker : str
        The address of the worker; empty if it is not known.
    pid, attempts, ended, cpu_seconds, max_memory
        See `TaskInfo`.
    """

    worker: str
    pid: int | None
    attempts: int
    ended: float | None
    cpu_seconds: float | None
    max_memory: int | None


class Measures(NamedTuple):
    """What was measured of the members in a report, packed.

    Parameters
    ----------
    worker : str
        The address of the worker; empty if it is not known.
    pid : int
        The worker's process.
    ended : bytes
        When each member ended: an array of C doubles; 0 if it is not known.
    cpu_seconds : bytes
        The processor time of each: an array of C floats; `UNKNOWN_CPU` if it is not known.
    details : mapping
        By the position in the report, for those members that have any.
    start : int
        The number of the first member in the report.
    """

    worker: str
    pid: int
    ended: bytes
    cpu_seconds: bytes
    details: Mapping[int, MemberDetails]
    start: int = 0

    def of(self, member: int) -> Measured:
        """Return what was measured of a member in the report."""
        index = member - self.start
        details = self.details.get(index, _ORDINARY)
        ended = _ENDED.unpack_from(self.ended, index * _ENDED.size)[0]
        cpu = _CPU.unpack_from(self.cpu_seconds, index * _CPU.size)[0]
        return Measured(
            self.worker,
            self.pid if details.pid is None else details.pid,
            details.attempts,
            ended or None,
            None if cpu < 0 else cpu,
            details.max_memory,
        )


def process_cpu() -> float:
    """Return the processor time of this process, and of those that it has waited for."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

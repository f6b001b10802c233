"""The record of a run: which tasks ran, when, where and why in this order.

All records are immutable, so any number of threads may use them. They are made either from the
tasks that a program holds, or from the lines of ``events.jsonl``. Times are in seconds since the
epoch, durations in seconds, sizes in bytes. What is not known is None, or empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class Hazard(StrEnum):
    """Why a task waits for another one."""

    #: It takes the result of the other one, its stdout or its stderr.
    ARGUMENT = "argument"
    #: It reads what the other one has written.
    RAW = "RAW"
    #: It overwrites what the other one has read.
    WAR = "WAR"
    #: It overwrites what the other one has written.
    WAW = "WAW"
    #: Both read a channel whose domain orders its reads.
    RAR = "RAR"


@dataclass(frozen=True, slots=True)
class EdgeEntry:
    """A task waits for another one, for one reason. A pair of tasks may have several edges.

    Parameters
    ----------
    uid : str
        The task or barrier that is waited for.
    hazard : Hazard
        The reason.
    path : str
        The file, key or channel that both access; empty for an argument, and where it is not
        known. If there are several, the first ones, separated by a comma and a space.
    """

    uid: str
    hazard: Hazard
    path: str = ""


@dataclass(frozen=True, slots=True)
class BarrierEntry:
    """A node without a task, which replaces N times M edges by N plus M.

    Parameters
    ----------
    uid : str
        A text that no other task or barrier of the run has.
    waits_for : tuple of EdgeEntry
        What the barrier waits for.
    """

    uid: str
    waits_for: tuple[EdgeEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class SlotEntry:
    """A worker and the number of its slots.

    Parameters
    ----------
    worker : str
        The address of the worker.
    host : str
        The name of its host.
    threads : int
        How many tasks it runs at once.
    """

    worker: str
    host: str = ""
    threads: int = 1


@dataclass(frozen=True, slots=True)
class ProgramEntry:
    """A compiled task.

    Parameters
    ----------
    uid, name, state : str
        See `CompiledTask`.
    tasks : int
        The number of its members.
    """

    uid: str
    name: str
    state: str = ""
    tasks: int = 0


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """What is known of one task of a run.

    Parameters
    ----------
    uid, name, state : str
        See `Task`.
    program : str
        The uid of the compiled task that it is a member of; empty if there is none.
    waits_for : tuple of EdgeEntry
        What it waits for, and why. Edges to tasks of earlier runs may be among them.
    worker, host, pid, attempts
        Where it ran last, and how often it was tried.
    slots : int
        How many slots it takes at once.
    created, submitted, started, ended : float, optional
        When it was made and started by the program, and when it began and ended on its worker.
    seconds, cpu_seconds, max_memory, reads, writes, error, warnings
        See `TaskInfo`.
    root : str
        Of a skipped task: the name of the task whose failure is the cause.
    stdout, stderr : str
        The end of what it has written.
    """

    uid: str
    name: str
    state: str
    program: str = ""
    waits_for: tuple[EdgeEntry, ...] = ()
    worker: str | None = None
    host: str | None = None
    pid: int | None = None
    attempts: int | None = None
    slots: int = 1
    created: float | None = None
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    max_memory: int | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    error: str | None = None
    warnings: tuple[str, ...] = ()
    root: str = ""
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is known of a run: of one program, or of all that a client has started.

    Parameters
    ----------
    run : str
        The id of the run.
    name : str
        The name of the program or of the Batch.
    created, started, ended : float, optional
        When the run was made; when its first task began, and its last task ended.
    slots : tuple of SlotEntry
        The workers, also those that have left.
    capacity : int
        The largest number of slots that there were at one time; 0 if that is not known.
    tasks : tuple of TaskEntry
        The tasks, in program order.
    barriers : tuple of BarrierEntry
        The nodes of the graph that are not tasks.
    programs : tuple of ProgramEntry
        The compiled tasks among which the tasks are divided.
    facts : mapping-like tuple of (str, str)
        What else is worth knowing: the directory, the host, versions.
    """

    run: str
    name: str
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    slots: tuple[SlotEntry, ...] = ()
    capacity: int = 0
    tasks: tuple[TaskEntry, ...] = ()
    barriers: tuple[BarrierEntry, ...] = ()
    programs: tuple[ProgramEntry, ...] = ()
    facts: tuple[tuple[str, str], ...] = field(default=())

    def nodes(self) -> Iterator[TaskEntry | BarrierEntry]:
        """Return the tasks and the barriers."""
        yield from self.tasks
        yield from self.barriers

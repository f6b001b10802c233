"""What a client sends for the page /daskbatch: a few hundred short texts and numbers, as JSON.

The sizes are bounded here, for what a client makes and for what the scheduler takes. Pure records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

#: How many programs, names of a program, tasks of each list and recent tasks are sent.
MAX_PROGRAMS, MAX_NAMES, MAX_LISTED, MAX_RECENT = 30, 30, 50, 300

#: How many failures are sent, and what of the end of each output.
MAX_FAILURES, MAX_OUTPUT_CHARACTERS = 20, 1000

#: The longest of all other texts.
MAX_TEXT_CHARACTERS = 300

#: A longer summary is not taken.
_MAX_SUMMARY_CHARACTERS = 2_000_000

#: The states of tasks, in the order in which they are shown.
STATES = ("done", "running", "failed", "skipped", "cancelled", "waiting", "queued")

_T = TypeVar("_T")


class ProgramSummary(NamedTuple):
    """A compiled task, or all tasks that belong to none.

    Parameters
    ----------
    name, state : str
        Those of the compiled task.
    started, ended : float, optional
        When, in seconds since the epoch.
    names : mapping
        For each name the number of tasks by state.
    """

    name: str
    state: str
    started: float | None
    ended: float | None
    names: Mapping[str, Mapping[str, int]]

    def counts(self) -> dict[str, int]:
        """Return the number of tasks by state."""
        found: dict[str, int] = {}
        for states in self.names.values():
            for state, count in states.items():
                found[state] = found.get(state, 0) + count
        return found


class RanTask(NamedTuple):
    """A task that runs, or has ended lately.

    Parameters
    ----------
    name, base, program, state : str
        The task, what tasks of its kind are called, its program, and its state.
    worker : str
        The address of the worker.
    started, ended : float, optional
        When, in seconds since the epoch.
    """

    name: str
    base: str
    program: str
    state: str
    worker: str
    started: float
    ended: float | None


class WaitingTask(NamedTuple):
    """A task that waits, and why."""

    name: str
    program: str
    why: str


class FailedTask(NamedTuple):
    """A task that has failed.

    Parameters
    ----------
    name, program : str
        The task.
    error : str
        The type and the first line of its exception.
    output : str
        The end of what it has written.
    """

    name: str
    program: str
    error: str
    output: str


class ClientSummary(NamedTuple):
    """What a client has started, as far as its program holds it.

    Parameters
    ----------
    programs : sequence of ProgramSummary
        The last ones that were started.
    ran : sequence of RanTask
        What runs, and what has ended lately.
    waiting : sequence of WaitingTask
        The first tasks that wait.
    failures : sequence of FailedTask
        The last tasks that have failed.
    more : mapping
        How many are left out: of ``programs``, ``running``, ``waiting``, ``failures``.
    """

    programs: Sequence[ProgramSummary] = ()
    ran: Sequence[RanTask] = ()
    waiting: Sequence[WaitingTask] = ()
    failures: Sequence[FailedTask] = ()
    more: Mapping[str, int] = {}

    def dumps(self) -> str:
        """Return the summary as text."""
        return json.dumps(self)


def short(text: str, most: int = MAX_TEXT_CHARACTERS) -> str:
    """Return a text that is not too long, without what cannot be shown.

    >>> short("a" * 9, 5)
    'aaaa…'
    """
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= most else f"{text[: most - 1]}…"


def loads(text: str) -> ClientSummary:
    """Return the summary that has arrived.

    Raises
    ------
    ValueError
        It is too long, or is not a summary.
    """
    if len(text) > _MAX_SUMMARY_CHARACTERS:
        raise ValueError(f"a summary of {len(text)} characters is too long")
    try:
        programs, ran, waiting, failures, more = json.loads(text)
        return ClientSummary(
            _records(ProgramSummary, programs, MAX_PROGRAMS),
            _records(RanTask, ran, MAX_LISTED + MAX_RECENT),
            _records(WaitingTask, waiting, MAX_LISTED),
            _records(FailedTask, failures, MAX_FAILURES),
            {str(name): int(count) for name, count in more.items()},
        )
    except (TypeError, AttributeError) as error:
        raise ValueError(f"it is not a summary: {error}") from error


def _records(make: Callable[..., _T], rows: Sequence[Any], most: int) -> list[_T]:
    return [make(*row) for row in rows[:most]]

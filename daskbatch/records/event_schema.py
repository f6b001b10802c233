"""Defines the lines of `events.jsonl`: which fields each kind of event has, and their types.

Pure; any thread may call all functions. `docs/events.md` describes the same fields in words, and a
test compares both. Readers should ignore fields and kinds that they do not know: new ones may be
added to a version. `VERSION` changes only where a field gets another meaning or is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: The version of the schema; in the first line of each run.
VERSION = 1

#: The file in a log directory.
EVENTS_FILE = "events.jsonl"

#: The directory in a log directory that holds the output of tasks, in a directory for each run.
OUTPUT_DIRECTORY = "output"

#: The states of a run.
RUN_STATES = ("begun", "changed", "ended")

#: The states of a task that is not over, and of one that is.
WAITING_STATES = ("queued", "waiting")
END_STATES = ("done", "failed", "skipped", "cancelled")
TASK_STATES = (*WAITING_STATES, "running", *END_STATES)

#: The reasons of an edge: the value is an argument; read after write; write after read; write
#: after write; read after read, in a domain that orders reads. Where a barrier stands between
#: tasks, its edges have the reasons of the tasks'.
HAZARDS = ("argument", "RAW", "WAR", "WAW", "RAR")

_Types = tuple[type, ...]
_TEXT: _Types = (str,)
_NUMBER: _Types = (float, int)
_WHOLE: _Types = (int,)
_LIST: _Types = (list,)
_UNKNOWN = type(None)

#: The fields of each event.
COMMON: Mapping[str, _Types] = {
    "time": _NUMBER,
    "kind": _TEXT,
    "uid": _TEXT,
    "name": _TEXT,
    "state": _TEXT,
    "run": _TEXT,
}

_DESCRIPTION: Mapping[str, _Types] = {
    "program": (str, _UNKNOWN),
    "created": _NUMBER,
    "reads": _LIST,
    "writes": _LIST,
    "waits_for": _LIST,
}

_OUTCOME: Mapping[str, _Types] = {
    "worker": (str, _UNKNOWN),
    "host": (str, _UNKNOWN),
    "pid": (int, _UNKNOWN),
    "attempts": _WHOLE,
    "started": (float, int, _UNKNOWN),
    "ended": _NUMBER,
    "seconds": (float, int, _UNKNOWN),
    "cpu_seconds": (float, int, _UNKNOWN),
    "max_memory": (int, _UNKNOWN),
    "error": (str, _UNKNOWN),
    "warnings": _LIST,
    "root": (str, _UNKNOWN),
    "stdout": (str, _UNKNOWN),
    "stderr": (str, _UNKNOWN),
}

#: The further fields by kind of event and state.
FIELDS: Mapping[tuple[str, str], Mapping[str, _Types]] = {
    ("run", "begun"): {
        "version": _WHOLE,
        "batch": _TEXT,
        "pid": _WHOLE,
        "host": _TEXT,
        "directory": _TEXT,
        "versions": (dict,),
        "slots": _LIST,
    },
    ("run", "changed"): {"slots": _LIST},
    ("run", "ended"): {},
    ("program", "waiting"): {"tasks": _WHOLE},
    **{("program", state): {"tasks": _WHOLE} for state in END_STATES},
    **{("task", state): _DESCRIPTION for state in WAITING_STATES},
    ("task", "running"): {
        "worker": _TEXT,
        "host": _TEXT,
        "pid": _WHOLE,
        "attempt": _WHOLE,
        "started": _NUMBER,
    },
    **{("task", state): _OUTCOME for state in END_STATES},
    ("barrier", "waiting"): {"waits_for": _LIST},
}


class SlotEvent(NamedTuple):
    """A worker, as it stands in the field `slots` of an event of kind ``run``.

    Parameters
    ----------
    worker : str
        Its address.
    host : str
        The host on which it runs.
    threads : int
        How many tasks it runs at once.
    """

    worker: str
    host: str
    threads: int


def find_faults(event: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an event of this version, in words; nothing if it is valid.

    Kinds, states and fields that this version does not know are no faults.

    Parameters
    ----------
    event : mapping
        A line of the file, as `json.loads` returns it.

    Examples
    --------
    >>> event = dict(time=0.5, kind="run", uid="b1", name="b1", state="ended", run="b1")
    >>> find_faults(event), find_faults({**event, "time": "now", "kind": "task"})
    ([], ["'time' is of the type str"])
    """
    faults = []
    fields = {
        **COMMON,
        **FIELDS.get((str(event.get("kind")), str(event.get("state"))), {}),
    }
    for name, types in fields.items():
        if name not in event:
            faults.append(f"{name!r} is missing")
        elif type(event[name]) not in types:
            faults.append(f"{name!r} is of the type {type(event[name]).__name__}")
    for edge in event.get("waits_for", ()):
        if not (isinstance(edge, list) and len(edge) == 3 and edge[1] in HAZARDS):
            faults.append(f"'waits_for' has an edge {edge!r}")
    return faults

"""Formats events as lines of JSON. Many ordinary tasks are one record, which is formatted later.

A program may start ten thousand tasks at once, and to format a line takes as long as to run a short
task. So what is needed for the lines is collected in records that can be pickled quickly; see
`EventLog`. Pure; any thread may call all functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class PlainLines(NamedTuple):
    """Events that are formatted one by one.

    Parameters
    ----------
    events : sequence of mapping
        The events; see `event_schema`.
    """

    events: Sequence[Mapping[str, Any]]

    def format(self) -> str:
        """Return the lines."""
        return "".join(format_event(event) for event in self.events)


class StartedLines(NamedTuple):
    """Tasks of one program that wait, with no accesses, and for no other task.

    Parameters
    ----------
    common : mapping
        The fields that all have.
    uid : str
        Their uids, without the number.
    numbers, names, positions, created : sequence of int, str, int, float
        For each task the number in its uid, its name without the position, the position (-1 for
        none), and when it was made.
    """

    common: Mapping[str, Any]
    uid: str
    numbers: Sequence[int]
    names: Sequence[str]
    positions: Sequence[int]
    created: Sequence[float]

    def format(self) -> str:
        """Return the lines."""
        head = _head(self.common, self.uid)
        quoted = {name: _tail(name) for name in set(self.names)}
        lines = [
            f'{head}{number}"{quoted[name]}{_position(position)}","created":{created:.6f}}}\n'
            for number, name, position, created in zip(
                self.numbers, self.names, self.positions, self.created, strict=True
            )
        ]
        return "".join(lines)


class EndedLines(NamedTuple):
    """Tasks that have ended on one worker with the same state, and of which nothing else is told.

    Parameters
    ----------
    common, uid, numbers, names, positions
        See `StartedLines`.
    ended, seconds, cpu_seconds : sequence of float
        For each task; a processor time below 0 is not known.
    """

    common: Mapping[str, Any]
    uid: str
    numbers: Sequence[int]
    names: Sequence[str]
    positions: Sequence[int]
    ended: Sequence[float]
    seconds: Sequence[float]
    cpu_seconds: Sequence[float]

    def format(self) -> str:
        """Return the lines."""
        head = _head(self.common, self.uid)
        quoted = {name: _tail(name) for name in set(self.names)}
        lines = [
            f'{head}{number}"{quoted[name]}{_position(position)}","started":{ended - seconds:.6f},'
            f'"ended":{ended:.6f},"seconds":{seconds:.7f},'
            f'"cpu_seconds":{cpu if cpu >= 0 else "null"}}}\n'
            for number, name, position, ended, seconds, cpu in zip(
                self.numbers,
                self.names,
                self.positions,
                self.ended,
                self.seconds,
                self.cpu_seconds,
                strict=True,
            )
        ]
        return "".join(lines)


#: Any of the records of lines.
Lines = PlainLines | StartedLines | EndedLines


def format_event(event: Mapping[str, Any]) -> str:
    """Return the line of an event, with its end.

    Examples
    --------
    >>> format_event({"name": "a b", "time": 0.5})
    '{"name":"a b","time":0.5}\\n'
    """
    return json.dumps(event, separators=(",", ":"), default=str) + "\n"


def _head(common: Mapping[str, Any], uid: str) -> str:
    """Return the beginning of a line, up to the number in the uid."""
    return f'{format_event(common)[:-2]},"uid":{json.dumps(uid)[:-1]}'


def _tail(name: str) -> str:
    """Return the field of a name, up to the position."""
    return f',"name":{json.dumps(name)[:-1]}'


def _position(position: int) -> str:
    return "" if position < 0 else f"[{position}]"

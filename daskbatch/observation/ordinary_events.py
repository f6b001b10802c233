"""Packs the events of many ordinary tasks into one record of lines.

A program may start ten thousand tasks at once. So the fields of all are read by loops of the
interpreter's own, which take a tenth of the time of a loop over tasks. Pure; see `EventRecorder`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from daskbatch.dispatch.task_record import SILENT, TaskRecord
from daskbatch.records.event_lines import EndedLines, StartedLines
from daskbatch.worker.execution.measures import Measures

_CALL, _CLIENT, _MEMBER = attrgetter("call"), attrgetter("client_id"), attrgetter("member")
_READS, _WRITES, _WAITS = attrgetter("reads"), attrgetter("writes"), attrgetter("waits")
_NUMBER, _NAME, _POSITION = attrgetter("number"), attrgetter("base_name"), attrgetter("position")
_CREATED, _SECONDS, _OUTPUT = attrgetter("created"), attrgetter("seconds"), attrgetter("output")


def ordinary_start(records: Sequence[TaskRecord]) -> bool:
    """Return whether these are tasks of one client without accesses that wait for no other task."""
    return (
        not any(map(_WAITS, records))
        and not any(map(_READS, records))
        and not any(map(_WRITES, records))
        and None not in map(_CALL, records)
        and _have_one_client(records)
    )


def split(
    records: Sequence[TaskRecord], are_ordinary: Callable[[Sequence[TaskRecord]], bool]
) -> Iterator[tuple[bool, Sequence[TaskRecord]]]:
    """Yield runs of tasks, in their order, each with whether all of them are ordinary."""
    if are_ordinary(records):
        yield True, records
        return

    def client_of_ordinary(record: TaskRecord) -> str | None:
        return record.client_id if are_ordinary((record,)) else None

    for client, some in groupby(records, client_of_ordinary):
        yield client is not None, list(some)


def ordinary_end(records: Sequence[TaskRecord]) -> bool:
    """Return whether these are tasks of one client that have written nothing."""
    return set(map(_OUTPUT, records)) == {SILENT} and _have_one_client(records)


def _have_one_client(records: Sequence[TaskRecord]) -> bool:
    return len(set(map(_CLIENT, records))) == 1


def started_lines(common: Mapping[str, Any], records: Sequence[TaskRecord]) -> StartedLines:
    """Return the lines of tasks that have an ordinary start; see `StartedLines`."""
    return StartedLines(*_heads(common, records), array("d", map(_CREATED, records)))


def ended_lines(
    common: Mapping[str, Any], records: Sequence[TaskRecord], measures: Measures
) -> EndedLines:
    """Return the lines of tasks that have an ordinary end in one report; see `EndedLines`."""
    ended, cpu = array("d", measures.ended), array("f", measures.cpu_seconds)
    members = list(map(_MEMBER, records))
    first = members[0]
    if members == list(range(first, first + len(members))):
        part = slice(first - measures.start, first - measures.start + len(members))
        ended, cpu = ended[part], cpu[part]
    else:
        places = [each - measures.start for each in members]
        ended = array("d", [ended[each] for each in places])
        cpu = array("f", [cpu[each] for each in places])
    return EndedLines(*_heads(common, records), ended, array("d", map(_SECONDS, records)), cpu)


def _heads(
    common: Mapping[str, Any], records: Sequence[TaskRecord]
) -> tuple[Mapping[str, Any], str, Sequence[int], Sequence[str], Sequence[int]]:
    """Return the fields that both kinds of lines have."""
    return (
        common,
        f"{records[0].client_id}-",
        array("q", map(_NUMBER, records)),
        list(map(_NAME, records)),
        array("q", map(_POSITION, records)),
    )

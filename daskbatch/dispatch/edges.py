"""Sets which records a record waits for: those of the same program, and earlier producers.

Does not know when tasks run. The caller holds the dispatcher's lock for started records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG

# Looking up a member of an enum takes long.
_WAITING = Phase.WAITING


def set_waits(graph: Graph, records: Sequence[TaskRecord], client_id: str) -> list[TaskRecord]:
    """Set the waits of the records of a program.

    Parameters
    ----------
    graph : Graph
        The order of the program's tasks, by position.
    records : sequence of TaskRecord
        The tasks, by position.
    client_id : str
        The client that the barriers between the tasks belong to.

    Returns
    -------
    list of TaskRecord
        The tasks and the barriers, each after those that it waits for.
    """
    nodes = dict(enumerate(records))
    for node in graph.order:
        if node not in nodes:
            nodes[node] = TaskRecord(client_id, -1, "barrier", None)
    for node, waits in graph.waits.items():
        nodes[node].waits = tuple((nodes[before], why) for before, why in waits.items())
    for node, overwritten in graph.overwrites.items():
        nodes[node].overwrites = tuple(nodes[before] for before in overwritten)
    return [nodes[node] for node in graph.order]


def wait_for_producers(records: Iterable[TaskRecord]) -> None:
    """Make records wait for the started tasks whose results they take as arguments.

    Within a program the order is inferred from its list of tasks. Tasks that are started in
    separate calls are not in one graph: only their arguments order them.
    """
    for record in records:
        if record.call is None or not record.call.references:
            continue
        started = [each for each, _ in record.call.references if each.phase >= _WAITING]
        if started:
            waits = dict(record.waits)
            waits.update((each, waits.get(each, 0) | ARG) for each in started)
            record.waits = tuple(waits.items())

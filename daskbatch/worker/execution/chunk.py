"""Runs several calls of one function as one task; each call has its own outcome.

The executor sends several calls of `map` as one task. The calls run in the thread of the task;
`run_chunk` raises only `Stopped`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import CoroutineType
from typing import Any, NamedTuple

from daskbatch.forking import end_forked_process, generation
from daskbatch.serialization.exceptions import pack_error
from daskbatch.serialization.pickled_values import PickledValues, pack_values
from daskbatch.worker.execution.interrupt import Stopped
from daskbatch.worker.execution.task_errors import SENDING_RESULT, as_task_error


class Chunk(NamedTuple):
    """The outcomes of the calls of a chunk.

    Parameters
    ----------
    values : PickledValues
        What they returned; None for those that raised.
    errors : mapping
        The packed exceptions, by position.
    """

    values: PickledValues
    errors: Mapping[int, bytes]


def run_chunk(label: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Chunk:
    """Call a function with each of some tuples of arguments, one after another.

    Parameters
    ----------
    label : str
        What messages call the task.
    function : callable
        The function.
    calls : sequence of tuple
        The arguments of each call.

    Raises
    ------
    Stopped
        The task was stopped; exceptions of the calls are outcomes instead.
    """
    values: list[Any] = []
    errors: dict[int, bytes] = {}
    process = generation()
    for position, args in enumerate(calls):
        value = None
        try:
            value = function(*args)
            if process != generation():
                end_forked_process(None)
            if type(value) is CoroutineType:
                value = asyncio.run(value)
        except Stopped:
            raise
        except BaseException as raised:
            which = f"task {label}, call {position + 1} of the {len(calls)} in its chunk"
            if process != generation():  # the call has forked: this is its child
                end_forked_process(raised)
            errors[position] = pack_error(as_task_error(raised, "", label), label, heading=which)
        values.append(value)
    packet, failed = pack_values(values)
    for position, error in failed.items():
        named = as_task_error(error, SENDING_RESULT, label, values[position])
        errors[position] = pack_error(named, label)
    return Chunk(packet, errors)

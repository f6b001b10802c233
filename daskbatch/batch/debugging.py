"""Runs a failed task again in the user's process, under a debugger where there is a terminal.

Called in the user's thread.
"""

from __future__ import annotations

import asyncio
import sys
from types import CoroutineType, TracebackType
from typing import Any

from daskbatch.batch.result import error_line
from daskbatch.cluster.session import Session
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.recovery import value_lost
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import LifecycleError
from daskbatch.serialization import pickling
from daskbatch.serialization.tracebacks import is_hidden


def run_here(record: TaskRecord, session: Session, dispatcher: Dispatcher) -> Any:
    """Call the function of a failed task in this process; return what it returns.

    Parameters
    ----------
    record : TaskRecord
        The task.
    session, dispatcher : Session, Dispatcher
        Those of the client that made it.

    Raises
    ------
    LifecycleError
        The task has not failed by itself.
    Exception
        What the function raises; or the task's `SerializationError`, if it cannot be called.
    """
    if record.phase != Phase.FAILED or record.call is None:
        advice = "only a task that has failed can be debugged"
        if record.phase == Phase.SKIPPED and record.root_failure is not None:
            root = record.root_failure
            advice = f"debug {root.label}, {error_line(root, dispatcher)}"
        raise LifecycleError(f"task {record.label} is {record.phase.name.lower()}: {advice}")
    dispatcher.table.failures.look_at(record)
    if record.call.failure is not None:
        raise record.call.failure
    values = [_argument(producer, part, dispatcher) for producer, part in record.call.references]
    buffers = [buffer.content for buffer in record.call.buffers]
    args, kwargs = pickling.unpack(record.call.data, values, buffers)
    try:
        value = record.call.function(*args, **kwargs)
        return asyncio.run(value) if type(value) is CoroutineType else value
    except Exception as error:
        if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
            _show_in_debugger(error)
        raise


def _argument(producer: TaskRecord, part: str, dispatcher: Dispatcher) -> bytes | str:
    """Return the pickled result of a task, or its output, from its worker if necessary."""
    if part == "result":
        while producer.value is None and producer.block is not None:
            dispatcher.fetch(producer)
        if producer.value is not None:
            return producer.value
    else:
        while producer.output is None and producer.block is not None:
            dispatcher.fetch(producer)
        if producer.output is not None:
            return producer.output[part == "stderr"]
    raise value_lost(producer)


def _show_in_debugger(error: Exception) -> None:
    import pdb  # few programs need it

    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        if not is_hidden(trace.tb_frame.f_code.co_filename):
            break
        trace = trace.tb_next
    pdb.post_mortem(trace)

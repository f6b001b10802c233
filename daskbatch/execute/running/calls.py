"""The records of calls of methods on workers: what to call, and how each call has ended.

The records never change, so any thread may use them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from enum import Enum
from types import CodeType, MethodType
from typing import Any, NamedTuple

from daskbatch.describe.spec import family_of
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.serialization.safe_text import attribute


class EngineCall(NamedTuple):
    """A method to call on a worker.

    Parameters
    ----------
    method, args, kwargs
        The method and its arguments.
    name : str
        The name of the call in messages.
    kind : hashable
        Calls of the same kind are expected to take the same time.
    on_over : callable
        Called without arguments when the call is over. It must not block.
    """

    method: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str
    kind: Hashable
    on_over: Callable[[], None]


class CallSequence(NamedTuple):
    """Calls that one worker runs one after another.

    Parameters
    ----------
    worker : str
        The address of the worker.
    queue : hashable
        Identifies the queue of the worker. The worker runs calls of different queues at the same
        time if it can.
    releases_slot : bool
        Whether the calls release the slot of the worker while they run; see `RemoteMethod`.
    before : sequence of TaskRecord
        Calls of the same queue that were started earlier: the first call runs after them.
    calls : list of EngineCall
        The calls, in the order in which they run.
    """

    worker: str
    queue: Hashable
    releases_slot: bool
    before: Sequence[TaskRecord]
    calls: list[EngineCall]


class Ending(Enum):
    """The ways in which a call can end."""

    RETURNED = "returned"
    RAISED = "raised"
    CANCELLED = "cancelled"
    #: The call was lost with its worker, or did not reach it.
    LOST = "lost"
    #: The connection to the cluster has ended.
    SERVICE_LOST = "service lost"


class CallOutcome(NamedTuple):
    """The outcome of a call that is over.

    Parameters
    ----------
    ending : Ending
        How the call has ended.
    value : object
        The value that it returned, or None.
    error : Exception, optional
        The exception that it raised, or the exception that explains why it did not complete.
    seconds : float
        The duration of the call.
    deaths : int
        How many workers have died while they ran the call.
    large : bool
        Whether the value is large: more than 256 KiB when pickled.
    """

    ending: Ending
    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    deaths: int = 0
    large: bool = False


def kind_of(method: Callable[..., Any]) -> Hashable:
    """Return the kind of the calls of a method; calls of one kind take about the same time."""
    code = attribute(method.__func__ if type(method) is MethodType else method, "__code__")
    return code if type(code) is CodeType else family_of(method)

"""Finds Dask futures among the arguments of tasks, and makes the tasks that fetch their results.

The pickler finds a future, as it finds a task: `copyreg` has it call `_reduce`. Another task, the
*source*, takes the place of the future. It runs once the future is done, where the value is, and
returns the value. Any thread may call all functions.
"""

from __future__ import annotations

import copyreg
import itertools
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

from distributed import Client, Future

from daskbatch.describe.future_source import FutureSource
from daskbatch.describe.spec import Call, Options
from daskbatch.dispatch.future_sources import FutureSources
from daskbatch.dispatch.placer import pickle_functions
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import GraphError
from daskbatch.serialization import pickling
from daskbatch.worker.future_value import future_value


def _reduce(future: Future) -> Any:
    """Return what pickle is to write for a Dask future: among arguments, a placeholder."""
    return pickling.reference((future, "result")) or future.__reduce__()


copyreg.pickle(Future, _reduce)


class FutureArguments:
    """Makes the sources of one client. Any thread may use it.

    Parameters
    ----------
    client : Client
        The Dask client by which the tasks are started.
    numbers : iterator of int
        Yields the numbers of the tasks.
    started : FutureSources
        The sources that were started.
    """

    def __init__(self, client: Client, numbers: Iterator[int], started: FutureSources) -> None:
        self._started = started
        self._client = client
        self._numbers = numbers
        #: The sources, by the ids of their `Future` objects, which exist as long as the sources.
        self._sources: WeakValueDictionary[int, TaskRecord] = WeakValueDictionary()

    def with_sources(self, call: Call, client_id: str, label: str) -> Call:
        """Return a call whose Dask futures are replaced by tasks that fetch their results.

        Parameters
        ----------
        call : Call
            The call, with references to tasks and futures.
        client_id : str
            The id that the tasks of this client carry.
        label : str
            What messages call the task.

        Raises
        ------
        GraphError
            A future belongs to another cluster.
        """
        if all(type(target) is TaskRecord for target, _ in call.references):
            return call
        references = tuple(
            (self._source(target, client_id, label), part)
            if isinstance(target, Future)
            else (target, part)
            for target, part in call.references
        )
        return call._replace(references=references)

    def _source(self, future: Future, client_id: str, label: str) -> TaskRecord:
        """Return the task that fetches the result of a future; tasks share it."""
        self._require_same_cluster(future, label)
        found = self._sources.get(id(future))
        if found is not None:
            made = found.options.future
            assert made is not None
            if made.future is future and not (made.abandoned or found.unsuccessful):
                return found
        return self._make(future, client_id)

    def _make(self, future: Future, client_id: str) -> TaskRecord:
        def renew() -> TaskRecord:
            return self._make(future, client_id)

        source = FutureSource(future.key, future, renew)
        data = pickling.dumps_plain(((pickling.dumps_plain(future.key),), {}))
        call = Call(future_value, ("Dask future", _prefix(future.key)), data)
        name = f"Dask future {_name(future.key)}"
        record = TaskRecord(client_id, next(self._numbers), name, call, Options(future=source))
        pickle_functions([record])
        self._started.in_use = True
        self._sources[id(future)] = record
        return record

    def _require_same_cluster(self, future: Future, label: str) -> None:
        client = future.client
        if client is None or client is self._client or client.scheduler is None:
            return  # if its client was closed, the future is cancelled
        ours, other = (_scheduler_of(each) for each in (self._client, client))
        if ours != other and ours[0] and other[0]:
            raise GraphError(
                f"task {label} takes the Dask future {_name(future.key)} of the cluster "
                f"{other[1]}, but the Batch runs on {ours[1]}: give the future's result() in "
                "place of the future"
            )


def _scheduler_of(client: Client) -> tuple[str, str]:
    """Return the id and the address of the scheduler that a client is connected to."""
    return str(client._scheduler_identity.get("id", "")), str(client.scheduler.address)


def _name(key: Any) -> str:
    """Return a Dask key in messages."""
    text = key if isinstance(key, str) else str(key)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _prefix(key: Any) -> str:
    """Return what the keys of one kind of Dask tasks begin with."""
    first = next(itertools.islice(key, 1), "") if isinstance(key, tuple) else key
    return str(first).rpartition("-")[0]

"""The distributed queue `Queue`, which tasks and clients share.

It has the interface of `queue.Queue`, and raises `queue.Empty` and `queue.Full`. Any number of
threads may use one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from html import escape
from pathlib import Path
from queue import Empty, Full
from time import monotonic
from typing import Any

from daskbatch.describe.access import CommunicationDomain, CommunicationObject, Mode
from daskbatch.describe.values import whole_number_of
from daskbatch.errors import SerializationError, SpecError
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.shared.creation import (
    ClusterArgument,
    create_filled,
    create_or_open,
    owner_context,
)
from daskbatch.shared.data.codec import pack, unpack
from daskbatch.shared.data.messages import ObjectOptions
from daskbatch.shared.data.snapshot import check_snapshot
from daskbatch.shared.proxy import ObjectProxy, proxy_of
from daskbatch.shared.queue_file import load_items, save_items
from daskbatch.shared.store import operations
from daskbatch.shared.store.operations import Operation
from daskbatch.shared.waiting import await_answer
from daskbatch.timeouts import parse_timeout

#: The order of accesses to the queue: as for files.
_DOMAIN = CommunicationDomain()


#: The module is imported with the first strict task of this process.
_STRICT_ACCESS = "daskbatch.worker.execution.strict_access"


class Queue:
    """A queue that the client, tasks and their child processes share: first in, first out.

    It lives on one worker. If that leaves in good order, the queue moves to another one; if it
    dies, the queue is lost, unless it has copies. Items are copied when they are put. A task that
    waits for an item, or for room, releases its worker slot meanwhile; a consumer that dies takes
    no item with it.

    Parameters
    ----------
    cluster : str, distributed.Client, cluster object or Batch, optional
        Where it is created; by default the cluster that this process is connected to.
    maxsize : int
        Maximum number of items; 0 means unlimited. It may be exceeded temporarily by items returned
        to the queue because their consumer died before acknowledging them.
    replicas : int
        On how many workers it is. With 2, nothing is lost when one worker dies, and the queue goes
        on. While there are fewer workers on a cluster that grows, it has fewer copies.
    name : str, optional
        Name under which other clients of the cluster can open the same queue. Lifetime: as that of
        a `DDict`.

    Raises
    ------
    SpecError
        A parameter is wrong. It is a `ValueError`.
    LifecycleError
        No `cluster` is given, and this process is connected to none. Of all operations: the queue
        has been closed.
    ServiceLost
        The cluster cannot be reached. Of all operations: the worker of the queue has died.

    Notes
    -----
    Any number of threads, tasks and processes may use it at the same time. Each operation is atomic
    and costs one request to the worker that has the queue; a `put`, `get` or `join` that waits
    costs one every 5 seconds.

    Examples
    --------
    >>> queue = batch.queue(maxsize=5, name="numbers")
    >>> queue.name, queue.empty(), queue.full()
    ('numbers', True, False)
    >>> def produce(queue, count):
    ...     for number in range(count):
    ...         queue.put(number)
    >>> batch.function(produce, queue, 3).start()
    >>> [queue.get() for _ in range(3)]
    [0, 1, 2]
    >>> queue.close()
    """

    def __init__(
        self,
        cluster: ClusterArgument = None,
        maxsize: int = 0,
        *,
        replicas: int = 1,
        name: str | None = None,
    ) -> None:
        size, copies = whole_number_of(maxsize), whole_number_of(replicas)
        if size is None:
            raise SpecError(f"maxsize= must be a whole number, not {safe_repr(maxsize)}")
        if copies is None or copies < 1:
            raise SpecError(f"replicas= must be a whole number from 1, not {safe_repr(replicas)}")
        options = ObjectOptions("queue", 1, replicas=copies, maxsize=max(0, size))
        with owner_context(cluster, name) as context:
            proxy = create_or_open(context, options, name)
        self._attach(proxy, context.before_access)

    def _attach(self, proxy: ObjectProxy, before_access: Callable[..., None] | None = None) -> None:
        """Initialize this object for an existing queue; also called when it is unpickled."""
        self._proxy = proxy
        self._before_access = before_access

    def _call(self, operation: Operation, *arguments: Any, wait: float = 0.0) -> Any:
        if sys.modules.get(_STRICT_ACCESS) is not None:  # a strict task may run here
            from daskbatch.worker.execution.strict_access import check_shared

            check_shared("write", f"queue-{self._proxy.uid}", (), self._proxy.description)
        return self._proxy.call(0, operation, *arguments, wait=wait)

    def _start_conflicting_tasks(self) -> None:
        """Start the background tasks of this Batch that use the queue.

        It does not wait for them: they may wait themselves for what is done with the queue next.
        """
        if self._before_access is not None:
            self._before_access(Mode.WRITE, self, (), wait=False)

    def _await(
        self, timeout: float | None, operation: Operation, *arguments: Any, miss: Any
    ) -> Any:
        """Repeat an operation until it succeeds; returns `miss` if it does not within `timeout`."""
        deadline = None if timeout is None else monotonic() + timeout

        def ask(seconds: float) -> Any:
            found = self._call(operation, *arguments, wait=seconds)
            if found is miss:
                self._start_conflicting_tasks()
            return found

        return await_answer(ask, deadline, miss)

    # -- items ----------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | timedelta | None = None) -> None:
        """Append an item.

        Parameters
        ----------
        item : object
            Any object that can be pickled.
        block : bool
            Whether to wait until there is room.
        timeout : float or timedelta, optional
            Seconds to wait at most.

        Raises
        ------
        queue.Full
            There is no room, or not in time.
        SerializationError
            The item cannot be pickled.
        ValueError
            `timeout` is negative, or neither a number nor a `timedelta`.

        Examples
        --------
        >>> queue = batch.queue(maxsize=1)
        >>> queue.put("a")
        >>> queue.full()
        True
        """
        seconds = _seconds_to_wait(block, timeout)
        packed = pack(item)
        if not self._await(seconds, operations.QUEUE_PUT, packed, miss=False):
            raise Full

    def get(self, block: bool = True, timeout: float | timedelta | None = None) -> Any:
        """Remove the first item, and return it.

        Parameters
        ----------
        block : bool
            Whether to wait until there is an item.
        timeout : float or timedelta, optional
            Seconds to wait at most.

        Raises
        ------
        queue.Empty
            There is no item, or not in time.
        SerializationError
            The item cannot be unpickled here. It is gone, since any other consumer would most
            likely fail in the same way.
        ValueError
            `timeout` is negative, or neither a number nor a `timedelta`.

        Examples
        --------
        >>> queue = batch.queue()
        >>> queue.put("a")
        >>> queue.get()
        'a'
        """
        seconds = _seconds_to_wait(block, timeout)
        found = self._await(seconds, operations.QUEUE_GET, miss=None)
        if found is None:
            raise Empty
        try:
            return unpack(found)
        except SerializationError as error:
            raise SerializationError(
                f"{error}; it has been taken out of {self._proxy.description}, and is lost"
            ) from error.__cause__

    def put_nowait(self, item: Any) -> None:
        """Append an item if there is room, or raise `queue.Full`; see `put`.

        Examples
        --------
        >>> queue = batch.queue()
        >>> queue.put_nowait("a")
        >>> queue.get_nowait()
        'a'
        """
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """Remove the first item and return it, or raise `queue.Empty`; see `get`.

        Examples
        --------
        >>> try:
        ...     batch.queue().get_nowait()
        ... except Empty:
        ...     print("nothing is there")
        nothing is there
        """
        return self.get(block=False)

    def qsize(self) -> int:
        """Return the present number of items; others may put and get items meanwhile.

        Examples
        --------
        >>> batch.queue().qsize()
        0
        """
        self._start_conflicting_tasks()
        return int(self._call(operations.QSIZE))

    def empty(self) -> bool:
        """Return whether there is no item now; see `qsize`."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Return whether there is no room now; always False without a `maxsize`. See `qsize`."""
        size = self.qsize()
        return 0 < self._proxy.info.options.maxsize <= size

    def task_done(self) -> None:
        """Report that the work on an item is done; see `join`.

        Raises
        ------
        ValueError
            It was called more often than items were put in.

        Examples
        --------
        >>> queue = batch.queue()
        >>> queue.put("a")
        >>> item = queue.get()
        >>> queue.task_done()
        >>> queue.join()
        """
        if not self._call(operations.TASK_DONE):
            raise ValueError("task_done() was called more often than items were put in")

    def join(self, timeout: float | timedelta | None = None) -> None:
        """Wait until `task_done` was called for each item that was put in.

        Parameters
        ----------
        timeout : float or timedelta, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            Some items are not done in time.

        Examples
        --------
        >>> queue = batch.queue()
        >>> queue.join()
        """
        seconds = parse_timeout(timeout)
        if not self._await(seconds, operations.JOIN, miss=False):
            raise TimeoutError(
                f"items of {self._proxy.description} are not done after {seconds:g} s"
            )

    def stats(self) -> dict[str, Any]:
        """Return the worker, the items, the bytes in memory and on disk, and the copies.

        `copies` is the number of other workers that have the queue, too, and `missing` how many
        there are to be more: until workers join, or the copies are made.

        Examples
        --------
        >>> queue = batch.queue()
        >>> queue.put("a")
        >>> queue.stats()["items"], queue.stats()["copies"], queue.stats()["missing"]
        (1, 0, 0)
        """
        self._proxy.refresh()
        found = self._call(operations.QUEUE_STATS)
        return {**self._proxy.describe_layout(0), **found}

    def save(self, path: str | Path) -> None:
        """Write the items that are in the queue at one moment to a file; they stay in the queue.

        An item that a consumer has received, or is receiving, is not written.

        Parameters
        ----------
        path : str or Path
            The file. It is written as a whole or not at all: an old file stays until the new one
            is complete.

        Raises
        ------
        OSError
            The file cannot be written, or the path names something other than a regular file.
        ServiceLost
            The queue is lost, or moved during each of 3 attempts.

        Examples
        --------
        >>> import tempfile
        >>> queue = batch.queue()
        >>> queue.put("a")
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     queue.save(Path(directory) / "state")
        ...     Queue.load(Path(directory) / "state", batch).get()
        'a'
        """
        self._start_conflicting_tasks()
        save_items(self._proxy, path)

    @classmethod
    def load(cls, path: str | Path, cluster: ClusterArgument = None, **options: Any) -> Queue:
        """Create a queue with the items that `save` has written.

        Parameters
        ----------
        path : str or Path
            The file.
        cluster, **options
            See `Queue`. The name must not be in use, and a `maxsize` must have room for all items.

        Returns
        -------
        Queue
            A new queue.

        Raises
        ------
        SpecError
            `save` has not written the file, or it is damaged; the name is in use; or there are more
            items than `maxsize`.
        OSError
            The file cannot be read.
        LifecycleError, ServiceLost
            See `Queue`.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     batch.queue().save(Path(directory) / "nothing")
        ...     Queue.load(Path(directory) / "nothing", batch).qsize()
        0
        """
        check_snapshot(path)
        return create_filled(
            cluster,
            options.get("name"),
            lambda context: cls(context, **options),
            lambda made: load_items(made._proxy, path),
        )

    def close(self) -> None:
        """End the queue for all its users; its items are lost.

        Waiting tasks are woken; these and any later use raise `LifecycleError`. To close a queue
        again has no effect.
        """
        self._proxy.close()

    def __enter__(self) -> Queue:
        """Return the queue itself, which ends with the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the queue, for all its users."""
        self.close()

    # -- identity -------------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """The name, or None."""
        return self._proxy.info.name

    def __eq__(self, other: object) -> bool:
        """Return whether it is the same queue."""
        return isinstance(other, Queue) and other._proxy.uid == self._proxy.uid

    def __hash__(self) -> int:
        return hash(self._proxy.uid)

    def __batch_channels__(
        self, channels: tuple[Any, ...]
    ) -> tuple[CommunicationObject, tuple[Any, ...]]:
        """Return what `Batch.read` and `Batch.write` declare: this queue as a whole."""
        if channels:
            raise SpecError("a Queue is read and written as a whole: it has no channels")
        return CommunicationObject(_DOMAIN, self._proxy.access_name("queue")), ()

    def __reduce__(self) -> tuple[Callable[..., Queue], tuple[Any, ...]]:
        return _unpickle, (self._proxy.scheduler, self._proxy.uid)

    def __repr__(self) -> str:
        return f"<{self._proxy.description}>"

    def _repr_html_(self) -> str:
        stats, layout = self._call(operations.QUEUE_STATS), self._proxy.layout(0)
        return (
            f"<table><caption>{escape(self._proxy.description)}</caption><thead><tr>"
            "<th>worker</th><th>items</th><th>bytes in memory</th><th>bytes on disk</th></tr>"
            f"</thead><tbody><tr><td>{escape(layout.replicas[0].worker)}</td>"
            f"<td>{stats['items']:,}</td><td>{stats['bytes']:,}</td>"
            f"<td>{stats['spilled']:,}</td></tr></tbody></table>"
        )


def _seconds_to_wait(block: bool, timeout: float | timedelta | None) -> float | None:
    if not block:
        return 0.0
    seconds = parse_timeout(timeout)
    if isinstance(timeout, (int, float)) and timeout < 0:
        raise ValueError(f"timeout= must not be negative, and is {safe_repr(timeout)}")
    return seconds


def _unpickle(scheduler: str, uid: str) -> Queue:
    """Return the object for a pickled reference."""
    made = Queue.__new__(Queue)
    made._attach(proxy_of(scheduler, uid))
    return made

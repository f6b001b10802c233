"""The queue that tasks and clients share.

Does not know where its items are, nor how they are asked for; `shared` does.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from html import escape
from queue import Empty, Full
from time import monotonic
from typing import Any

from daskbatch.describe.access import CommunicationDomain, CommunicationObject, Mode
from daskbatch.errors import SerializationError, SpecError
from daskbatch.shared.creation import OwnerContext, Where, at_home, open_shared
from daskbatch.shared.data.codec import pack, unpack
from daskbatch.shared.data.messages import ObjectOptions
from daskbatch.shared.proxy import ObjectProxy, handle_of
from daskbatch.shared.waiting import awaited
from daskbatch.timeouts import parse_timeout

_DOMAIN = CommunicationDomain()


class Queue:
    """A queue that the client, tasks and their child processes share: first in, first out.

    It lives on one worker, and is lost with it. What is put in is copied. A task that waits for
    an item, or for room, leaves its slot to others meanwhile; who dies waiting takes no item.

    Parameters
    ----------
    cluster : str, distributed.Client, cluster object or Batch, optional
        Where it is made; by default the cluster that this process is connected to.
    maxsize : int
        How many items there may be; 0 is no limit. Those that come back, since who took them has
        died before they came there, may be more.
    name : str, optional
        The same name on one cluster is the same queue. What a Batch has made ends with the Batch;
        else one with a name is there until it is closed, and one without ends with the client that
        has made it.

    Raises
    ------
    SpecError
        A parameter is wrong. It is a `ValueError`.
    LifecycleError
        There is no `cluster`, and this process is connected to none; later, of whatever is done
        with it: it has been closed.
    ServiceLost
        The cluster cannot be reached; later: the worker that had the queue has died.

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

    def __init__(self, cluster: Where = None, maxsize: int = 0, *, name: str | None = None) -> None:
        if not isinstance(maxsize, int) or isinstance(maxsize, bool):
            raise SpecError(f"maxsize= must be a whole number, not {maxsize!r}")
        options = ObjectOptions("queue", 1, maxsize=max(0, maxsize))
        with at_home(cluster, name) as home:
            self._be(open_shared(home, options, name), home)

    def _be(self, handle: ObjectProxy, home: OwnerContext | None = None) -> None:
        self._handle = handle
        self._touched = None if home is None else home.touch

    def _call(self, operation: str, *arguments: Any, **times: Any) -> Any:
        return self._handle.call(0, operation, *arguments, **times)

    def _await_conflicting_tasks(self) -> None:
        """Have those template tasks started that may be waited for here: whatever they do with it.

        Not more: they may wait for what is done here next.
        """
        if self._touched is not None:
            self._touched(Mode.WRITE, self, (), wait=False)

    def _until(
        self, timeout: float | None, operation: str, *arguments: Any, miss: Any = None
    ) -> Any:
        """Have something done as soon as it can be; gives `miss` if it cannot in time."""
        deadline = None if timeout is None else monotonic() + timeout

        def ask(seconds: float) -> Any:
            found = self._call(operation, *arguments, wait=seconds)
            if found is miss:
                self._await_conflicting_tasks()
            return found

        return awaited(ask, deadline, miss)

    # -- items ----------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | timedelta | None = None) -> None:
        """Put an item behind the others.

        Parameters
        ----------
        item : object
            Whatever pickles.
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
            `timeout` is negative, or no span of time.

        Examples
        --------
        >>> queue = batch.queue(maxsize=1)
        >>> queue.put("a")
        >>> queue.full()
        True
        """
        seconds = _seconds(block, timeout)
        packed = pack(item)
        if not self._until(seconds, "put", packed, miss=False):
            raise Full

    def get(self, block: bool = True, timeout: float | timedelta | None = None) -> Any:
        """Take the first item out.

        Parameters
        ----------
        block : bool
            Whether to wait until there is one.
        timeout : float or timedelta, optional
            Seconds to wait at most.

        Raises
        ------
        queue.Empty
            There is none, or not in time.
        SerializationError
            It cannot be unpickled here. It is gone: all who take it would meet the same.
        ValueError
            `timeout` is negative, or no span of time.

        Examples
        --------
        >>> queue = batch.queue()
        >>> queue.put("a")
        >>> queue.get()
        'a'
        """
        seconds = _seconds(block, timeout)
        found = self._until(seconds, "get")
        if found is None:
            raise Empty
        try:
            return unpack(found)
        except SerializationError as error:
            raise SerializationError(
                f"{error}; it has been taken out of {self._handle.what}, and is lost"
            ) from error.__cause__

    def put_nowait(self, item: Any) -> None:
        """Put an item in if there is room, or raise `queue.Full`; see `put`.

        Examples
        --------
        >>> queue = batch.queue()
        >>> queue.put_nowait("a")
        >>> queue.get_nowait()
        'a'
        """
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """Take an item out if there is one, or raise `queue.Empty`; see `get`.

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
        """Say how many items there are now; others may put in and take out meanwhile.

        Examples
        --------
        >>> batch.queue().qsize()
        0
        """
        self._await_conflicting_tasks()
        return int(self._call("qsize"))

    def empty(self) -> bool:
        """Say whether there is no item now; see `qsize`."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Say whether there is no room now, as there always is without a `maxsize`."""
        size = self.qsize()
        return 0 < self._handle.placed.options.maxsize <= size

    def task_done(self) -> None:
        """Say that what an item was taken out for has been done; see `join`.

        Raises
        ------
        ValueError
            It was said more often than there were items.

        Examples
        --------
        >>> queue = batch.queue()
        >>> queue.put("a")
        >>> item = queue.get()
        >>> queue.task_done()
        >>> queue.join()
        """
        if not self._call("task_done"):
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
            The time is up first.

        Examples
        --------
        >>> queue = batch.queue()
        >>> queue.join()
        """
        seconds = parse_timeout(timeout)
        if not self._until(seconds, "join", miss=False):
            raise TimeoutError(f"items of {self._handle.what} are not done after {seconds:g} s")

    def close(self) -> None:
        """End it, for all who use it; what is in it is gone, and who waits is told.

        Any later use is a `LifecycleError`, but to close it again.
        """
        self._handle.close()

    def __enter__(self) -> Queue:
        """Give the queue itself, which ends with the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it, for all who use it."""
        self.close()

    # -- what it is -----------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """What it is called, if it has a name."""
        return self._handle.placed.name

    def __eq__(self, other: object) -> bool:
        """Say whether it is the same queue."""
        return isinstance(other, Queue) and other._handle.uid == self._handle.uid

    def __hash__(self) -> int:
        return hash(self._handle.uid)

    def __batch_channels__(
        self, channels: tuple[Any, ...]
    ) -> tuple[CommunicationObject, tuple[Any, ...]]:
        """Be read and written by tasks, as a whole; see `Batch.read`."""
        if channels:
            raise SpecError("a Queue is read and written as a whole: it has no channels")
        return CommunicationObject(_DOMAIN, f"queue-{self._handle.uid}"), ()

    def __reduce__(self) -> tuple[Callable[..., Queue], tuple[Any, ...]]:
        return _attached, (self._handle.scheduler, self._handle.uid)

    def __repr__(self) -> str:
        return f"<{self._handle.what}>"

    def _repr_html_(self) -> str:
        stats, layout = self._call("stats"), self._handle.layout(0)
        return (
            f"<table><caption>{escape(self._handle.what)}</caption><thead><tr><th>worker</th>"
            "<th>items</th><th>bytes in memory</th><th>bytes on disk</th></tr></thead><tbody>"
            f"<tr><td>{escape(layout.members[0].worker)}</td><td>{stats['items']:,}</td>"
            f"<td>{stats['bytes']:,}</td><td>{stats['spilled']:,}</td></tr></tbody></table>"
        )


def _seconds(block: bool, timeout: float | timedelta | None) -> float | None:
    if not block:
        return 0.0
    seconds = parse_timeout(timeout)
    if isinstance(timeout, (int, float)) and timeout < 0:
        raise ValueError(f"timeout= must not be negative, and is {timeout!r}")
    return seconds


def _attached(scheduler: str, uid: str) -> Queue:
    """Make what a pickled queue becomes."""
    made = Queue.__new__(Queue)
    made._be(handle_of(scheduler, uid))
    return made

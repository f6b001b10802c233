"""The part of a Batch that makes dictionaries and queues, and knows which tasks must come first.

Does not know where they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from daskbatch.batch.identity import Identity
from daskbatch.cluster.session import Session
from daskbatch.describe.access import Access, Mode, make_access
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.plan.program import overlap

if TYPE_CHECKING:
    from daskbatch.shared.creation import OwnerContext
    from daskbatch.shared.ddict import DDict
    from daskbatch.shared.queue import Queue


class SharedMaker:
    """What a Batch is to dictionaries and queues."""

    if TYPE_CHECKING:
        _identity: Identity

        @property
        def _session(self) -> Session: ...

        def _require_open(self) -> None: ...

    def ddict(
        self,
        *,
        shards: int | None = None,
        replicas: int = 1,
        wait_for_keys: bool = False,
        timeout: float | timedelta | None = None,
        memory_limit: int | str | None = None,
        name: str | None = None,
    ) -> DDict:
        """Make a dictionary on the workers of this Batch; it ends with the Batch.

        Before it is read or written here, those template tasks are run that must be over then.

        Parameters
        ----------
        shards, replicas, wait_for_keys, timeout, memory_limit, name
            See `DDict`.

        Raises
        ------
        SpecError
            A parameter is wrong, or there are fewer workers than replicas.
        SubmitAfterCloseError
            The Batch has been closed.
        ServiceLost
            The cluster is gone, or has no worker.

        Examples
        --------
        >>> d = batch.ddict()
        >>> task = batch.function(d.update, {"a": 1}, writes=[batch.write(d, "a")])
        >>> task.run()
        >>> d["a"]
        1
        """
        from daskbatch.shared.ddict import DDict  # which few need

        return DDict(
            self._home(),
            shards=shards,
            replicas=replicas,
            wait_for_keys=wait_for_keys,
            timeout=timeout,
            memory_limit=memory_limit,
            name=name,
        )

    def queue(self, maxsize: int = 0, *, name: str | None = None) -> Queue:
        """Make a queue on a worker of this Batch; it ends with the Batch.

        Who finds it empty or full here, asks for its size or joins it, has those template tasks
        started that read or write it, but does not wait until they are over.

        Parameters
        ----------
        maxsize, name
            See `Queue`.

        Raises
        ------
        SpecError, SubmitAfterCloseError, ServiceLost
            As by `ddict`.

        Examples
        --------
        >>> queue = batch.queue(maxsize=10)
        >>> batch.function(queue.put, "a").start()
        >>> queue.get()
        'a'
        """
        from daskbatch.shared.queue import Queue

        return Queue(self._home(), maxsize, name=name)

    def _home(self) -> OwnerContext:
        from daskbatch.shared.creation import OwnerContext

        self._require_open()
        session = self._session
        session.require_alive()
        touch = weakref.WeakMethod(self._await_conflicting_shared)

        def touched(mode: Mode, obj: DDict | Queue, keys: Sequence[Any], wait: bool = True) -> None:
            method = touch()
            if method is not None:
                method(mode, obj, keys, wait)

        return OwnerContext(session.client, session.batch, touched)

    def _await_conflicting_shared(
        self, mode: Mode, obj: DDict | Queue, keys: Sequence[Any], wait: bool
    ) -> None:
        """Start the template tasks that must be over before a key is read or written here.

        And wait for them; but not for those that use a queue: they may themselves wait for what
        is done with it here.
        """
        session = self._identity.known()
        if session is None or not session.background.has_queued:
            return
        access = make_access(mode, obj, keys, "")
        found = session.background.unfinished_queued(lambda record: is_in_the_way(record, access))
        if found and wait:
            session.dispatcher.outcomes.wait(lambda: all(record.over for record in found))

    def _await_conflicting_tasks(self, access: Access) -> None:
        """Wait for the tasks that must be over before something is read or written here."""
        session = self._identity.known()
        if session is None:
            return

        found = session.background.unfinished(lambda record: is_in_the_way(record, access))
        session.dispatcher.outcomes.wait(lambda: all(record.over for record in found))


def is_in_the_way(record: TaskRecord, access: Access) -> bool:
    """Say whether a task must be over before something is read or written here."""
    channels = record.writes if access.mode is Mode.READ else record.writes + record.reads
    return overlap(access.channels, channels)

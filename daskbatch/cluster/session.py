"""One client's stay on a cluster: from the connection to the end.

Does not know tasks; it puts together what does, and takes it apart again.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import sys
import threading
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence

from distributed import Client
from distributed.deploy import Cluster

from daskbatch import config
from daskbatch.cluster.connection import Connection, connect, leave_to_parent
from daskbatch.cluster.dask_backend import ClusterBackend, WorkerListener
from daskbatch.cluster.shared_connection import SharedConnection, take_share
from daskbatch.describe.spec import Options
from daskbatch.dispatch.background import Background
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.requirements import Capacity, unmet
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.errors import ServiceLost, SpecError
from daskbatch.worker.execution.task_context import TaskContext
from daskbatch.worker.plugin import run_on_worker

_logger = logging.getLogger("daskbatch")

#: How long tasks that are stopped are waited for. Seconds.
_STOP_SECONDS = 30.0


class Session:
    """A client of a Batch: a dispatcher on a cluster, and a place among the Batch's clients.

    Parameters
    ----------
    batch : str
        The Batch.
    address : str, optional
        The scheduler, where others have made the Batch.
    within : Host, optional
        What the task has around it that is this client, and ends with it.
    connection : Connection, optional
        To the cluster, for the client that makes the Batch.
    grows : bool
        Whether the cluster may have more workers later.

    Raises
    ------
    ServiceLost
        There is no such Batch, or none any more.
    """

    def __init__(
        self,
        batch: str,
        address: str | None = None,
        within: TaskContext | None = None,
        connection: Connection | None = None,
        grows: bool = True,
    ) -> None:
        self.batch = batch
        #: Whether this client starts no more tasks.
        self.closed = False
        self._ended = False
        self._within = within
        self._has_left = False
        self._lock = threading.RLock()  # a finalizer may come in between
        self._connection = connection
        self.grows = grows if connection is None else connection.embedded is None
        self._shared: SharedConnection | None = None
        if connection is None:
            assert address is not None
            self._shared = take_share(address, self, keep=within is not None)
            self.client: Client = self._shared.client
            topic = f"daskbatch-{batch}-{uuid.uuid4().hex[:8]}"
        else:
            self.client = connection.client
            topic = f"daskbatch-{batch}"
        #: What its tasks are known by on the cluster.
        self.topic = topic
        try:
            key = None if within is None else within.key
            self._backend = ClusterBackend(self.client, topic, key)
            if connection is not None:
                self._backend.prepare()
            setting = Setting(
                topic=topic,
                entry=run_on_worker,
                budget=config.get_seconds("block-budget"),
                share_limit=config.get_bytes("share-limit"),
                inline_limit=config.get_bytes("inline-limit"),
                output_limit=config.get_bytes("output-limit"),
            )
            self.dispatcher = Dispatcher(self._backend, setting)
            self.dispatcher.outcomes.host = within
            founds = connection is not None
            if within is not None:
                # From here on it is ended with the task, whatever happens.
                within.guests[batch] = self
            #: Which client of the Batch this is: 0 has made it.
            self.number = self._backend.connect(self.dispatcher, batch, founds, self._on_loss)
        except BaseException as error:
            is_guest = within is not None and within.guests.get(batch) is self
            if is_guest and isinstance(error, Exception):
                assert within is not None
                del within.guests[batch]
                is_guest = False
            if not is_guest:
                self._disconnect()
            raise
        #: What its tasks belong to, and what they are counted by.
        self.home = batch if founds else f"{batch}-{self.number}"
        self.numbers = itertools.count()
        #: What it has not started yet.
        self.background = Background(self.home, self.dispatcher, lambda *some: self.submit(*some))
        if within is None:
            _open.add(self)
            _end_with_multiprocessing()

    def submit(self, records: Sequence[TaskRecord], name: str, group: Group | None) -> None:
        """Start tasks; see `Dispatcher.submit`.

        Raises
        ------
        SpecError
            One asks for what no worker has, and there will be no others.
        """
        asking = [
            record for record in records if record.options.resources or record.options.workers
        ]
        refused = _refused(asking, self._backend.capacities()) if asking else {}
        if refused and not self.grows:
            record, why = next(iter(refused.items()))
            raise SpecError(f"task {record.label} {why}")
        self.dispatcher.submit(records, name, group)
        if asking:
            self._look_after(asking, set(refused))

    def _look_after(self, records: Sequence[TaskRecord], unmet_before: set[TaskRecord]) -> None:
        """Refuse what no worker could run all the time between two looks: some come and go."""

        def look(workers: list[Capacity]) -> None:
            refused = _refused([c for c in records if c.phase == Phase.WAITING], workers)
            self.dispatcher.refuse({c: why for c, why in refused.items() if c in unmet_before})
            left = [record for record in records if not record.over]
            if left:
                self._look_after(left, set(refused))

        self._backend.capacities_later(config.get_seconds("unmet-timeout"), look)

    def require_alive(self) -> None:
        """Make sure that there is still a cluster, and a place in its Batch.

        Raises
        ------
        ServiceLost
            There is none.
        """
        self._backend.require_alive()

    @property
    def slots(self) -> int:
        """How many tasks run at once."""
        return self._backend.slots

    def watch_workers(self, watch: WorkerListener) -> None:
        """Tell an object, as long as it lives, when workers have come or gone."""
        self._backend.worker_watches.add(watch)

    def reserve_cores(self) -> None:
        """Have each worker offer as many cores as it has threads, as a resource."""
        self._backend.reserve_cores()

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def idle(self) -> bool:
        """Whether nothing that was started is left."""
        return not self.dispatcher.outcomes.left

    def lose(self, why: str) -> None:
        """Take in that the Batch has ended, or the connection has."""
        if hasattr(self, "_backend"):  # else it finds out at once, as it becomes a client
            self._backend.membership.lose(why)

    def _on_loss(self, error: ServiceLost) -> None:
        self.dispatcher.give_up(error)
        if self._shared is not None:
            # There is nothing more to be had: nor shall Dask try to connect again.
            self._disconnect()

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Start nothing more. Who has not made the Batch leaves it once all is over."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        if self._ended:
            return
        self.background.flush()
        for pool in self.background.gathering:
            pool.hurry()
        if self._shared is None:
            return
        self._backend.membership.say_closed()
        if self._within is None:
            _closing.add(self)
            self.dispatcher.outcomes.when_idle(self._leave)

    def _leave(self) -> None:
        if not self._ended:  # else its tasks were given up, and may still run
            self._backend.membership.say_idle()
        _closing.discard(self)

    def others_left(self, seconds: float | None) -> list[str]:
        """Wait for a time for all other clients; returns what there is to say of them."""
        return self._backend.membership.others_left(seconds)

    def end(self) -> None:
        """Give up what is not over, and leave the cluster; an embedded one ends."""
        with self._lock:
            if self._ended:
                return
            self._ended = self.closed = True
        _open.discard(self)
        _closing.discard(self)
        self.background.drop()
        idle = self.idle
        self.dispatcher.give_up()
        self._backend.disconnect(idle)
        self._disconnect()

    def _disconnect(self) -> None:
        if self._shared is not None:
            with self._lock:
                has_left, self._has_left = self._has_left, True
            if not has_left:
                self._shared.leave(self)
        elif self._connection is not None:
            self._connection.close()

    def abandon(self) -> None:
        """End from where one must not wait: a finalizer, which any thread may run."""
        if self._ended:
            return
        # To start what waits takes locks that a finalizer must not.
        self.background.backlog.forget()
        if self._shared is not None:
            # As if it had been closed: what it has started is worth no less for that.
            self.close()
            self.dispatcher.outcomes.when_idle(self._end_later)
            return
        self._backend.membership.give_up(idle=False, wait=False)
        assert self._connection is not None
        self._connection.close_in_background()

    def _end_later(self) -> None:
        # In a thread, since this may be Dask's event loop.
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and all with it
            threading.Thread(target=self.end, name="daskbatch-end").start()

    # -- a task that is a client; implements `running.Guest` ------------------------------

    def finish(self) -> None:
        """Come to the end with the task: wait for all that it has started."""
        self.close()
        self.dispatcher.outcomes.wait(lambda: self.idle)
        self.end()

    def give_up(self) -> None:
        """Stop what the task has started, since it has failed or is stopped itself."""
        with contextlib.suppress(Exception):
            self.background.drop()
            records = self.dispatcher.unfinished()
            self.dispatcher.cancel(records)
            # What comes after the task must not meet what the task has started.
            self.dispatcher.outcomes.wait(lambda: all(c.over for c in records), _STOP_SECONDS)
        self.end()


def make_session(
    batch: str,
    cluster: str | Client | Cluster | None,
    num_workers: int | None,
    directory: str,
    environment: Mapping[str, str] | None = None,
) -> Session:
    """Make a Batch, and be its first client.

    Parameters
    ----------
    batch : str
        What no other Batch has.
    cluster, num_workers
        See `daskbatch.Batch`.
    directory : str
        Where the workers of an embedded cluster work.
    environment : mapping, optional
        What is added to the environment of such workers.
    """
    connection = connect(cluster, num_workers, directory, environment)
    return Session(batch, connection=connection)


def _refused(records: Iterable[TaskRecord], workers: Sequence[Capacity]) -> dict[TaskRecord, str]:
    """Give the tasks that no worker can run, and why."""
    reasons: dict[Options, str | None] = {}
    for record in records:
        if record.options not in reasons:
            reasons[record.options] = unmet(record.options, workers)
    return {record: why for record in records if (why := reasons[record.options]) is not None}


#: A session ends with its Batch; what is left at exit is ended there.
_open: weakref.WeakSet[Session] = weakref.WeakSet()


def open_clients() -> list[Client]:
    """Give the Dask clients of the Batches that are open in this process."""
    return [session.client for session in _open if not session.ended]


#: Those that are closed, and have tasks left; their Batches may be gone.
_closing: set[Session] = set()

#: What a forked process has from its parent, and must leave alone: not even let go.
_inherited: list[Session] = []


def _forget() -> None:
    for session in _open:
        leave_to_parent(session.client)
    _inherited.extend(_open)
    _inherited.extend(_closing)
    _open.clear()
    _closing.clear()


os.register_at_fork(after_in_child=_forget)


@atexit.register
def _end_all() -> None:
    for session in {*_open, *_closing}:
        if session.closed and session.number:
            # What a closed client has started runs to its end; others may need it.
            with contextlib.suppress(KeyboardInterrupt):
                session.dispatcher.outcomes.wait(lambda each=session: each.idle)  # type: ignore[misc]
        left = session.dispatcher.outcomes.left + len(session.background.backlog)
        if left:
            _logger.warning(
                "%d tasks were given up, because the program ended; "
                "call close() and join() on a Batch to wait for its tasks",
                left,
            )
        session.end()


def _end_with_multiprocessing() -> None:
    """Have that done at the end of a process of `multiprocessing`, too, which knows no `atexit`."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is None or process is None or process.parent_process() is None:
        return
    key = "daskbatch", os.getpid()
    if key not in _hooked:
        _hooked.add(key)
        util.Finalize(None, _end_all, exitpriority=100)


_hooked: set[tuple[str, int]] = set()

"""Holds one client's stay on a cluster, from the connection to the end.

A `Session` puts together the connection, the backend, the dispatcher and the queued tasks of
one client of a Batch, and ends them in order. Any thread may use it.
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
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, thread_time
from typing import Any

from distributed import Client
from distributed.deploy import Cluster

from daskbatch import config
from daskbatch.cluster.connection import Connection, close_in_child, connect
from daskbatch.cluster.dask_backend import ClusterBackend, WorkerListener
from daskbatch.cluster.futures.future_arguments import FutureArguments
from daskbatch.cluster.growth.demand_report import DemandReport
from daskbatch.cluster.growth.missing_watch import watch_tasks
from daskbatch.cluster.growth.missing_workers import describe_missing, find_unfit
from daskbatch.cluster.growth.orders import are_workers_on_order
from daskbatch.cluster.loading import require_not_loading
from daskbatch.cluster.log_filters import omit_timeouts_of_stopped_loops
from daskbatch.cluster.shared_connection import SharedConnection, share_connection
from daskbatch.dispatch.background import Background
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.requirements import Capacity, refusals, requires_something
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.errors import ServiceLost, SpecError
from daskbatch.forking import after_fork, keep_inherited
from daskbatch.threads import start_unless_ending
from daskbatch.user_code import user_line
from daskbatch.worker.execution.client_names import make_client_id, make_topic
from daskbatch.worker.execution.output_stream import OutputPart
from daskbatch.worker.execution.surroundings import Surroundings
from daskbatch.worker.execution.task_context import TaskContext
from daskbatch.worker.plugin import run_on_worker

_logger = logging.getLogger("daskbatch")

#: For how long tasks that have not succeeded are collected before the dashboard learns of them.
_UNSUCCESSFUL_DELAY_SECONDS = 0.1

#: Which part of the processor time a client spends at most on summaries for the page /daskbatch,
#: and the longest pause for that: the first summary takes long, because it imports modules.
_MAX_SUMMARY_PART, _MAX_SUMMARY_PAUSE_SECONDS = 0.05, 5.0

#: How long a failed task waits for the tasks that it has started and that are being stopped.
_STOP_TIMEOUT_SECONDS = 30.0


class Session:
    """A client of a Batch: a dispatcher on a cluster, registered with the Batch.

    Any thread may use it. It is constructed completely before other threads can see it: the
    shared connection and the task's context receive it only then.

    Parameters
    ----------
    batch : str
        The Batch.
    address : str, optional
        The scheduler's address, if another client has created the Batch.
    within : TaskContext, optional
        The context of the task that is this client, which ends with the task.
    connection : Connection, optional
        The connection to the cluster, if this client creates the Batch.
    grows : bool
        Whether the cluster may have more workers later.
    resource : str
        The name under which the task's context has it.
    streams : bool
        Whether workers send what tasks write while they write it.
    directory : str, optional
        The working directory of functions; None for that of the workers.

    Raises
    ------
    ServiceLost
        The Batch does not exist or has ended, or no scheduler answers.
    """

    def __init__(
        self,
        batch: str,
        address: str | None = None,
        within: TaskContext | None = None,
        connection: Connection | None = None,
        grows: bool = True,
        resource: str = "",
        streams: bool = False,
        directory: str | None = None,
    ) -> None:
        self._resource = resource or batch
        self.batch = batch
        #: The working directory of functions; None for that of the workers.
        self.directory = directory
        #: Whether this client starts no more tasks.
        self.closed = False
        #: The line of the user's code that has made this client, if any; warnings may name it.
        self.origin = user_line()
        #: Whether the program has dropped the last object that used this client.
        self.abandoned = False
        #: Called before a task's client ends with the task, which has returned.
        self.before_end: Callable[[Session], None] | None = None
        #: Called after its end.
        self.at_end: list[Callable[[], None]] = []
        self._ended = False
        self._within = within
        self._released = False
        self._lock = threading.RLock()  # a finalizer may run while a thread holds it
        self._connection = connection
        embedded = None if connection is None else connection.embedded
        self.grows = grows if embedded is None else embedded.is_elastic
        self._shared: SharedConnection | None = None
        if connection is None:
            assert address is not None
            self._shared = share_connection(address, batch, expect_more=within is not None)
            self.client: Client = self._shared.client
            #: The name of this client in the messages about its tasks.
            self.topic = make_topic(batch, uuid.uuid4().hex[:8])
        else:
            self.client = connection.client
            self.topic = make_topic(batch)
        try:
            task_key = None if within is None else within.key
            self._backend = ClusterBackend(self.client, self.topic, task_key)
            self.dispatcher = Dispatcher(
                self._backend, _setting(self.topic, connection, streams, directory)
            )
            self.dispatcher.outcomes.context = within
            self._demand = DemandReport(self.client, self.topic, self.dispatcher.demand)
            self._missing = watch_tasks(self._backend, self.dispatcher)
            self.dispatcher.table.unsuccessful.notify = self._unsuccessful_tasks
            self._backend.on_summary_wanted = self._summary_wanted
            #: When the next summary may be made, and whether one is being made.
            self._next_summary, self._is_summing_up = 0.0, False
            #: The tasks that this client has not started yet.
            self.background = Background(self.dispatcher, lambda *some: self.submit(*some))
            #: Yields the numbers of its tasks.
            self.numbers = itertools.count()
            #: Makes the tasks that fetch the results of Dask futures.
            self.future_arguments = FutureArguments(
                self.client, self.numbers, self.dispatcher.table.future_sources
            )
            #: Which client of the Batch this is: 0 has created it; -1 until it is registered.
            self.number = -1
            #: The id that its tasks carry.
            self.client_id = batch
            if connection is not None:
                self._backend.prepare(connection.embedded is not None)
            self._publish()
        except BaseException as error:
            published = within is not None and within.resources.get(self._resource) is self
            if published and isinstance(error, Exception):
                assert within is not None
                del within.resources[self._resource]
                published = False
            if not published:  # else the task, which is being stopped, ends it
                self._disconnect()
            raise
        if within is None:
            _open.add(self)
            _end_with_multiprocessing()

    def _publish(self) -> None:
        """Show the session to the shared connection and the task's context, and register it."""
        if self._shared is not None:
            self._shared.subscribe(self)
        if self._within is not None:
            # From here on it ends with the task, whatever happens.
            self._within.resources[self._resource] = self
        is_creator = self._connection is not None
        self.number = self._backend.connect(self.dispatcher, self.batch, is_creator, self._on_loss)
        self.client_id = make_client_id(self.batch, 0 if is_creator else self.number)

    def submit(self, records: Sequence[TaskRecord], name: str, group: Group | None) -> None:
        """Start tasks; see `Dispatcher.submit`.

        Raises
        ------
        SpecError
            A task requires what no worker offers, and the cluster does not grow.
        """
        asking = [record for record in records if requires_something(record.options)]
        refused = self._refused(asking, self._backend.capacities()) if asking else {}
        if refused:
            # What is known of the workers may be old.
            refused = self._refused(asking, self._backend.capacities(fresh=True))
        if refused and not self.grows:
            record, why = next(iter(refused.items()))
            raise SpecError(f"task {record.label} {why}")
        self.dispatcher.submit(records, name, group)
        if self.grows:
            self._demand.start()
            if not self._backend.slots:
                self._missing.start()
        if asking:
            self._watch_requirements(asking, set(refused))

    def _watch_requirements(
        self, records: Sequence[TaskRecord], unmet_before: set[TaskRecord]
    ) -> None:
        """Refuse tasks that no worker can run at two checks in a row: workers come and go.

        Parameters
        ----------
        records : sequence of TaskRecord
            The tasks to check until they are over.
        unmet_before : set of TaskRecord
            Those that no worker could run at the last check.
        """

        # Records that are over need not exist any longer.
        watched = weakref.WeakSet(records)
        del records

        def check(workers: list[Capacity]) -> None:
            refused = self._refused([r for r in watched if r.phase == Phase.WAITING], workers)
            self.dispatcher.refuse({r: why for r, why in refused.items() if r in unmet_before})
            unfinished = [record for record in watched if not record.over]
            if unfinished:
                self._watch_requirements(unfinished, set(refused))

        timeout = config.get_optional_seconds("unmet-timeout")
        if timeout is not None:
            self._backend.capacities_later(timeout, check)

    def _refused(
        self, records: Sequence[TaskRecord], workers: Sequence[Capacity]
    ) -> dict[TaskRecord, str]:
        """Return the tasks that no worker can run, and why; none while workers are on order."""
        if self.grows and (
            not any(worker.is_here for worker in workers) or are_workers_on_order(self.client)
        ):
            return {}
        return refusals(records, workers)

    # -- the dashboard --------------------------------------------------------------------

    def _unsuccessful_tasks(self) -> None:
        """Report tasks that have not succeeded, a little later; called with the lock held."""
        self._backend.call_later(_UNSUCCESSFUL_DELAY_SECONDS, self._show_unsuccessful)

    def _show_unsuccessful(self) -> None:
        with self.dispatcher.outcomes.changed:
            tasks = self.dispatcher.table.unsuccessful.take()
        if not self._ended:
            self._backend.show_unsuccessful(tasks, self._show_times)

    def _show_times(self, are_shown: bool) -> None:
        self.dispatcher.table.unsuccessful.shows_times = are_shown

    def _summary_wanted(self) -> None:
        """Make and send a summary, in a thread; called on Dask's event loop."""
        if _summarize is None or self._is_summing_up or monotonic() < self._next_summary:
            return
        self._is_summing_up = True
        thread = threading.Thread(target=self._sum_up, name="daskbatch-summary", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends
            self._is_summing_up = False

    def _sum_up(self) -> None:
        began = thread_time()
        try:
            if _summarize is not None and not self._ended:
                self._backend.send_summary(_summarize(self))
        except Exception:  # it is for a page only; the program goes on
            _logger.debug("no summary for the page /daskbatch", exc_info=True)
        finally:
            pause = min((thread_time() - began) / _MAX_SUMMARY_PART, _MAX_SUMMARY_PAUSE_SECONDS)
            self._next_summary = monotonic() + pause
            self._is_summing_up = False

    def require_alive(self) -> None:
        """Check that the cluster still exists, and that this client is registered there.

        Raises
        ------
        ServiceLost
            The cluster or the registration is gone.
        """
        self._backend.require_alive()

    def capacities(self) -> list[Capacity]:
        """Return what the workers that are there offer; asks the scheduler."""
        return self._backend.capacities()

    def describe_missing_workers(self) -> str:
        """Return why the cluster has no worker for tasks, as far as that is known."""
        return describe_missing(self.client, find_unfit(self.client))

    def gangs(self) -> list[dict[str, Any]]:
        """Return what each gang on the cluster waits for, as `GangAllocator.describe` does."""
        return self._backend.gangs()

    def read_output(
        self, record: TaskRecord, name: str, position: int, most: int
    ) -> OutputPart | None:
        """Return what a running task has written; None if no worker runs it now.

        Parameters
        ----------
        record : TaskRecord
            The task.
        name : str
            "stdout" or "stderr".
        position, most : int
            See `BoundedText.since`.
        """
        with self.dispatcher.outcomes.changed:
            block, begin, member = record.block, record.begin, record.member
        if block is None or begin is None or not begin.worker:
            return None
        answer = self._backend.read_output(
            begin.worker,
            block=block.number,
            member=member,
            name=name,
            position=position,
            most=most,
        )
        return None if answer is None else OutputPart(*answer)

    def capacities_later(self, then: Callable[[list[Capacity]], None]) -> None:
        """Call a function on Dask's event loop with what the workers offer."""
        self._backend.capacities_later(0.0, then)

    def direct_connection(self) -> tuple[bool, str]:
        """Return whether this client is connected with workers directly; and if not, why."""
        links = self._backend.open_links
        is_connected = self.dispatcher.table.open_blocks.is_connected
        return is_connected, "" if links is None or is_connected else links.failure()

    @property
    def slots(self) -> int:
        """The number of tasks that run at once."""
        return self._backend.slots

    @property
    def most_slots(self) -> int:
        """The largest number of slots so far."""
        return self._backend.most_slots

    def add_worker_listener(self, listener: WorkerListener) -> None:
        """Notify an object, as long as it lives, when workers have joined or left."""
        self._backend.worker_listeners.add(listener)

    @property
    def ended(self) -> bool:
        """Whether this client has left the cluster."""
        return self._ended

    @property
    def idle(self) -> bool:
        """Whether all tasks that were started are over."""
        return not self.dispatcher.outcomes.unfinished

    def lose(self, why: str) -> None:
        """Record that the Batch or the connection has ended; see `ConnectionUser`."""
        self._backend.membership.lose(why)

    def _on_loss(self, error: ServiceLost) -> None:
        self.dispatcher.give_up(error)
        if self._shared is not None:
            # Nothing more can be fetched, and Dask should not try to connect again.
            self._disconnect()

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Start no more tasks. A client that has not created the Batch leaves once it is idle."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        if self._ended:
            return
        self.background.flush()
        for pool in self.background.executor_pools:
            pool.flush()
        if self._shared is None:
            return
        self._backend.membership.announce_closed()
        if self._within is None:
            _closing.add(self)
            self.dispatcher.outcomes.when_idle(self._leave)

    def _leave(self) -> None:
        if not self._ended:  # else its tasks were given up, and may still run
            self._backend.membership.announce_idle()
        _closing.discard(self)

    def wait_until_alone(self, seconds: float | None) -> list[str]:
        """Wait until this is the only client; returns descriptions of the others at the end."""
        return self._backend.membership.wait_until_alone(seconds)

    def end(self) -> None:
        """Cancel what is not over, and leave the cluster; an embedded cluster ends."""
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
        try:
            self._call_at_end()
        finally:
            self._disconnect()

    def _call_at_end(self) -> None:
        functions, self.at_end = self.at_end, []
        for function in functions:
            function()

    def _disconnect(self) -> None:
        if self._shared is not None:
            with self._lock:
                released, self._released = self._released, True
            if not released:
                self._shared.release(self)
        elif self._connection is not None:
            self._connection.close()

    def abandon(self) -> None:
        """End without waiting: a finalizer calls this, in any thread."""
        if self._ended:
            return
        self.abandoned = True
        # The queued tasks are not started: that takes locks that a finalizer must not take.
        self.background.backlog.forget()
        if self._shared is not None:
            # As if it had been closed: the tasks that it has started are still needed.
            self.close()
            self.dispatcher.outcomes.when_idle(self._end_later)
            return
        self._backend.membership.unregister(idle=False, wait=False)
        assert self._connection is not None
        self._connection.close_in_background()
        if self.at_end:
            # In a thread, since these functions take locks.
            start_unless_ending(self._call_at_end, name="daskbatch-end", daemon=False)

    def _end_later(self) -> None:
        # In a thread, because this may run on Dask's event loop.
        start_unless_ending(self.end, name="daskbatch-end", daemon=False)

    # -- a task that is a client: implements `task_context.TaskResource` --------------------

    def finish(self) -> None:
        """End with the task: wait for all that it has started."""
        self.close()
        self.dispatcher.outcomes.wait(lambda: self.idle)
        if self.before_end is not None:
            self.before_end(self)
        self.end()

    def give_up(self) -> None:
        """Stop what the task has started: the task has failed or is being stopped."""
        with contextlib.suppress(Exception):
            self.background.drop()
            records = self.dispatcher.unfinished()
            self.dispatcher.cancel(records)
            # What runs after the task must not run beside what the task has started.
            self.dispatcher.outcomes.wait(
                lambda: all(record.over for record in records), _STOP_TIMEOUT_SECONDS
            )
        self.end()


#: Makes the summary of a client.
_summarize: Callable[[Session], str] | None = None


def set_summarizer(summarize: Callable[[Session], str]) -> None:
    """Set the function that makes the text of a client's summary; any thread calls it."""
    global _summarize
    _summarize = summarize


def _setting(
    topic: str, connection: Connection | None, streams: bool, directory: str | None
) -> Setting:
    is_embedded = connection is not None and connection.embedded is not None
    return Setting(
        topic=topic,
        entry=run_on_worker,
        budget=config.get_seconds("block-budget"),
        share_limit=config.get_bytes("share-limit"),
        inline_limit=config.get_bytes("inline-limit"),
        output_limit=config.get_bytes("output-limit"),
        surroundings=Surroundings() if is_embedded else None,
        streams=streams,
        directory=directory,
    )


def make_session(
    batch: str,
    cluster: str | os.PathLike[str] | Client | Cluster | None,
    num_workers: int | tuple[int, int] | None,
    directory: str,
    environment: Mapping[str, str] | None = None,
    streams: bool = False,
) -> Session:
    """Create a Batch, and return its first client.

    Parameters
    ----------
    batch : str
        The name of the Batch, which must be unique.
    cluster, num_workers
        See `daskbatch.Batch`.
    directory : str
        The working directory of an embedded cluster's workers, and of functions on a given one.
    environment : mapping, optional
        Variables that are added to the environment of an embedded cluster's workers.
    streams : bool
        See `Session`.
    """
    require_not_loading()
    connection = connect(cluster, num_workers, directory, environment)
    given = connection.embedded is None and config.get("working-directory") == "batch"
    return Session(
        batch,
        connection=connection,
        streams=streams,
        directory=directory if given else None,
    )


#: The sessions that have not ended and do not belong to a task; ended at exit.
_open: weakref.WeakSet[Session] = weakref.WeakSet()


def open_clients() -> list[Client]:
    """Return the Dask clients of the Batches that are open in this process."""
    return [session.client for session in _open if not session.ended]


def open_sessions() -> list[Session]:
    """Return the clients of this process that have not ended and do not belong to a task."""
    return [session for session in {*_open, *_closing} if not session.ended]


#: The sessions that are closed and have unfinished tasks; their Batch objects may be gone.
_closing: set[Session] = set()


@after_fork
def _forget_sessions() -> None:
    for session in _open:
        close_in_child(session.client)
    keep_inherited(_open)
    keep_inherited(_closing)
    _open.clear()
    _closing.clear()


@atexit.register
def _end_all() -> None:
    for session in {*_open, *_closing}:
        if session.closed and session.number:
            # What a closed client has started runs to its end; others may need it.
            with contextlib.suppress(KeyboardInterrupt):
                session.dispatcher.outcomes.wait(lambda each=session: each.idle)  # type: ignore[misc]
        unfinished = session.dispatcher.outcomes.unfinished + len(session.background.backlog)
        if unfinished:
            _logger.warning(
                "%d tasks were given up, because the program ended; "
                "call close() and join() on a Batch to wait for its tasks",
                unfinished,
            )
        session.end()
    omit_timeouts_of_stopped_loops()


def _end_with_multiprocessing() -> None:
    """Call `_end_all` also at the end of a process of `multiprocessing`, which skips `atexit`."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is None or process is None or process.parent_process() is None:
        return
    key = "daskbatch", os.getpid()
    if key not in _hooked:
        _hooked.add(key)
        util.Finalize(None, _end_all, exitpriority=100)


_hooked: set[tuple[str, int]] = set()

"""Holds what the tasks, options and imported functions of one Batch object share.

They hold a `BatchContext` and not the `Batch`, so that the modules of this package import each
other in one direction only. The context lives as long as the Batch or anything made by it; when
the last of these is dropped, the client ends. Several threads may use a context.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskbatch.batch.identity import Identity
from daskbatch.batch.validation import require_own, require_producers, takes_of_others
from daskbatch.cluster.session import Session, set_summarizer
from daskbatch.describe.access import Access, Mode, make_access
from daskbatch.describe.initializer import Initializer
from daskbatch.describe.spec import Options
from daskbatch.dispatch.backlog import Backlog
from daskbatch.dispatch.declarations import set_rules
from daskbatch.dispatch.task_record import Group, TaskRecord
from daskbatch.errors import SubmitAfterCloseError
from daskbatch.plan.program import overlap

if TYPE_CHECKING:
    from daskbatch.shared.creation import OwnerContext
    from daskbatch.shared.ddict import DDict
    from daskbatch.shared.queue import Queue


class BatchContext:
    """What the tasks, options and imported functions of one Batch object share.

    Several threads may use it.

    Parameters
    ----------
    identity : Identity
        Says which client of the Batch this is in the current process and task.
    name : str, optional
        The name of compiled tasks that have no better one.
    directory : str
        The directory that relative paths are relative to.
    background_batching : bool
        Whether template tasks are queued and start when they are needed.
    strict : bool
        Whether tasks fail that access what they do not declare.
    backlog : Backlog, optional
        The queued tasks of the client, which live as long as this context; None if another object
        keeps them. Their arguments may refer to the Batch, so nothing that outlives the Batch may
        keep them.
    initializer : Initializer, optional
        What each process that runs tasks calls once, before the first.
    """

    def __init__(
        self,
        identity: Identity,
        name: str | None,
        directory: str,
        background_batching: bool,
        strict: bool = False,
        backlog: Backlog | None = None,
        initializer: Initializer | None = None,
    ) -> None:
        self.identity = identity
        #: What each process calls before its first task of the Batch; None if nothing.
        self.initializer = initializer
        #: The options of tasks without the initializer, and with it.
        self._initialized: dict[Options, Options] = {}
        self.name = name
        self.directory = directory
        self.background_batching = background_batching
        self.strict = strict
        #: The compiled tasks of this Batch by their numbers, as long as the program holds them.
        self.programs: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._backlog = backlog
        # A Batch that is dropped without `close`, as when a notebook cell is run again, must not
        # leave a client behind.
        finalizer = weakref.finalize(self, identity.abandon)
        finalizer.atexit = False

    @property
    def session(self) -> Session:
        """The client that the Batch stands for in this process and task.

        The first use of a copy registers the client.

        Raises
        ------
        ServiceLost, SubmitAfterCloseError
            See `Identity.session`.
        """
        return self.identity.session()

    def require_open(self) -> None:
        """Raise `SubmitAfterCloseError` if nothing can be made or started any longer."""
        if self.identity.closed:
            raise SubmitAfterCloseError(
                "this Batch has been closed: nothing can be made or started any longer"
            )

    def with_initializer(self, options: Options) -> Options:
        """Return the options of a task of a function, with the initializer of the Batch."""
        if self.initializer is None or options.prepare is not None:
            return options
        found = self._initialized.get(options)
        if found is None:
            found = self._initialized[options] = replace(options, prepare=self.initializer)
        return found

    def absolute(self, path: str | Path) -> str:
        """Return a path relative to the directory of the Batch as an absolute one."""
        # Not normalized: if a part of the path is a link, only the system knows what ".." means.
        return os.path.join(self.directory, path)

    def access(self, mode: Mode, obj: Any, channels: Sequence[Any]) -> Access:
        """Describe a read or a write; see `Batch.read`."""
        return make_access(mode, obj, channels, self.directory)

    # -- starting tasks -------------------------------------------------------------------

    def submit(self, records: Sequence[TaskRecord], name: str, group: Group | None = None) -> None:
        """Start tasks, each after those that it waits for.

        Parameters
        ----------
        records : sequence of TaskRecord
            The tasks.
        name : str
            Their name on Dask's dashboard.
        group : Group, optional
            The compiled task whose members they are.

        Raises
        ------
        SubmitAfterCloseError
            The Batch has been closed.
        GraphError, LifecycleError
            A task takes the result of another Batch's task, or of one that was never started.
        SpecError
            No worker can run a task.
        """
        self.require_open()
        session = self.session
        if self.strict:
            set_rules(records, self.directory)
        client_id = session.client_id
        for record in records:
            if record.client_id != client_id:
                require_own(client_id, record)
            if takes_of_others(record, client_id):
                require_own(client_id, record)
                require_producers(record)
                session.background.start_queued(record.producers)
        session.submit(records, name, group)

    def record_template_task(self, record: TaskRecord, session: Session) -> None:
        """Queue a task that an imported function made: it starts when it is needed.

        Parameters
        ----------
        record : TaskRecord
            The task.
        session : Session
            The client that made it.

        Raises
        ------
        GraphError, LifecycleError
            See `submit`.
        """
        if record.call is not None and record.call.references:
            require_own(self.session.client_id, record)
            require_producers(record)
        if self.strict:
            session.background.rules_directory = self.directory
        session.background.queue(record)

    # -- reads and writes by the program itself -------------------------------------------

    def await_conflicting_tasks(self, access: Access) -> None:
        """Start the tasks that must be over before the program reads or writes; wait for them."""
        session = self.identity.session_or_none()
        if session is None:
            return
        conflicting = session.background.unfinished(lambda record: _conflicts(record, access))
        session.dispatcher.outcomes.wait(lambda: all(record.over for record in conflicting))

    def owner_context(self) -> OwnerContext:
        """Return where the Batch creates dictionaries and queues, which end with it.

        Raises
        ------
        SubmitAfterCloseError
            The Batch has been closed.
        ServiceLost
            The cluster is gone.
        """
        from daskbatch.shared.creation import OwnerContext  # few programs need it

        self.require_open()
        session = self.session
        session.require_alive()
        # A dictionary must not keep the Batch alive.
        reference = weakref.WeakMethod(self._await_conflicting_shared)

        def before_access(
            mode: Mode, obj: DDict | Queue, keys: Sequence[Any], wait: bool = True
        ) -> None:
            method = reference()
            if method is not None:
                method(mode, obj, keys, wait)

        return OwnerContext(session.client, session.batch, before_access, grows=session.grows)

    def _await_conflicting_shared(
        self, mode: Mode, obj: DDict | Queue, keys: Sequence[Any], wait: bool
    ) -> None:
        """Start the template tasks that must be over before keys are read or written here.

        Also wait for them, unless `wait` is false: tasks that use a queue may themselves wait for
        what this process does with the queue.
        """
        session = self.identity.session_or_none()
        if session is None or not session.background.has_queued:
            return
        access = make_access(mode, obj, keys, "")
        conflicting = session.background.unfinished_queued(
            lambda record: _conflicts(record, access)
        )
        if conflicting and wait:
            session.dispatcher.outcomes.wait(lambda: all(record.over for record in conflicting))


def _summarize(session: Session) -> str:
    from daskbatch.batch.reporting.client_summary import summarize  # few programs need it

    return summarize(session)


set_summarizer(_summarize)


def _conflicts(record: TaskRecord, access: Access) -> bool:
    """Say whether a task must be over before a read or write by the program itself."""
    channels = record.writes if access.mode is Mode.READ else record.writes + record.reads
    return overlap(access.channels, channels)

"""Resolves which client (`Session`) a Batch object stands for in the current process and task.

Each Batch object is one client: outside of tasks from the moment that it is unpickled in another
process (see `registration`), in a task and in the creator's process from its first use. A client in
a task ends with the task, so nothing that a task leaves open can block `Batch.join`. A pickle of a
Batch holds an `Address` alone; credentials come from the process that unpickles it. Several threads
may use an `Identity`.
"""

from __future__ import annotations

import itertools
import weakref
from typing import NamedTuple

from daskbatch.batch.registration import is_unpickled_by_user, register_later
from daskbatch.batch.told_failures import tell_in_task
from daskbatch.cluster.connection import as_client_security, remember_security
from daskbatch.cluster.session import Session
from daskbatch.errors import SubmitAfterCloseError
from daskbatch.forking import after_fork, keep_inherited, make_rlock
from daskbatch.serialization.pickling import loads
from daskbatch.worker.execution.task_context import TaskContext, current_context


class Address(NamedTuple):
    """Where a Batch is: all that a pickle of it says about the cluster.

    Parameters
    ----------
    scheduler : str
        The address of the scheduler.
    batch : str
        The id of the Batch.
    grows : bool
        Whether the cluster may get more workers later.
    directory : str, optional
        The working directory of functions; None for that of the workers.
    """

    scheduler: str
    batch: str
    grows: bool
    directory: str | None = None


class Identity:
    """Which client of its Batch an object stands for; several threads may use it.

    Parameters
    ----------
    address : Address
        Where the Batch is.
    own : Session, optional
        The client that created the Batch, for the object that created it.
    """

    def __init__(self, address: Address, own: Session | None = None) -> None:
        self.address = address
        self._own = own
        self._closed = False
        self._dropped = False
        #: The name under which a task's context has the client that this object is there.
        self._resource = f"{address.batch}/{next(_numbers)}"
        # The slot's context and the number of the task in it, if a task creates this object. A copy
        # that is unpickled as an argument of a task also serves the threads of that task.
        context = current_context()
        self._created_in = None if context is None else (weakref.ref(context), context.task_number)
        _identities.add(self)
        if own is not None:
            _created_here.add(address.batch)

    def session(self) -> Session:
        """Return the client that this object stands for in this process and task.

        The first use creates the client.

        Raises
        ------
        ServiceLost
            The Batch has ended, or its scheduler cannot be reached.
        SubmitAfterCloseError
            The object was closed before it was used, or the task that it was unpickled for has
            ended.
        """
        own = self._own
        if own is not None and current_context() is None:
            return own
        context = self._task_context()
        with _attach_lock:
            if context is not None:
                resource = context.resources.get(self._resource)
                if resource is None:
                    resource = self._attach(context)
                if isinstance(resource, Session):
                    return resource
            elif not self._closed:
                if self._own is None:
                    self._own = self._attach(None)
                return self._own
        raise SubmitAfterCloseError(
            "this Batch has been closed: no task can be made or started any longer"
        )

    def session_or_none(self) -> Session | None:
        """Return the client that this object stands for here; None if it has not been used yet."""
        try:
            context = self._task_context()
        except SubmitAfterCloseError:
            return None
        if context is None:
            return self._own
        resource = context.resources.get(self._resource)
        return resource if isinstance(resource, Session) else None

    @property
    def closed(self) -> bool:
        """Whether nothing can be started here any longer."""
        try:
            context = self._task_context()
        except SubmitAfterCloseError:
            return True
        if context is not None:
            resource = context.resources.get(self._resource)
            if isinstance(resource, Session):
                return resource.closed
            return resource is not None
        return self._closed if self._own is None else self._own.closed

    def close(self) -> None:
        """Let nothing more be started here. Calling it again has no effect."""
        try:
            context = self._task_context()
        except SubmitAfterCloseError:
            return
        session = self.session_or_none()
        if session is not None:
            session.close()
        elif context is not None:
            context.resources.setdefault(self._resource, _ClosedUnused())
        else:
            self._closed = True
            if self._own is not None:  # it has just been registered in the background
                self._own.close()

    def abandon(self) -> None:
        """End the client without waiting: the last object that used it has been dropped."""
        self._dropped = True
        if self._own is not None:
            self._own.abandon()

    # -- registration in the background: implements `registration.Registrable` --------------

    @property
    def scheduler(self) -> str:
        """The address of the scheduler."""
        return self.address.scheduler

    def register_if_unpickled_elsewhere(self) -> None:
        """If the program has unpickled this copy, in another process than the creator's, register
        it in the background.
        """
        if self.address.batch not in _created_here and is_unpickled_by_user():
            register_later(self)

    def register(self) -> None:
        """Register the copy as a client, unless it has been registered, closed or dropped."""
        with _attach_lock:
            if self._own is None and not (self._closed or self._dropped):
                self._own = self._attach(None)
        # `close` and `abandon` set their flag first, and then look for the client. So either they
        # see the client, or this sees the flag.
        own = self._own
        if own is not None and self._dropped:
            own.abandon()
        elif own is not None and self._closed:
            own.close()

    def _task_context(self) -> TaskContext | None:
        """Return the context of the task that uses this object, or None outside of tasks."""
        context = current_context()
        if self._own is not None:
            # The task that created a Batch is its creator, and not a copy.
            created_here = context is not None and self._created_in == (
                weakref.ref(context),
                context.task_number,
            )
            return None if created_here else context
        if context is not None or self._created_in is None:
            return context
        created_in, task_number = self._created_in[0](), self._created_in[1]
        if created_in is None or created_in.task_number != task_number:
            raise SubmitAfterCloseError(
                "the task that received this copy of a Batch has ended, and so has the copy; a "
                "thread that a task starts can use a Batch that is among the task's arguments"
            )
        return created_in

    def _attach(self, context: TaskContext | None) -> Session:
        """Register a new client of the Batch."""
        scheduler, batch, grows, directory = self.address
        if context is None:
            return Session(batch, scheduler, grows=grows, directory=directory)
        if context.batch == batch:
            # Use the address under which the worker reaches the scheduler.
            scheduler = context.scheduler
        if context.security is not None and context.scheduler == scheduler:
            remember_security(scheduler, as_client_security(loads(context.security)))
        session = Session(
            batch,
            scheduler,
            within=context,
            grows=grows,
            resource=self._resource,
            directory=directory,
        )
        session.before_end = tell_in_task
        return session

    def reset_after_fork(self) -> None:
        """Become another client: this is the copy of the object in a forked child."""
        keep_inherited([self._own])
        self._dropped = False
        self._own = self._created_in = None


class _ClosedUnused:
    """Stands for a Batch that a task closed before it used it; implements `TaskResource`."""

    def finish(self) -> None:
        pass

    def give_up(self) -> None:
        pass


_numbers = itertools.count()

#: The ids of the Batches that this process has created.
_created_here: set[str] = set()

#: All identities of this process; a forked child resets its copies of them.
_identities: weakref.WeakSet[Identity] = weakref.WeakSet()

#: Held while a client is created, so that an object, or a task, creates only one.
_attach_lock = make_rlock()


@after_fork
def _reset_all() -> None:
    _created_here.clear()
    for identity in list(_identities):
        identity.reset_after_fork()

"""Which Batch an object stands for, and as which of its clients: here, in this process and task.

Does not know tasks. A Batch is sent as an identity alone: an address, and what it is called
there. What it takes to connect is for the other side to have.

In a process each Batch object is a client, from its first use on. A task is a client of its
own: all that a task does with a Batch it does as that one, which ends with it, whatever
objects it has. So nothing that a task leaves open can hold up the Batch.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import NamedTuple

from daskbatch.cluster.connection import for_client, learn_security
from daskbatch.cluster.session import Session
from daskbatch.errors import SubmitAfterCloseError
from daskbatch.serialization.pickling import loads
from daskbatch.worker.execution.task_context import TaskContext, current


class Address(NamedTuple):
    """What of an identity is sent.

    Parameters
    ----------
    scheduler : str
        Where the Batch is.
    batch : str
        Which one it is.
    grows : bool
        Whether there may be more workers later.
    """

    scheduler: str
    batch: str
    grows: bool


class Identity:
    """Which client of its Batch an object is.

    Parameters
    ----------
    address : Address
        Which Batch it is.
    own : Session, optional
        The client that has made it.
    """

    def __init__(self, address: Address, own: Session | None = None) -> None:
        self.address = address
        self._own = own
        self._closed = False
        # Where this came among the arguments of a task, the threads of the task have it, too.
        host = current()
        self._home = None if host is None else (weakref.ref(host), host.turn)
        _all.add(self)

    def session(self) -> Session:
        """Give the client that this is here; it becomes one if it is none yet.

        Raises
        ------
        ServiceLost
            There is no such Batch any more, or it cannot be reached.
        SubmitAfterCloseError
            It was closed before it was used; or the task that it was for is over.
        """
        own = self._own
        if own is not None and current() is None:
            return own
        host = self._host()
        with _attaching:
            if host is not None:
                guest = host.guests.get(self.address.batch)
                if guest is None:
                    guest = self._attach(host)
                if isinstance(guest, Session):
                    return guest
            elif not self._closed:
                if self._own is None:
                    self._own = self._attach(None)
                return self._own
        raise SubmitAfterCloseError(
            "this Batch has been closed: no task can be made or started any more"
        )

    def known(self) -> Session | None:
        """Give the client that this is here, if it is one yet."""
        try:
            host = self._host()
        except SubmitAfterCloseError:
            return None
        if host is None:
            return self._own
        guest = host.guests.get(self.address.batch)
        return guest if isinstance(guest, Session) else None

    @property
    def closed(self) -> bool:
        """Whether nothing can be started here any more."""
        try:
            host = self._host()
        except SubmitAfterCloseError:
            return True
        if host is not None:
            guest = host.guests.get(self.address.batch)
            return guest is not None and (not isinstance(guest, Session) or guest.closed)
        return self._closed if self._own is None else self._own.closed

    def close(self) -> None:
        """Have nothing more started here."""
        try:
            host = self._host()
        except SubmitAfterCloseError:
            return
        session = self.known()
        if session is not None:
            session.close()
        elif host is not None:
            host.guests.setdefault(self.address.batch, _Nobody())
        else:
            self._closed = True

    def abandon(self) -> None:
        """Leave it to itself: the object is no more."""
        if self._own is not None:
            self._own.abandon()

    def _host(self) -> TaskContext | None:
        host = current()
        if self._own is not None:
            # The task that has made a Batch is its creator.
            made = host is not None and self._home == (weakref.ref(host), host.turn)
            return None if made else host
        if host is not None or self._home is None:
            return host
        found, turn = self._home[0](), self._home[1]
        if found is None or found.turn != turn:
            raise SubmitAfterCloseError(
                "the task that this copy of a Batch came to is over, and so is the copy; a "
                "thread that a task starts can use a Batch that is among the task's arguments"
            )
        return found

    def _attach(self, host: TaskContext | None) -> Session:
        scheduler, batch, grows = self.address
        if host is None:
            return Session(batch, scheduler, grows=grows)
        if host.batch == batch:
            # It is reached from here as the worker reaches it.
            scheduler = host.scheduler
        if host.security is not None and host.scheduler == scheduler:
            learn_security(scheduler, for_client(loads(host.security)))
        return Session(batch, scheduler, within=host, grows=grows)

    def forget(self) -> None:
        """Be another client, in a process that was forked."""
        _inherited.append(self._own)
        self._own = self._home = None


class _Nobody:
    """Has closed a Batch before it was used; implements `running.Guest`."""

    def finish(self) -> None:
        pass

    def give_up(self) -> None:
        pass


_all: weakref.WeakSet[Identity] = weakref.WeakSet()
_attaching = threading.RLock()
_inherited: list[Session | None] = []


def _forget() -> None:
    global _attaching
    _attaching = threading.RLock()
    for each in list(_all):
        each.forget()


os.register_at_fork(after_in_child=_forget)

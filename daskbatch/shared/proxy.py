"""A shared object as this process sees it: has requests answered by whoever is to answer them.

Does not know dictionaries nor queues. If an actor has died it goes on with the one that has
taken over; what was asked for is done once, however often it had to be asked.
"""

from __future__ import annotations

import os
import ssl
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from daskbatch.errors import ServiceLost
from daskbatch.shared.actor import here
from daskbatch.shared.data.codec import copied
from daskbatch.shared.data.messages import (
    Layout,
    NotServing,
    ObjectInfo,
    Replica,
    ServerAddress,
    closed_error,
    description_of,
    error_sent,
    lost_error,
    unreachable_error,
)
from daskbatch.shared.rpc.client import RequestFailed, RpcClient
from daskbatch.shared.rpc.server import FAILED
from daskbatch.shared.scheduler_rpc import ask, relayed, tls_context
from daskbatch.worker.execution.task_context import STOP_POLL_SECONDS, current

#: After so long without an answer it is asked whether the one who is to give it is still there.
_DOUBT = 1.0

#: How long it may take until somebody has taken over, or is reached after all. Seconds.
_TURN = 1.0

#: A worker that is there and does not open its door so often is reached through the scheduler;
#: after so many seconds it is tried again.
_KNOCKS = 3
_DETOUR = 60.0

#: So long is it tried to reach a worker of which the scheduler says that it is there. Seconds.
_PATIENCE = 30.0

#: After so many have died of the same request, one after another, no other one is asked.
_DEATHS = 3

#: So many objects are remembered that nobody uses at the moment: the next task is likely to.
_REMEMBERED = 64


def _is_gone() -> bool:
    """Say of who asks from this very thread whether nobody waits for the answer any more."""
    return False


class _Moved(Exception):
    """Somebody else is to answer by now."""


class _TimeUp(Exception):
    pass


class ObjectProxy:
    """What a process has of a shared object; one for all that use it there.

    Parameters
    ----------
    scheduler : str
        Where it is.
    uid : str
        Which it is.
    placed : Placed, optional
        What is known of it.
    """

    def __init__(self, scheduler: str, uid: str, placed: ObjectInfo | None = None) -> None:
        self.scheduler = scheduler
        self.uid = uid
        self._placed: ObjectInfo | None = None
        self._layouts: list[Layout] = []
        self._lanes: list[deque[RpcClient]] = []
        self._context: ssl.SSLContext | None = None
        #: By door: until when it is not tried any more.
        self._detours: dict[ServerAddress, float] = {}
        self._lock = threading.Lock()
        if placed is not None:
            self._take(placed)
        _handles[scheduler, uid] = self
        _remembered.append(self)

    @property
    def placed(self) -> ObjectInfo:
        """What is known of it; asked for on the first use."""
        found = self._placed
        if found is None:
            found = self._find()
            self._take(found)
        return found

    def _find(self) -> ObjectInfo:
        answer = self._ask("daskbatch_shared_find")
        if not isinstance(answer, ObjectInfo):
            raise self._gone(answer)
        return answer

    def _ask(self, operation: str, **arguments: Any) -> Any:
        try:
            try:
                return ask(self.scheduler, operation, uid=self.uid, **arguments)
            except ServiceLost:
                # A task may reach the same scheduler in another way.
                host = current()
                if host is None or host.scheduler == self.scheduler:
                    raise
                answer = ask(host.scheduler, operation, uid=self.uid, **arguments)
                self.scheduler = host.scheduler
                return answer
        except ServiceLost as error:
            raise unreachable_error(self.what, error) from error

    def _take(self, placed: ObjectInfo) -> None:
        """Take in who has what, as far as it is news."""
        with self._lock:
            if self._placed is None:
                self._layouts = list(placed.layouts)
                self._lanes = [deque() for _ in placed.layouts]
                self._context = tls_context(self.scheduler)
                self._placed = placed
            for index, layout in enumerate(placed.layouts):
                self._hear(index, layout)

    def _hear(self, index: int, layout: Layout) -> None:
        if layout.epoch > self._layouts[index].epoch:
            self._layouts[index] = layout

    def _gone(self, said: Any) -> Exception:
        what = self.what
        if said == "closed":
            return closed_error(what)
        return ServiceLost(f"the cluster at {self.scheduler} knows no {what}")

    @property
    def what(self) -> str:
        """What it is called in messages."""
        known = self._placed
        return description_of(self.uid, known and known.options, known and known.name)

    def _lost(self, why: str) -> ServiceLost:
        return lost_error(self.what, why, self.placed.options.replicas)

    @property
    def count(self) -> int:
        """How many shards there are."""
        return len(self.placed.layouts)

    def layout(self, index: int) -> Layout:
        """Give who has a shard, as far as is known here."""
        _ = self.placed
        return self._layouts[index]

    def renew(self) -> None:
        """Ask anew who has what.

        Raises
        ------
        LifecycleError
            It has been closed.
        """
        self._take(self._find())

    def is_here(self, index: int) -> bool:
        """Say whether a shard is served in this process."""
        actor = here(self.uid, index)
        return actor is not None and getattr(actor.state, "serves", True)

    # -- requests -------------------------------------------------------------------------

    def call(
        self,
        index: int,
        operation: str,
        *arguments: Any,
        wait: float = 0.0,
        deadline: float | None = None,
    ) -> Any:
        """Have something done by a shard.

        Parameters
        ----------
        index : int
            Which.
        operation : str
            What.
        *arguments
            With what.
        wait : float
            How long the shard may wait until it can be done. Seconds.
        deadline : float, optional
            Of `monotonic`: when there must be an answer.

        Raises
        ------
        ServiceLost
            What the shard had is lost, or the cluster is gone.
        LifecycleError
            It has been closed.
        TimeoutError
            There is no answer in time.
        Exception
            It could not be done.
        """
        _ = self.placed
        actor = here(self.uid, index)
        if actor is not None and not wait and operation in actor.state.reads:
            # Only this: a task may be stopped in the middle of anything, and so leave it.
            with suppress(NotServing):
                return copied(actor.handle((operation, b"", 0, 0.0, arguments), _is_gone))
        lanes = self._lanes[index]
        try:
            lane = lanes.pop()
        except IndexError:
            lane = RpcClient()
        lane.seq += 1
        try:
            return self._go(lane, index, operation, arguments, wait, deadline)
        finally:
            lanes.append(lane)

    def _go(
        self,
        lane: RpcClient,
        index: int,
        operation: str,
        arguments: tuple[Any, ...],
        wait: float,
        deadline: float | None,
    ) -> Any:
        knocks, give_up, deaths = 0, inf, 0
        while True:
            layout = self._layouts[index]
            if not layout.members:
                raise self._lost(layout.lost)
            member = layout.members[0]
            door = member.door
            try:
                actor = here(self.uid, index)
                near = actor.door if actor is not None and actor.door.address == door else None
                if self._detours and self._detours.get(door, 0.0) > monotonic():
                    return self._relayed(lane, member, operation, wait, arguments)
                return lane.call(
                    door,
                    self._context,
                    operation,
                    wait,
                    arguments,
                    self._watcher(index, layout, wait, deadline),
                    near,
                )
            except RequestFailed as failed:
                error = failed.args[0]
                if not isinstance(error, NotServing):
                    raise error from None
                self._renew(index, layout.epoch, STOP_POLL_SECONDS)
            except _TimeUp:
                raise TimeoutError(f"{self.what} has not answered in time") from None
            except _Moved:
                lane.close()
            except OSError as error:
                lane.close()
                give_up = min(give_up, monotonic() + _PATIENCE)
                if self._renew(index, layout.epoch, _TURN):
                    knocks, give_up = 0, inf
                    deaths += 1
                    if deaths > _DEATHS and not wait:
                        raise ServiceLost(
                            f"{deaths} workers that have a part of {self.what} died when they were "
                            f"to do this: {operation}"
                        ) from error
                elif monotonic() > give_up:
                    raise ServiceLost(
                        f"worker {member.worker}, which has a part of {self.what}, cannot be "
                        f"reached: {error}"
                    ) from error
                else:
                    knocks += 1
                    if knocks >= _KNOCKS:
                        self._detours[door] = monotonic() + _DETOUR
            if deadline is not None and monotonic() > deadline:
                raise TimeoutError(f"{self.what} has not answered in time")

    def _watcher(
        self, index: int, layout: Layout, wait: float, deadline: float | None
    ) -> Callable[[], None]:
        next_look = monotonic() + wait + _DOUBT

        def idle() -> None:
            nonlocal next_look
            now = monotonic()
            if deadline is not None and now > deadline + STOP_POLL_SECONDS:
                raise _TimeUp
            if now > next_look:
                if self._renew(index, layout.epoch, 0.0):
                    raise _Moved
                next_look = monotonic() + _DOUBT

        return idle

    def _renew(self, index: int, epoch: int, seconds: float) -> bool:
        """Ask who has a shard, and wait a little for news; says whether there are any."""
        answer = self._ask("daskbatch_shared_look", index=index, epoch=epoch, seconds=seconds)
        if not isinstance(answer, Layout):
            raise self._gone(answer)
        with self._lock:
            self._hear(index, answer)
        return answer.epoch > epoch

    def _relayed(
        self,
        lane: RpcClient,
        member: Replica,
        operation: str,
        wait: float,
        arguments: tuple[Any, ...],
    ) -> Any:
        """Have it done by way of the scheduler, since the worker's door cannot be reached."""
        request = operation, lane.sid, lane.seq, min(wait, _TURN), arguments
        try:
            sign, result = relayed(self.scheduler, member, request)
        except Exception as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        if sign == FAILED:
            raise RequestFailed(error_sent(result))
        return result

    def close(self) -> None:
        """End the object, for all who use it; if its cluster has ended, so has it."""
        with suppress(ServiceLost):
            self._ask("daskbatch_shared_close")

    def forget(self) -> None:
        """Let go of connections that are those of the process this was forked from."""
        self._lock = threading.Lock()
        self._lanes = [deque() for _ in self._lanes]


#: By scheduler and object.
_handles: weakref.WeakValueDictionary[tuple[str, str], ObjectProxy] = weakref.WeakValueDictionary()
_remembered: deque[ObjectProxy] = deque(maxlen=_REMEMBERED)
_finding = threading.Lock()


def handle_of(scheduler: str, uid: str, placed: ObjectInfo | None = None) -> ObjectProxy:
    """Give the handle that this process has of an object, or make one."""
    with _finding:
        return _handles.get((scheduler, uid)) or ObjectProxy(scheduler, uid, placed)


def _forget() -> None:
    global _finding
    _finding = threading.Lock()
    for each in list(_handles.values()):
        each.forget()


os.register_at_fork(after_in_child=_forget)

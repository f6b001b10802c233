"""The client-side proxy of a shared object.

It finds the worker that serves a shard, uses another one when that worker dies (failover), and
repeats a request with the same sequence number, so that the request takes effect once. Any number
of threads may use an `ObjectProxy`.
"""

from __future__ import annotations

import ssl
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any

from daskbatch.describe.access import ObjectName
from daskbatch.errors import ServiceLost
from daskbatch.forking import after_fork, make_lock
from daskbatch.shared import relayed
from daskbatch.shared.actor import local_actor
from daskbatch.shared.data import routes
from daskbatch.shared.data.codec import copy_buffers
from daskbatch.shared.data.messages import (
    Layout,
    NotServing,
    ObjectInfo,
    Replica,
    Request,
    closed_error,
    decode_error,
    description_of,
    lost_error,
    unreachable_error,
)
from daskbatch.shared.rpc.answer import CONFIRM, FAILED
from daskbatch.shared.rpc.client import RequestFailed, RpcClient
from daskbatch.shared.scheduler_rpc import (
    call_scheduler,
    link_timeout,
    relay_request,
    tls_context,
)
from daskbatch.shared.store.operations import QUEUE_GET, QUEUE_RECEIVED, Effect, Operation
from daskbatch.worker.execution.task_context import STOP_POLL_SECONDS, current_context
from daskbatch.worker.handshake import NotReachable, check_reachable

#: A request that has had no answer for this time asks the scheduler for a new layout, and tries to
#: reach the worker, again and again.
_LAYOUT_CHECK_SECONDS = 1.0

#: How long one call waits for a new layout after a worker could not be reached; and how long a
#: request that the scheduler relays may wait at the worker.
_FAILOVER_WAIT_SECONDS = 1.0

#: After this number of broken connections to a live worker, the scheduler relays the requests to
#: it; and at once if the network does not lead there.
_MAX_BROKEN_CONNECTIONS = 3

#: If this number of workers have died, one after another, while they executed a request, one more
#: death fails the request: it may be what kills them.
_MAX_WORKER_DEATHS = 3

#: In a global, since `call` compares with it for each request.
_READ = Effect.READ

#: How many proxies are kept after their last use: the next task is likely to use the same ones.
_MAX_UNUSED_PROXIES = 64


class _LayoutChanged(Exception):
    """Another worker serves the shard now."""


class _DeadlinePassed(Exception):
    """The deadline of a request has passed without an answer."""


@dataclass(slots=True)
class _Failures:
    """The failures of one request so far."""

    #: Connections to the present primary that have failed, one after another.
    connections: int = 0
    #: The time of `monotonic` when the request no longer tries to reach the present primary.
    give_up_at: float = inf
    #: Workers that have died while they executed the request.
    worker_deaths: int = 0


class ObjectProxy:
    """A shared object as this process uses it; all users of the process share one proxy.

    Any number of threads may use it. Each waiting request has its own `RpcClient`.

    Parameters
    ----------
    scheduler : str
        The scheduler's address.
    uid : str
        The object's id.
    info : ObjectInfo, optional
        What the scheduler knows of the object; by default it is requested on first use.
    """

    def __init__(self, scheduler: str, uid: str, info: ObjectInfo | None = None) -> None:
        self.scheduler = scheduler
        self.uid = uid
        self._info: ObjectInfo | None = None
        self._layouts: list[Layout] = []
        #: By shard: the clients that no request uses at the moment.
        self._idle_clients: list[deque[RpcClient]] = []
        self._tls_context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        if info is not None:
            self._apply(info)
        _proxies[scheduler, uid] = self
        _recently_made.append(self)

    @property
    def info(self) -> ObjectInfo:
        """The object's options and name, and the layouts that were known first."""
        info = self._info
        if info is None:
            info = self._request_info()
            self._apply(info)
        return info

    def _request_info(self) -> ObjectInfo:
        answer = self._call_scheduler(routes.FIND)
        if not isinstance(answer, ObjectInfo):
            raise self._ended_error(answer)
        return answer

    def _call_scheduler(self, route: str, **arguments: Any) -> Any:
        try:
            try:
                return call_scheduler(self.scheduler, route, uid=self.uid, **arguments)
            except ServiceLost:
                # A task may reach the same scheduler by another address.
                context = current_context()
                if context is None or context.scheduler == self.scheduler:
                    raise
                answer = call_scheduler(context.scheduler, route, uid=self.uid, **arguments)
                self.scheduler = context.scheduler
                return answer
        except ServiceLost as error:
            raise unreachable_error(self.description, error) from error

    def _apply(self, info: ObjectInfo) -> None:
        """Adopt those layouts that are newer than the known ones."""
        with self._lock:
            if self._info is None:
                self._layouts = list(info.layouts)
                self._idle_clients = [deque() for _ in info.layouts]
                self._tls_context = tls_context(self.scheduler)
                self._info = info
            for index, layout in enumerate(info.layouts):
                self._apply_layout(index, layout)

    def _apply_layout(self, index: int, layout: Layout) -> None:
        if layout.epoch > self._layouts[index].epoch:
            self._layouts[index] = layout

    def _ended_error(self, answer: Any) -> Exception:
        """Return the error for an object that the scheduler does not have."""
        if answer == "closed":
            return closed_error(self.description)
        return ServiceLost(f"the cluster at {self.scheduler} has no {self.description}")

    @property
    def description(self) -> str:
        """What the object is called in messages."""
        info = self._info
        return description_of(self.uid, info and info.options, info and info.name)

    def access_name(self, kind: str) -> str:
        """Return the name of the object among accesses; see `ObjectName`."""
        info = self._info
        return ObjectName.make(f"{kind}-{self.uid}", info and info.name)

    def _lost_error(self, reason: str) -> ServiceLost:
        return lost_error(self.description, reason, self.info.options.replicas)

    @property
    def count(self) -> int:
        """The number of shards."""
        return len(self.info.layouts)

    def layout(self, index: int) -> Layout:
        """Return the layout of a shard that this process knows."""
        _ = self.info
        return self._layouts[index]

    def describe_layout(self, index: int) -> dict[str, Any]:
        """Return which worker serves a shard, how many copies it has, and how many are missing.

        Raises
        ------
        ServiceLost
            The shard is lost.
        """
        layout = self.layout(index)
        if not layout.replicas:
            raise self._lost_error(layout.lost)
        copies = len(layout.replicas) - 1
        missing = max(0, self.info.options.replicas - 1 - copies)
        return {"worker": layout.replicas[0].worker, "copies": copies, "missing": missing}

    def refresh(self) -> None:
        """Request the layouts from the scheduler.

        Raises
        ------
        LifecycleError
            The object has been closed.
        """
        self._apply(self._request_info())

    def is_local(self, index: int) -> bool:
        """Return whether a shard is served in this process."""
        actor = local_actor(self.uid, index)
        return actor is not None and getattr(actor.state, "serves", True)

    # -- requests -------------------------------------------------------------------------

    def call(
        self,
        index: int,
        operation: Operation,
        *arguments: Any,
        wait: float = 0.0,
        deadline: float | None = None,
    ) -> Any:
        """Have a shard execute an operation, and return its reply.

        Parameters
        ----------
        index : int
            The index of the shard.
        operation : Operation
            One of `shared.store.operations`.
        *arguments
            The operation's arguments.
        wait : float
            Seconds that the shard may wait until it can execute the operation.
        deadline : float, optional
            A time of `monotonic` by which there must be an answer.

        Raises
        ------
        ServiceLost
            The shard's contents are lost, or the cluster is gone.
        LifecycleError
            The object has been closed.
        TimeoutError
            There is no answer before the deadline.
        Exception
            The operation has failed on the shard, with this exception.
        """
        _ = self.info
        actor = local_actor(self.uid, index)
        if actor is not None and not wait and operation.effect is _READ:
            # Only for reads: the task's thread may be interrupted at any point, and would leave
            # another operation half done.
            with suppress(NotServing):
                return copy_buffers(actor.read(operation, arguments))
        idle = self._idle_clients[index]
        try:
            client = idle.pop()
        except IndexError:
            client = RpcClient()
        client.seq += 1
        try:
            return self._call_until_answered(
                client, index, operation.name, arguments, wait, deadline
            )
        except BaseException:
            if operation is QUEUE_GET:
                # The next request of this client would confirm an item that was not received.
                client.renew()
            raise
        finally:
            idle.append(client)

    def _call_until_answered(
        self,
        client: RpcClient,
        index: int,
        operation: str,
        arguments: tuple[Any, ...],
        wait: float,
        deadline: float | None,
    ) -> Any:
        """Send a request to the primary of a shard, and repeat it until there is an answer."""
        failures: _Failures | None = None
        by_scheduler = False
        while True:
            layout = self._layouts[index]
            if not layout.replicas:
                raise self._lost_error(layout.lost)
            primary = layout.replicas[0]
            server = primary.server
            try:
                actor = local_actor(self.uid, index)
                local = actor is not None and actor.server.address == server
                by_scheduler = relayed.is_relayed(server)
                if by_scheduler:
                    status, result = self._call_by_scheduler(
                        client, primary, operation, wait, arguments
                    )
                    break
                return client.call(
                    server,
                    self._tls_context,
                    operation,
                    wait,
                    arguments,
                    self._make_idle_check(index, layout, wait, deadline),
                    actor.server if local and actor is not None else None,
                )
            except RequestFailed as failed:
                error = failed.args[0]
                if not isinstance(error, NotServing):
                    raise error from None
                self._refresh_layout(index, layout.epoch, STOP_POLL_SECONDS)
            except _DeadlinePassed:
                raise TimeoutError(f"{self.description} has not answered in time") from None
            except _LayoutChanged:
                client.close()
            except OSError as error:
                client.close()
                failures = failures or _Failures()
                self._handle_unreachable(
                    failures, index, layout, operation, wait, by_scheduler, error
                )
            if deadline is not None and monotonic() > deadline:
                raise TimeoutError(f"{self.description} has not answered in time")
        if status == CONFIRM:
            client.seq += 1
            if not self._call_until_answered(client, index, QUEUE_RECEIVED.name, (), 0.0, None):
                return None  # it took too long: the item has returned to the queue
        return result

    def _handle_unreachable(
        self,
        failures: _Failures,
        index: int,
        layout: Layout,
        operation: str,
        wait: float,
        by_scheduler: bool,
        error: OSError,
    ) -> None:
        """Wait for a new layout after a broken connection; decide whether the request is repeated.

        Raises
        ------
        ServiceLost
            Too many workers have died, or the worker could not be reached for too long.
        """
        primary = layout.replicas[0]
        failures.give_up_at = min(failures.give_up_at, monotonic() + link_timeout())
        reachable = by_scheduler or not isinstance(error, NotReachable)
        # If it cannot be reached, the scheduler is asked whether it lives, and nothing is awaited.
        if self._refresh_layout(index, layout.epoch, _FAILOVER_WAIT_SECONDS if reachable else 0.0):
            failures.connections, failures.give_up_at = 0, inf
            failures.worker_deaths += 1
            if failures.worker_deaths > _MAX_WORKER_DEATHS and not wait:
                raise ServiceLost(
                    f"{failures.worker_deaths} workers that have a part of {self.description} "
                    f"died while they executed this operation: {operation}"
                ) from error
        elif monotonic() > failures.give_up_at:
            raise ServiceLost(
                f"worker {primary.worker}, which has a part of {self.description}, cannot be "
                f"reached: {error}"
            ) from error
        else:
            failures.connections += 1
            if by_scheduler:
                # The scheduler does not reach it either: the link may be mended on both ways.
                relayed.stop_relaying(primary.server)
            elif not reachable or failures.connections >= _MAX_BROKEN_CONNECTIONS:
                relayed.start_relaying(primary.server)

    def _make_idle_check(
        self, index: int, layout: Layout, wait: float, deadline: float | None
    ) -> Callable[[], None]:
        """Return the function that is called while a request waits; it ends a useless wait."""
        next_check = monotonic() + wait + _LAYOUT_CHECK_SECONDS

        def idle_check() -> None:
            nonlocal next_check
            now = monotonic()
            if deadline is not None and now > deadline + STOP_POLL_SECONDS:
                raise _DeadlinePassed
            if now > next_check:
                if self._refresh_layout(index, layout.epoch, 0.0):
                    raise _LayoutChanged
                # A firewall may have come in between, and the other side's machine may live.
                check_reachable(layout.replicas[0].server)
                next_check = monotonic() + _LAYOUT_CHECK_SECONDS

        return idle_check

    def _refresh_layout(self, index: int, epoch: int, seconds: float) -> bool:
        """Wait at the scheduler for a layout newer than an epoch; returns whether there is one."""
        answer = self._call_scheduler(
            routes.AWAIT_LAYOUT, index=index, epoch=epoch, seconds=seconds
        )
        if not isinstance(answer, Layout):
            raise self._ended_error(answer)
        with self._lock:
            self._apply_layout(index, answer)
        return answer.epoch > epoch

    def _call_by_scheduler(
        self,
        client: RpcClient,
        primary: Replica,
        operation: str,
        wait: float,
        arguments: tuple[Any, ...],
    ) -> tuple[int, Any]:
        """Have the scheduler relay a request to a worker whose server cannot be reached."""
        seconds = min(wait, _FAILOVER_WAIT_SECONDS)
        request = Request(operation, client.client_id, client.seq, seconds, arguments)
        try:
            status, result = relay_request(self.scheduler, primary, request)
        except Exception as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        if status == FAILED:
            raise RequestFailed(decode_error(result))
        return status, result

    def close(self) -> None:
        """End the object for all its users; has no effect if its cluster has ended."""
        with suppress(ServiceLost):
            self._call_scheduler(routes.CLOSE)

    def drop_connections(self) -> None:
        """Forget the connections, in a forked child: they belong to the parent."""
        self._lock = threading.Lock()
        self._idle_clients = [deque() for _ in self._idle_clients]


#: The proxies of this process, by scheduler and object; and those made last, to keep them.
_proxies: weakref.WeakValueDictionary[tuple[str, str], ObjectProxy] = weakref.WeakValueDictionary()
_recently_made: deque[ObjectProxy] = deque(maxlen=_MAX_UNUSED_PROXIES)
_proxies_lock = make_lock()


def proxy_of(scheduler: str, uid: str, info: ObjectInfo | None = None) -> ObjectProxy:
    """Return this process's proxy of an object; make one if there is none."""
    with _proxies_lock:
        return _proxies.get((scheduler, uid)) or ObjectProxy(scheduler, uid, info)


@after_fork
def _drop_all_connections() -> None:
    for proxy in list(_proxies.values()):
        proxy.drop_connections()

"""Warns while tasks wait and the cluster has no worker that can run them; says why.

A program that waits for a result would else see nothing, for example if each job of a queueing
system ends at once because its environment is wrong.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from distributed import Client

from daskbatch import config
from daskbatch.cluster.dask_backend import ClusterBackend
from daskbatch.cluster.growth.missing_workers import describe_missing, find_unfit, is_hopeless
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.task_record import Phase
from daskbatch.threads import start_unless_ending
from daskbatch.timeouts import Deadline

#: How long there is no worker before the first warning, and how often the reason is looked for.
_FIRST_SECONDS, _INTERVAL_SECONDS = 10.0, 10.0

_logger = logging.getLogger("daskbatch")


class MissingWorkersWatch:
    """The watch of one client. Any thread may use it.

    Parameters
    ----------
    client : distributed.Client
        The connection.
    who_waits : str
        How a warning begins, as "tasks wait".
    waits : callable
        Returns whether they wait, and the cluster has no slot for them.
    call_later : callable
        Calls a function on Dask's event loop after some seconds.
    refuse : callable
        Called with the reason when the cluster has had workers for ``daskbatch.unmet-timeout``, but
        none that can run tasks of ours.
    """

    def __init__(
        self,
        client: Client,
        who_waits: str,
        waits: Callable[[], bool],
        call_later: Callable[[float, Callable[[], None]], None],
        refuse: Callable[[str], None],
    ) -> None:
        self._client = client
        self._who_waits = who_waits
        self._waits = waits
        self._call_later = call_later
        self._refuse = refuse
        self._lock = threading.Lock()
        self._is_active = False
        #: The last warning.
        self._told = ""
        #: When tasks are refused, if only unfit workers are there until then; else None.
        self._deadline: Deadline | None = None

    def start(self) -> None:
        """Watch from now on, as long as tasks wait."""
        with self._lock:
            if self._is_active or not self._waits():
                return
            self._is_active = True
        self._look_again(_FIRST_SECONDS)

    def _look_again(self, seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # the client is closed
            self._call_later(seconds, self._check)

    def _check(self) -> None:
        """Go on, or stop; called on Dask's event loop."""
        with self._lock:
            self._is_active = self._client.status == "running" and self._waits()
            if not self._is_active:
                self._told, self._deadline = "", None
                return
        # It asks the scheduler, and the queueing system.
        start_unless_ending(self._look, name="daskbatch-missing-workers")

    def _look(self) -> None:
        unfit = find_unfit(self._client)
        text = describe_missing(self._client, unfit)
        if text != self._told and self._waits():
            self._told = text
            _logger.warning("%s for a worker: %s", self._who_waits, text)
        if not is_hopeless(self._client, unfit):
            self._deadline = None
        elif self._deadline is None:
            self._deadline = Deadline(config.get_optional_seconds("unmet-timeout"))
        elif self._deadline.passed and self._waits():
            self._deadline = None
            self._refuse(f"has no worker: {text}")
        remaining = None if self._deadline is None else self._deadline.remaining(_INTERVAL_SECONDS)
        self._look_again(_INTERVAL_SECONDS if remaining is None else remaining)


def watch_tasks(backend: ClusterBackend, dispatcher: Dispatcher) -> MissingWorkersWatch:
    """Return the watch of the tasks of a client, which begins anew when the last worker leaves."""

    def wait() -> bool:
        return bool(dispatcher.outcomes.unfinished) and not backend.slots

    def refuse(why: str) -> None:
        waiting = [each for each in dispatcher.unfinished() if each.phase == Phase.WAITING]
        dispatcher.refuse(dict.fromkeys(waiting, why))

    watch = MissingWorkersWatch(backend.client, "tasks wait", wait, backend.call_later, refuse)
    backend.on_no_slots = watch.start
    return watch

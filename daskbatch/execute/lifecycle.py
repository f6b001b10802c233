"""The life of contexts, jobs and tasks: when they start and stop, and the listeners to that.

Any thread may add and remove listeners. They are called by the thread that starts or stops the
object, while it holds no lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

_logger = logging.getLogger("daskbatch")

Listener = Callable[[Any], object]


class Lifecycle:
    """Something that starts and stops, with listeners that are called then.

    Attributes
    ----------
    name, desc : str or None
        A name, and a description.
    started_on, stopped_on : datetime or None
        When it started last, and when it stopped after that. Local time.
    cancelled : bool
        Whether it was cancelled.

    Examples
    --------
    >>> life = Lifecycle("demo")
    >>> life.add_listener(lambda it: print(it.name, "runs" if it.running else "has stopped"))
    >>> life.signal_start()
    demo runs
    >>> life.signal_stop()
    demo has stopped
    >>> life.started_on <= life.stopped_on, life.duration >= timedelta(0)
    (True, True)
    """

    def __init__(self, name: str | None = None, desc: str | None = None) -> None:
        self.name = name
        self.desc = desc
        self.started_on: datetime | None = None
        self.stopped_on: datetime | None = None
        self.cancelled = False
        # Tuples, which are replaced: a job may have many tasks, and few have listeners.
        self._started_listeners: tuple[Listener, ...] = ()
        self._stopped_listeners: tuple[Listener, ...] = ()

    def add_listener(self, started: Listener | None, stopped: Listener | None = None) -> None:
        """Have functions called when this starts and when it stops.

        Parameters
        ----------
        started : callable or None
            Called with this object at each start; if it is the only one given, also at each stop.
        stopped : callable, optional
            Called with this object at each stop.
        """
        if stopped is None:
            stopped = started
        if started is not None:
            self._started_listeners += (started,)
        if stopped is not None:
            self._stopped_listeners += (stopped,)

    def remove_listener(self, *listeners: Listener) -> None:
        """Call some functions no longer; unknown ones do no harm.

        Parameters
        ----------
        *listeners : callable
            The functions.
        """
        self._started_listeners = tuple(
            each for each in self._started_listeners if each not in listeners
        )
        self._stopped_listeners = tuple(
            each for each in self._stopped_listeners if each not in listeners
        )

    def signal_start(self) -> None:
        """Note that this starts, perhaps again, and call the listeners."""
        self.stopped_on = None
        self.started_on = datetime.now()
        if self._started_listeners:
            self._call(self._started_listeners)

    def signal_stop(self) -> None:
        """Note that this has stopped, and call the listeners."""
        if self.stopped_on is None:
            self.stopped_on = datetime.now()
            if self.started_on is None:
                self.started_on = self.stopped_on
        if self._stopped_listeners:
            self._call(self._stopped_listeners)

    def cancel(self) -> bool:
        """Cancel this, if it runs; returns whether it did."""
        if not self.running:
            return False
        self.cancelled = True
        self.signal_stop()
        return True

    @property
    def running(self) -> bool:
        """Whether this has started and not stopped."""
        return self.started_on is not None and self.stopped_on is None

    @property
    def stopped(self) -> bool:
        """Whether this has stopped."""
        return self.stopped_on is not None

    @property
    def duration(self) -> timedelta | None:
        """How long this ran, or has run by now; None if it has not started."""
        if self.started_on is None:
            return None
        return (self.stopped_on or datetime.now()) - self.started_on

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_started_listeners"] = state["_stopped_listeners"] = ()
        return state

    def _call(self, listeners: tuple[Listener, ...]) -> None:
        for listener in listeners:
            try:
                listener(self)
            except Exception:
                # The job must not depend on who listens to it.
                _logger.exception("a listener of %r raised", self)

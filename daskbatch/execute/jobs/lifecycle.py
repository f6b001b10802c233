"""Records when contexts, jobs and tasks start and stop, and calls listeners at these moments.

Any thread may add and remove listeners. The thread that starts or stops the object calls them,
while it holds no lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

_logger = logging.getLogger("daskbatch")

Listener = Callable[[Any], object]


class Lifecycle:
    """An object that starts and stops, and calls its listeners each time.

    Any thread may use it.

    Attributes
    ----------
    name, desc : str or None
        A name, and a description.
    started_on, stopped_on : datetime or None
        The time of its last start, and of the stop after that. Local time.
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
        # Tuples, which are replaced at a change: the empty tuple takes no memory, and a job may
        # have many tasks, of which few have listeners.
        self._started_listeners: tuple[Listener, ...] = ()
        self._stopped_listeners: tuple[Listener, ...] = ()

    def add_listener(self, started: Listener | None, stopped: Listener | None = None) -> None:
        """Add functions to call when this object starts and when it stops.

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
        """Remove listeners; a function that is not a listener is ignored.

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
        """Record a start, which may be a repeated one, and call the listeners."""
        self.stopped_on = None
        self.started_on = datetime.now()
        if self._started_listeners:
            self._call(self._started_listeners)

    def signal_stop(self) -> None:
        """Record the stop, and call the listeners."""
        if self.stopped_on is None:
            self.stopped_on = datetime.now()
            if self.started_on is None:
                self.started_on = self.stopped_on
        if self._stopped_listeners:
            self._call(self._stopped_listeners)

    def cancel(self) -> bool:
        """Cancel this object if it is running; returns whether it was running."""
        if not self.running:
            return False
        self.cancelled = True
        self.signal_stop()
        return True

    @property
    def running(self) -> bool:
        """Whether this object has started and not stopped since."""
        return self.started_on is not None and self.stopped_on is None

    @property
    def stopped(self) -> bool:
        """Whether this object has stopped."""
        return self.stopped_on is not None

    @property
    def duration(self) -> timedelta | None:
        """The time from start to stop, or to now while it runs; None if it has not started."""
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
                # An error in a listener must not make the job fail.
                _logger.exception("a listener of %r raised", self)

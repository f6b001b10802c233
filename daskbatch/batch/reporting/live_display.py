"""Displays an object in IPython, and updates the display while its tasks run.

A thread updates the display; it holds the object only while it makes the new form, so that a Batch
that the program drops ends. In a terminal nothing is updated.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

#: A display is updated after a time in this range. The longer it is shown, and the longer it takes
#: to make the form, the more seldom.
_MIN_INTERVAL_SECONDS, _MAX_INTERVAL_SECONDS = 0.5, 10.0

#: An interval is this part of the time so far, and this many times as long as the form takes.
_SHOWN_PART, _FORM_FACTOR = 0.1, 10.0

#: The name of the threads that update displays.
THREAD_NAME = "daskbatch-display"


class Displayed(Protocol):
    """An object with an HTML form."""

    def _repr_html_(self) -> str: ...


def show(shown: Displayed, is_running: Callable[[Any], bool]) -> None:
    """Display an object as IPython's ``_ipython_display_`` does, and update it while it runs.

    Parameters
    ----------
    shown : Displayed
        The object. It must allow weak references.
    is_running : callable
        Takes the object, and returns whether its form may still change by itself.
    """
    from IPython import get_ipython
    from IPython.display import display

    handle: Any = display(_form(shown), raw=True, display_id=True)  # type: ignore[no-untyped-call]
    # Only kernels can change what they have displayed.
    if handle is None or not hasattr(get_ipython(), "kernel") or not is_running(shown):
        return
    updates = _Updates(weakref.ref(shown), is_running, handle)
    threading.Thread(target=updates.run, name=THREAD_NAME, daemon=True).start()


def _form(shown: Displayed) -> dict[str, str]:
    return {"text/html": shown._repr_html_(), "text/plain": repr(shown)}


class _Updates:
    """Updates one display until its object is over or gone."""

    def __init__(
        self, shown: weakref.ref[Any], is_running: Callable[[Any], bool], handle: Any
    ) -> None:
        self._shown = shown
        self._is_running = is_running
        self._handle = handle

    def run(self) -> None:
        begin = monotonic()
        wait = threading.Event()
        running, took = True, 0.0
        while running:
            interval = max((monotonic() - begin) * _SHOWN_PART, took * _FORM_FACTOR)
            wait.wait(min(max(interval, _MIN_INTERVAL_SECONDS), _MAX_INTERVAL_SECONDS))
            updated = monotonic()
            try:
                running = self._update()
            except Exception:  # the front end is gone
                return
            took = monotonic() - updated

    def _update(self) -> bool:
        shown = self._shown()
        if shown is None:
            return False
        running = self._is_running(shown)  # before the form is made: the last one is complete
        self._handle.update(_form(shown), raw=True)
        return running

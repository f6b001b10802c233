"""Restores settings of a process that a member of a block may leave in a child.

Signal handlers, blocked signals, timers, the mask for new files, the locale, the default timeout of
sockets, the recursion limit, stdin. The main thread of the child calls it, after each member.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import os
import signal
import socket
import sys
from types import ModuleType
from typing import Any

from daskbatch.worker.processes import initial_state

#: The signals for which programs set handlers. To look at all takes ten times as long.
_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD),
    *(signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2),
)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class ProcessSettings:
    """The settings to restore: those at the start, or after an initializer has set others.

    Used by the main thread of a child.
    """

    def __init__(self) -> None:
        self._locale: str | None = None
        self.record()

    def record(self) -> None:
        """Take the settings as they are now for those to restore."""
        # Not by `signal`, which makes a member of an enum of each number and handler: that took a
        # tenth of the time of a short member.
        self._handlers = [(int(number), _signal.getsignal(number)) for number in _SIGNALS]
        self._blocked = initial_state.signal_mask()
        self._umask = initial_state.read_umask()
        self._socket_timeout = socket.getdefaulttimeout()
        self._recursion_limit = sys.getrecursionlimit()
        module = sys.modules.get("locale")
        if module is not None:
            self._locale = module.setlocale(module.LC_ALL)

    def restore(self) -> None:
        """Restore the settings that a member has changed."""
        # First: an alarm must not end the next member, nor interrupt what follows.
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        for number, handler in self._handlers:
            if handler is not None and _signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        initial_state.set_signal_mask(self._blocked)
        os.umask(self._umask)
        socket.setdefaulttimeout(self._socket_timeout)
        if sys.getrecursionlimit() != self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        initial_state.open_standard_descriptors()
        module = sys.modules.get("locale")
        if module is not None:
            with contextlib.suppress(Exception):
                self._restore_locale(module)

    def _restore_locale(self, module: ModuleType) -> None:
        now = module.setlocale(module.LC_ALL)
        if self._locale is None:
            self._locale = _locale_at_start(module)
        if now != self._locale:
            module.setlocale(module.LC_ALL, self._locale)


def _locale_at_start(module: Any) -> str:
    """Set the locale that Python sets at its start, and return its name."""
    module.setlocale(module.LC_ALL, "C")
    with contextlib.suppress(module.Error):
        module.setlocale(module.LC_CTYPE, "")
    return str(module.setlocale(module.LC_ALL))

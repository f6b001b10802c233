"""Makes calls in other threads, where they may wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Caught(threading.Thread):
    """Calls a function in a new thread; keeps what it returned or raised.

    `result` waits for the call and returns that, an exception too.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self.found: Any = None
        self._function = function
        self._args = args
        self.start()

    def run(self) -> None:
        try:
            self.found = self._function(*self._args)
        except BaseException as error:
            self.found = error

    def result(self, seconds: float = 30.0) -> Any:
        self.join(seconds)
        assert not self.is_alive(), "it hangs"
        return self.found


def blocked(*waiting: Caught) -> None:
    """Check that calls still wait, after a time in which each must have begun to wait."""
    for each in waiting:
        each.join(0.3)
        assert each.is_alive(), each.found

"""Shows the progress of tasks while the program waits for them.

The thread that waits makes a `ProgressMonitor`; a thread of the monitor draws.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic, perf_counter

from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.observation.progress_counts import (
    ProgressCounts,
    count_progress,
    estimate_seconds,
)
from daskbatch.observation.progress_display import ProgressDisplay, make_display

#: How often the display is drawn, at most; and which part of the time it may take to count.
_INTERVAL_SECONDS, _MAX_PART = 0.1, 0.02

#: How often the time that is left is estimated anew.
_ESTIMATE_INTERVAL_SECONDS = 1.0

#: How long the end of the thread is waited for: a terminal may be stopped (Ctrl-S).
_END_TIMEOUT_SECONDS = 2.0


class ProgressMonitor:
    """Shows the progress of some tasks within a `with` block.

    If the display fails, it is given up, and the wait goes on.

    Parameters
    ----------
    name : str
        The name of what is going on.
    records : sequence of TaskRecord
        The tasks.
    dispatcher : Dispatcher
        The dispatcher of the client that has made them.
    slots : int
        How many tasks run at once.
    """

    def __init__(
        self, name: str, records: Sequence[TaskRecord], dispatcher: Dispatcher, slots: int
    ) -> None:
        self._name = name
        self._records = records
        self._dispatcher = dispatcher
        self._slots = slots
        self._began = monotonic()
        self._end = threading.Event()
        self._display: ProgressDisplay | None = None
        self._last: tuple[ProgressCounts, int] | None = None
        self._remaining: float | None = None
        self._estimated_at = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ProgressMonitor:
        self._display = make_display(self._name, len(self._records))
        thread = threading.Thread(target=self._run, name="daskbatch-progress", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends
            return self
        self._thread = thread
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(_END_TIMEOUT_SECONDS)
            if self._thread.is_alive():
                return
        self._guarded(self._show_last)

    def _show_last(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            try:
                counts = count_progress(self._records)
                display.show(counts, monotonic() - self._began, None)
            finally:
                display.close()

    def _run(self) -> None:
        pause = _INTERVAL_SECONDS
        while not self._end.wait(pause):
            began = perf_counter()
            self._guarded(self._show)
            pause = max(_INTERVAL_SECONDS, (perf_counter() - began) / _MAX_PART)

    def _guarded(self, function: object) -> None:
        try:
            function()  # type: ignore[operator]
        except Exception:  # the stream was closed, or a display that is not ours has failed
            display, self._display = self._display, None
            if display is not None:
                try:
                    display.close()
                except Exception:
                    return

    def _show(self) -> None:
        if self._display is None:
            return
        counts, seconds = count_progress(self._records), monotonic() - self._began
        if (counts, round(seconds)) == self._last:
            return
        self._last = counts, round(seconds)
        if seconds >= self._estimated_at + _ESTIMATE_INTERVAL_SECONDS or self._remaining is None:
            self._estimated_at = seconds
            self._remaining = estimate_seconds(
                self._records, self._slots, self._dispatcher.table.expected_seconds
            )
        self._display.show(counts, seconds, self._remaining)

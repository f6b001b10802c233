"""Waits for the end of a process that this one has started, and says what it has used.

The peak of the memory is difficult to know. The kernel counts to the peak of a process (wait4(2))
what the process had before it became the executable: the memory of the worker. So `ProcessMeter`
also looks at the process while it runs, first often, then less often.
"""

from __future__ import annotations

import os
import subprocess
from time import monotonic, sleep

from daskbatch.worker.execution.measures import UNKNOWN_CPU, Usage
from daskbatch.worker.processes.tree_usage import peak_memory, read_tree

#: The shortest and the longest time between two looks. Between them it is a part of the time that
#: the process has run for.
_MIN_INTERVAL_SECONDS, _MAX_INTERVAL_SECONDS = 0.002, 0.5
_INTERVAL_PART = 0.2

#: The unit of `ru_maxrss`: kilobytes, but bytes on macOS.
_MAXRSS_BYTES = 1024 if os.uname().sysname != "Darwin" else 1

#: The peak of this process's memory, as it was last read: it never becomes less.
_own_peak = [0]


class ProcessMeter:
    """Measures what a process and all that it starts use, from its start to its end.

    Used by one thread at a time.

    Parameters
    ----------
    process : subprocess.Popen
        The process, which has just been started.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._began = monotonic()
        self._due = self._began + _MIN_INTERVAL_SECONDS
        #: The peak of the memory; 0 as long as it is not known. What the process has directly after
        #: its start says nothing.
        self._memory = 0
        self._cpu_seconds = 0.0

    def seconds_until_look(self) -> float:
        """Return after which time `look` is to be called next."""
        return max(0.0, self._due - monotonic())

    def look(self) -> None:
        """Look at the process, if it is time to do so."""
        now = monotonic()
        if now < self._due:
            return
        self.look_now()
        interval = (now - self._began) * _INTERVAL_PART
        self._due = now + min(max(interval, _MIN_INTERVAL_SECONDS), _MAX_INTERVAL_SECONDS)

    def look_now(self) -> None:
        """Look at the process."""
        tree = read_tree(self._process.pid)
        self._memory = max(self._memory, tree.memory, peak_memory(self._process.pid))
        self._cpu_seconds = max(self._cpu_seconds, tree.cpu_seconds)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process; return its exit code.

        Raises
        ------
        subprocess.TimeoutExpired
            It has not ended in time.
        """
        process = self._process
        if process.returncode is None and timeout is None:
            self._reap(0)
        elif process.returncode is None:
            # The process was sent SIGKILL: it ends within moments, or hangs in the kernel.
            end, pause = monotonic() + (timeout or 0.0), 0.0005
            while not self._reap(os.WNOHANG):
                if monotonic() > end:
                    raise subprocess.TimeoutExpired(process.args, timeout or 0.0)
                sleep(pause)
                pause = min(2 * pause, 0.05)
        assert process.returncode is not None
        return process.returncode

    def _reap(self, options: int) -> bool:
        """Wait for the end of the process by wait4(2); return whether it has ended."""
        process = self._process
        try:
            pid, status, usage = os.wait4(process.pid, options)
        except ChildProcessError:
            process.poll()  # another part of the program has waited for it
            return process.returncode is not None
        if not pid:
            return False
        process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_seconds = max(self._cpu_seconds, usage.ru_utime + usage.ru_stime)
        peak = usage.ru_maxrss * _MAXRSS_BYTES
        # Up to the peak of this process the value may be that of this process.
        if peak > max(_own_peak[0], self._memory):
            _own_peak[0] = peak_memory(os.getpid())
            if peak > _own_peak[0]:
                self._memory = peak
        return True

    def usage(self) -> Usage:
        """Return what the process has used so far."""
        has_cpu = self._process.returncode is not None or self._cpu_seconds > 0
        return Usage(
            self._cpu_seconds if has_cpu else UNKNOWN_CPU, self._memory or None, self._process.pid
        )

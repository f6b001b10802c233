"""Measures the peak of this process's resident memory for one member after the other.

Linux keeps the peak since it was last reset (`VmHWM` of proc(5)), and resets it by a write to
`/proc/self/clear_refs`. The main thread of a child uses it.
"""

from __future__ import annotations

import os

from daskbatch.memory import kept_mappings

#: What resets the peak; see proc(5).
_RESET_PEAK = b"5"

#: A member that ran for a shorter time is not measured: it could not use much memory that it
#: has not given back, and to read the counters takes as long as a short member.
_MIN_MEASURED_SECONDS = 0.002


class OwnMemory:
    """The peak of this process's resident memory since the last member.

    Used by one thread at a time. Where the system has no such counters, all peaks are None.
    """

    def __init__(self) -> None:
        #: The resident memory after the last member that was measured.
        self._resident: int | None = None
        self._can_reset = True
        self.reset()

    def reset(self) -> None:
        """Forget the peak so far: another member begins."""
        try:
            with open("/proc/self/clear_refs", "wb", buffering=0) as file:
                file.write(_RESET_PEAK)
        except OSError:
            self._can_reset = False

    def peak_of(self, seconds: float) -> int | None:
        """Return the peak of a member that has just ended, and begin the next measurement.

        Parameters
        ----------
        seconds : float
            How long the member ran.

        Returns
        -------
        int or None
            The peak in bytes; of a very short member the resident memory before it.
        """
        if seconds < _MIN_MEASURED_SECONDS and self._resident is not None:
            return self._resident
        peak, self._resident = _read_status()
        # Mappings that are kept for later tasks: this member did not use them.
        kept = kept_mappings.lowest_kept_bytes()
        peak, self._resident = _less(peak, kept), _less(self._resident, kept)
        if not self._can_reset:
            # The peak may be that of an earlier member.
            return self._resident
        self.reset()
        return peak


def _less(resident: int | None, kept: int) -> int | None:
    # A page of a kept mapping need not be in memory.
    return None if resident is None else max(0, resident - kept)


def _read_status() -> tuple[int | None, int | None]:
    """Return the peak and the present resident memory of this process."""
    try:
        file = os.open("/proc/self/status", os.O_RDONLY)
    except OSError:
        return None, None
    try:
        text = os.read(file, 1 << 14)
    finally:
        os.close(file)
    return _field(text, b"VmHWM:"), _field(text, b"VmRSS:")


def _field(text: bytes, name: bytes) -> int | None:
    found = text.partition(name)[2].split(None, 1)
    return int(found[0]) * 1024 if found else None

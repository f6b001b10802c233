"""Functions for profiled tasks, and checks whether a process still profiles."""

from __future__ import annotations

import sys
import tracemalloc

_held: list[bytearray] = []


def burn() -> int:
    return sum(number * number for number in range(100_000))


def hold(size: int) -> None:
    _held.append(bytearray(size))


def let_go() -> None:
    _held.clear()


def is_profiling() -> bool:
    # Another thread may be importing it at this moment.
    is_running = getattr(sys.modules.get("yappi"), "is_running", None)
    return tracemalloc.is_tracing() or (is_running is not None and is_running())


def profile_directories() -> bool:
    from daskbatch.worker.profiling import child_profiles

    return child_profiles._directory is not None


_hidden: list[object] = []


def hide_yappi() -> None:
    """Make imports of yappi fail in this process, as if it were not installed."""
    _hidden.append(sys.modules.pop("yappi", None))
    sys.modules["yappi"] = None  # type: ignore[assignment]


def show_yappi() -> None:
    if _hidden:
        del sys.modules["yappi"]
        found = _hidden.pop()
        if found is not None:
            sys.modules["yappi"] = found  # type: ignore[assignment]

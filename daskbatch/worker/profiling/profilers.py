"""Starts, reports and stops the profilers of this process.

A profiler runs as long as it has an owner. Several owners may share one profiler. Any thread may
call these functions.
"""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

from daskbatch.forking import make_lock

CPU, MEMORY = "cpu", "memory"


class _Kind(NamedTuple):
    """The functions that start, stop and report one kind of profiler."""

    start: Callable[[], None]
    stop: Callable[[], None]
    report: Callable[[], bytes]


_owners: dict[str, set[str]] = {CPU: set(), MEMORY: set()}
_lock = make_lock()

#: Whether the user had already started tracemalloc. Then only the user stops it.
_users_tracing = False


def start(kind: str, owner: str) -> None:
    """Start a profiler for an owner.

    Raises
    ------
    ImportError
        A package that the profiler needs is not installed here.
    """
    with _lock:
        if not _owners[kind]:
            _KINDS[kind].start()
        _owners[kind].add(owner)


def report(kind: str) -> bytes | None:
    """Return the pickled profile measured so far; None if the profiler does not run."""
    with _lock:
        return _KINDS[kind].report() if _owners[kind] else None


def forget(owners: str) -> None:
    """Remove the owners whose names begin with `owners`; stop profilers without an owner."""
    with _lock:
        for kind, names in _owners.items():
            remaining = {each for each in names if not each.startswith(owners)}
            if names and not remaining:
                _KINDS[kind].stop()
            _owners[kind] = remaining


def active() -> tuple[tuple[str, str], ...]:
    """Return the kinds of the profilers that run, with their owners."""
    if not any(_owners.values()):
        return ()
    with _lock:
        return tuple((kind, each) for kind, names in _owners.items() for each in sorted(names))


def follow(wanted: tuple[tuple[str, str], ...]) -> None:
    """Run exactly the profilers that are wanted, each with its owners; see `active`."""
    have = set(active())
    for kind, owner in set(wanted) - have:
        start(kind, owner)
    for _, owner in have - set(wanted):
        forget(owner)


# -- the kinds ----------------------------------------------------------------------------


def _start_cpu() -> None:
    import yappi

    yappi.stop()
    yappi.clear_stats()
    yappi.set_clock_type("cpu")
    yappi.start()


def _stop_cpu() -> None:
    import yappi

    yappi.stop()
    yappi.clear_stats()


def _report_cpu() -> bytes:
    import yappi

    stats: Any = yappi.get_func_stats()
    # The format in which yappi itself saves statistics.
    return pickle.dumps((stats, stats._clock_type), 2)


def _start_memory() -> None:
    global _users_tracing
    _users_tracing = tracemalloc.is_tracing()
    if not _users_tracing:
        tracemalloc.start()


def _stop_memory() -> None:
    if not _users_tracing:
        tracemalloc.stop()


def _report_memory() -> bytes:
    return pickle.dumps(tracemalloc.take_snapshot(), 5)


_KINDS = {
    CPU: _Kind(_start_cpu, _stop_cpu, _report_cpu),
    MEMORY: _Kind(_start_memory, _stop_memory, _report_memory),
}

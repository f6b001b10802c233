"""Starts, reports and stops the profilers of this process.

A profiler runs as long as it has an owner. Several owners may share one profiler. Any thread may
call these functions.
"""

from __future__ import annotations

import pickle
import tracemalloc
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from daskbatch.forking import make_lock

CPU, MEMORY = "cpu", "memory"

#: How many owners that have ended this process remembers, to refuse a start that arrives late.
_MAX_ENDED_OWNERS = 1000


class _Kind(NamedTuple):
    """The functions that start, stop and report one kind of profiler."""

    start: Callable[[], None]
    stop: Callable[[], None]
    report: Callable[[], bytes]


_owners: dict[str, set[str]] = {CPU: set(), MEMORY: set()}
_ended: deque[str] = deque(maxlen=_MAX_ENDED_OWNERS)
_lock = make_lock()

#: Whether the user had already started tracemalloc. Then only the user stops it.
_users_tracing = False


def start(kind: str, owner: str) -> None:
    """Start a profiler for an owner; do nothing if the owner has ended already.

    A request to stop a profiler can overtake the request to start it, since each is processed in
    a thread.

    Raises
    ------
    ImportError
        A package that the profiler needs is not installed here.
    """
    with _lock:
        if any(_belongs(owner, each) for each in _ended):
            return
        if not _owners[kind]:
            _KINDS[kind].start()
        _owners[kind].add(owner)


def report(kind: str) -> bytes | None:
    """Return the pickled profile measured so far; None if the profiler does not run."""
    with _lock:
        return _KINDS[kind].report() if _owners[kind] else None


def forget(owners: str) -> None:
    """End one owner, or the owners of a client; stop profilers without an owner.

    Parameters
    ----------
    owners : str
        The name of the owner, or the part of it before a slash, which names the client.
    """
    with _lock:
        _ended.append(owners)
        _remove(owners)


def stop_all() -> None:
    """Stop all profilers, whatever their owners."""
    with _lock:
        _remove(None)


def active() -> tuple[tuple[str, str], ...]:
    """Return the kinds of the profilers that run, with their owners."""
    if not any(_owners.values()):
        return ()
    with _lock:
        return tuple((kind, each) for kind, names in _owners.items() for each in sorted(names))


def run_exactly(wanted: tuple[tuple[str, str], ...]) -> None:
    """Run exactly the profilers that are wanted, each with its owners; see `active`."""
    present = set(active())
    for kind, owner in set(wanted) - present:
        start(kind, owner)
    for _, owner in present - set(wanted):
        forget(owner)


def _belongs(owner: str, owners: str | None) -> bool:
    return owners is None or owner == owners or owner.startswith(f"{owners}/")


def _remove(owners: str | None) -> None:
    for kind, names in _owners.items():
        remaining = {each for each in names if not _belongs(each, owners)}
        if names and not remaining:
            _KINDS[kind].stop()
        _owners[kind] = remaining


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
    if not tracemalloc.is_tracing():  # a task has stopped it
        return pickle.dumps(tracemalloc.Snapshot((), 1), 5)
    return pickle.dumps(tracemalloc.take_snapshot(), 5)


_KINDS = {
    CPU: _Kind(_start_cpu, _stop_cpu, _report_cpu),
    MEMORY: _Kind(_start_memory, _stop_memory, _report_memory),
}

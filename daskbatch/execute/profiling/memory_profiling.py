"""Profiles memory across a cluster, by tracemalloc.

Several threads may use one `MemoryProfiling`.
"""

from __future__ import annotations

import pickle
import sys
import tracemalloc
from collections.abc import Iterable, Sequence
from typing import IO, Any

from daskbatch.errors import SpecError
from daskbatch.execute.profiling.cluster_profiler import ClusterProfiler
from daskbatch.execute.profiling.module_names import ModuleFilter, module_name
from daskbatch.execute.profiling.profile_parts import merge, merge_per_worker, print_parts
from daskbatch.execute.workers.worker import Worker
from daskbatch.worker.profiling.profilers import MEMORY

_GROUPS = ("lineno", "filename", "traceback")

Snapshots = tracemalloc.Snapshot | list[tuple[Worker, tracemalloc.Snapshot]]


class MemoryProfiling:
    """Profiles the memory that the workers and their children allocate, by ``tracemalloc``.

    The profiler does not see memory that was allocated before the start. The profiling of a
    child starts with the next task that the child runs. Several threads may use this object.

    Parameters
    ----------
    ctx : ExecutionContext
        The context whose workers are profiled.

    Examples
    --------
    >>> profiling = ctx.memory_profiling
    >>> profiling.start()
    >>> before = profiling.take_snapshot()
    >>> profiling.stop()
    >>> sum(stat.size for stat in before.statistics("filename")) >= 0
    True
    """

    def __init__(self, ctx: Any) -> None:
        self._profiler = ClusterProfiler(ctx._connect, MEMORY)
        ctx._profilers.add(self)

    def start(self) -> None:
        """Start profiling on all workers. If it runs already, do nothing."""
        self._profiler.start()

    def stop(self) -> None:
        """Stop profiling. If it does not run, do nothing."""
        self._profiler.stop()

    def take_snapshot(self, per_worker: bool = False) -> Snapshots:
        """Return the memory that is allocated now, with the places in the code that allocated it.

        Parameters
        ----------
        per_worker : bool
            Whether to return the snapshot of each worker separately.

        Returns
        -------
        tracemalloc.Snapshot, or list of (Worker, tracemalloc.Snapshot)
            One snapshot of all workers and their children; or, with `per_worker`, a list with
            the snapshot of each worker and its children.

        Raises
        ------
        LifecycleError
            The profiling does not run.
        """
        found = self._profiler.collect()
        if per_worker:
            return merge_per_worker(found, _merge_snapshots)
        return merge(found, _merge_snapshots)

    def print_top(
        self,
        group_by: str = "lineno",
        limit: int = 30,
        compare_to: tracemalloc.Snapshot | None = None,
        per_worker: bool = False,
        strip_dirs: bool = True,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        file: IO[str] | None = None,
    ) -> Snapshots:
        """Take a snapshot across the cluster and print the top memory allocations.

        Parameters
        ----------
        group_by : str
            How to group the allocations: ``lineno``, ``filename`` or ``traceback``.
        limit : int
            The number of lines to print.
        compare_to : tracemalloc.Snapshot, optional
            A snapshot to compare the memory usage to. It excludes `per_worker`.
        per_worker : bool
            Whether to print one list for each worker.
        strip_dirs : bool
            Whether to show the names of modules in place of the paths of files.
        include, exclude : str or sequence of str
            The only root modules to print, and the root modules not to print. Both require
            `strip_dirs`.
        file : file object, optional
            The file to print to; by default ``sys.stdout``.

        Returns
        -------
        tracemalloc.Snapshot, or list of (Worker, tracemalloc.Snapshot)
            The snapshot; see `take_snapshot`.

        Raises
        ------
        SpecError
            A parameter is wrong.
        LifecycleError
            The profiling does not run.
        """
        shown = ModuleFilter(include, exclude, strip_dirs)
        if group_by not in _GROUPS:
            raise SpecError(f"group_by= must be one of {', '.join(_GROUPS)}, not {group_by!r}")
        if compare_to is not None and per_worker:
            raise SpecError("compare_to= is a snapshot of all workers: omit per_worker")
        out = sys.stdout if file is None else file
        snapshots = self.take_snapshot(per_worker)

        def print_part(snapshot: tracemalloc.Snapshot) -> None:
            current = _named(snapshot, shown, strip_dirs)
            statistics: Sequence[Any]
            if compare_to is None:
                statistics = current.statistics(group_by)
            else:
                before = _named(compare_to, shown, strip_dirs)
                statistics = current.compare_to(before, group_by)
            _print(statistics, limit, out)

        print_parts(snapshots, print_part, out)
        return snapshots


def _merge_snapshots(pieces: Iterable[bytes]) -> tracemalloc.Snapshot:
    traces: list[Any] = []
    limit = 1
    for piece in pieces:
        snapshot = pickle.loads(piece)
        traces += snapshot.traces._traces
        limit = max(limit, snapshot.traceback_limit)
    return tracemalloc.Snapshot(traces, limit)


def _named(
    snapshot: tracemalloc.Snapshot, shown: ModuleFilter, strip_dirs: bool
) -> tracemalloc.Snapshot:
    """Return a snapshot with modules in place of files, and without the modules not shown."""
    traces = []
    for domain, size, frames, total in snapshot.traces._traces:  # type: ignore[attr-defined]
        if frames and frames[0][0] == tracemalloc.__file__:
            continue  # memory that tracemalloc itself uses
        if strip_dirs:
            frames = tuple((module_name(path), line) for path, line in frames)
        if not frames or shown.shows(frames[0][0]):
            traces.append((domain, size, frames, total))
    return tracemalloc.Snapshot(traces, snapshot.traceback_limit)


def _print(statistics: Sequence[Any], limit: int, out: IO[str]) -> None:
    for number, each in enumerate(statistics[:limit], 1):
        print(f"#{number}: {each}", file=out)
    rest = statistics[limit:]
    if rest:
        size = sum(each.size for each in rest) / 1024
        print(f"{len(rest)} others: {size:.1f} KiB", file=out)
    total = sum(each.size for each in statistics) / 1024
    print(f"Total allocated size: {total:.1f} KiB", file=out)

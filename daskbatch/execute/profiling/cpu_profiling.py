"""Profiles CPU time across a cluster, by yappi.

Several threads may use one `CpuProfiling`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from daskbatch.errors import LifecycleError, SpecError
from daskbatch.execute.profiling.cluster_profiler import ClusterProfiler, WorkerProfile
from daskbatch.execute.profiling.module_names import ModuleFilter, module_name
from daskbatch.execute.profiling.profile_parts import merge, merge_per_worker, print_parts
from daskbatch.worker.profiling.profilers import CPU

#: The column to sort by, for each value that the caller may pass as `sort_by`.
_SORT_COLUMNS = {
    **dict.fromkeys(("name",), "name"),
    **dict.fromkeys(("ncall", "callcount", "ncalls"), "ncall"),
    **dict.fromkeys(("tsub", "subtime"), "tsub"),
    **dict.fromkeys(("ttot", "totaltime", "tottime"), "ttot"),
    **dict.fromkeys(("tavg", "avgtime"), "tavg"),
}


class _Row(NamedTuple):
    """One row of the printed table: one function."""

    name: str
    module: str
    ncall: int
    tsub: float
    ttot: float
    tavg: float


class CpuProfiling:
    """Profiles the CPU time of functions on all workers and in their children, by ``yappi``.

    The extra ``profiling`` must be installed, here and on the workers. The profiling of a
    child starts with the next task that the child runs. The profiler measures everything that
    runs in these processes, also the tasks of other clients. Several threads may use this object.

    Parameters
    ----------
    ctx : ExecutionContext
        The context whose workers are profiled.

    Examples
    --------
    >>> import io
    >>> profiling = ctx.cpu_profiling
    >>> profiling.start()
    >>> task = ctx.batch.function(sorted, range(1000), key=lambda number: -number)
    >>> task.run()
    >>> profiling.stop()
    >>> table = io.StringIO()
    >>> profiling.print_stats(3, sort_by="ttot", file=table)
    >>> table.getvalue().split("\\n")[0].split()
    ['name', 'ncall', 'tsub', 'ttot', 'tavg']
    """

    def __init__(self, ctx: Any) -> None:
        self._profiler = ClusterProfiler(ctx._connect, CPU)
        self._last: list[WorkerProfile] | None = None
        ctx._profilers.add(self)

    def start(self) -> None:
        """Start profiling on all workers. If it runs already, do nothing.

        Raises
        ------
        BatchError
            ``yappi`` is not installed on a worker.
        """
        self._last = None
        self._profiler.start()

    def stop(self) -> None:
        """Stop profiling, and keep the statistics in this object."""
        if self._profiler.running:
            try:
                self._last = self._profiler.collect()
            finally:
                self._profiler.stop()

    def get_stats(self, per_worker: bool = False) -> Any:
        """Return the statistics: those measured so far, or, after `stop`, until then.

        Parameters
        ----------
        per_worker : bool
            Whether to return the statistics of each worker separately.

        Returns
        -------
        yappi.YFuncStats, or list of (Worker, yappi.YFuncStats)
            The statistics merged over all workers and their children; or, with `per_worker`, a
            list with the statistics of each worker and its children.

        Raises
        ------
        LifecycleError
            The profiling was never started.
        """
        found = self._last
        if found is None:
            if not self._profiler.running:
                raise LifecycleError("nothing was profiled: call start() first")
            found = self._profiler.collect()
        return (merge_per_worker if per_worker else merge)(found, _merge_stats)

    def print_stats(
        self,
        max_rows: int | None = 100,
        sort_by: str | None = None,
        sort_dir: str | None = None,
        columns: Sequence[tuple[str, int]] = (
            ("name", 84),
            ("ncall", 12),
            ("tsub", 8),
            ("ttot", 8),
            ("tavg", 8),
        ),
        per_worker: bool = False,
        strip_dirs: bool = True,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        file: IO[str] | None = None,
    ) -> None:
        """Print the functions that used the most CPU time. Times are in seconds.

        Parameters
        ----------
        max_rows : int or None
            The maximum number of rows to print; None for all.
        sort_by : str, optional
            The column to sort by: ``name``, ``ncall``, ``tsub`` (or ``subtime``), ``ttot`` (or
            ``tottime``) or ``tavg``; by default ``ttot``.
        sort_dir : str, optional
            The direction, ``asc`` or ``desc``; by default ``asc`` for names, else ``desc``.
        columns : sequence of (str, int)
            The names and widths, in characters, of the columns to print.
        per_worker : bool
            Whether to print one table for each worker.
        strip_dirs : bool
            Whether to show the names of modules in place of the paths of files.
        include, exclude : str or sequence of str
            The only root modules to print, and the root modules not to print. Both require
            `strip_dirs`.
        file : file object, optional
            The file to print to; by default ``sys.stdout``.

        Raises
        ------
        SpecError
            A parameter is wrong.
        LifecycleError
            The profiling was never started.
        """
        shown = ModuleFilter(include, exclude, strip_dirs)
        key = _SORT_COLUMNS.get(sort_by or "ttot")
        if key is None:
            raise SpecError(f"sort_by= must be one of {', '.join(_SORT_COLUMNS)}, not {sort_by!r}")
        if sort_dir not in (None, "asc", "desc"):
            raise SpecError(f"sort_dir= must be 'asc' or 'desc', not {sort_dir!r}")
        unknown = [name for name, _ in columns if name not in _Row._fields or name == "module"]
        if unknown:
            raise SpecError(f"columns= contains {unknown[0]!r}, which is not a column")
        down = sort_dir == "desc" if sort_dir else key != "name"
        out = sys.stdout if file is None else file

        def print_part(stats: Any) -> None:
            rows = [row for row in _rows(stats, strip_dirs) if shown.shows(row.module)]
            rows.sort(key=lambda row: getattr(row, key), reverse=down)
            _print_table(rows[:max_rows], columns, out)

        print_parts(self.get_stats(per_worker), print_part, out)


def _merge_stats(pieces: Iterable[bytes]) -> Any:
    import yappi

    with tempfile.TemporaryDirectory() as directory:
        paths = []
        for number, piece in enumerate(pieces):
            path = Path(directory) / str(number)
            path.write_bytes(piece)
            paths.append(str(path))
        return yappi.YFuncStats(paths)


def _rows(stats: Any, strip_dirs: bool) -> list[_Row]:
    rows = []
    for each in stats:
        module = module_name(each.module) if strip_dirs else each.module
        name = f"{module}.{each.name}" if each.builtin else f"{module}:{each.lineno} {each.name}"
        rows.append(_Row(name, module, each.ncall, each.tsub, each.ttot, each.tavg))
    return rows


def _print_table(rows: Sequence[_Row], columns: Sequence[tuple[str, int]], out: IO[str]) -> None:
    print("  ".join(_cell(name, name, width) for name, width in columns).rstrip(), file=out)
    for row in rows:
        cells = (_cell(name, getattr(row, name), width) for name, width in columns)
        print("  ".join(cells).rstrip(), file=out)


def _cell(column: str, value: object, width: int) -> str:
    text = f"{value:.6f}" if isinstance(value, float) else str(value)
    if column == "name":
        # The end of a long name is more informative than its beginning: cut the beginning.
        return (text if len(text) <= width else f"..{text[2 - width :]}").ljust(width)
    return text[:width].rjust(width)

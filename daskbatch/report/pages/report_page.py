"""Renders the report of a run as one HTML file.

Any thread may call all functions. jinja2 is imported with the first report, and escapes all values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskbatch._version import __version__
from daskbatch.records.run_record import RunRecord, TaskEntry
from daskbatch.report.analysis.critical_path import PathRecord, find_critical_path
from daskbatch.report.analysis.groups import STATES, TaskGroup, count_states, group_by_name
from daskbatch.report.analysis.idle import IdleTime, find_idle_time
from daskbatch.report.analysis.occupancy import Occupancy
from daskbatch.report.analysis.run_graph import RunGraph, duration, group_name, has_run
from daskbatch.report.analysis.timeline import TimelineRow, make_rows
from daskbatch.report.analysis.what_if import Estimate, estimate
from daskbatch.report.graphs.collapse import choose_picture
from daskbatch.report.graphs.picture import is_large
from daskbatch.report.graphs.style import HAZARD_WORDS, STATE_COLOURS
from daskbatch.report.graphs.svg import to_svg
from daskbatch.report.pages.timeline_svg import draw_timeline, name_colours
from daskbatch.report.pages.units import bytes_text, percent_text, seconds_text, time_text
from daskbatch.report.whole_file import write_whole

if TYPE_CHECKING:
    from jinja2 import Template

#: At most this many kinds of failures, steps of the critical path at each end, and tasks with the
#: largest memory are shown.
_MAX_FAILURES, _MAX_PATH_ENDS, _MAX_MEMORY_TASKS = 50, 100, 10

#: Up to this many tasks the edges of the graph are labelled with files.
_MAX_LABELLED_TASKS = 60

#: At most this many lines and letters of the end of an output are shown.
_MAX_OUTPUT_LINES, _MAX_OUTPUT_LETTERS = 30, 8_000


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that was computed of a run.

    Parameters
    ----------
    graph, occupancy, path, rows, idle, estimates, groups
        See the functions of `daskbatch.report.analysis`.
    """

    graph: RunGraph
    occupancy: Occupancy
    path: PathRecord
    rows: Sequence[TimelineRow]
    idle: IdleTime
    estimates: Sequence[Estimate]
    groups: Sequence[TaskGroup]


def analyse(run: RunRecord) -> Analysis:
    """Compute all that a report shows of a run."""
    graph, occupancy = RunGraph(run), Occupancy(run)
    return Analysis(
        graph=graph,
        occupancy=occupancy,
        path=find_critical_path(graph, occupancy),
        rows=make_rows(run),
        idle=find_idle_time(run, graph, occupancy.slots),
        estimates=estimate(graph, occupancy.slots),
        groups=group_by_name(run.tasks),
    )


def write_report(run: RunRecord, path: Path) -> Path:
    """Write the report of a run into a file, as a whole or not at all; return the path.

    Parameters
    ----------
    run : RunRecord
        The run.
    path : Path
        The file.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    write_whole(path, render_report(run))
    return path


def render_report(run: RunRecord) -> str:
    """Return the report of a run as HTML."""
    found = analyse(run)
    colours = name_colours(run.tasks)
    ran = [task for task in run.tasks if has_run(task)]
    begin = min((task.started or 0.0 for task in ran), default=0.0)
    critical = frozenset(step.uid for step in found.path.steps)
    failed = [task for task in run.tasks if task.state == "failed"]
    cpu = [task.cpu_seconds for task in run.tasks if task.cpu_seconds is not None]
    largest = sorted(
        (task for task in run.tasks if task.max_memory), key=lambda t: -(t.max_memory or 0)
    )[:_MAX_MEMORY_TASKS]
    timeline = (
        draw_timeline(found.rows, begin, begin + found.idle.seconds, colours, critical)
        if ran
        else ""
    )
    return _template().render(
        run=run,
        found=found,
        version=__version__,
        begin=begin,
        states=count_states(run.tasks),
        makespan=found.idle.seconds if ran else None,
        cpu=sum(cpu) if cpu else None,
        busy=found.idle.busy / found.idle.total if found.idle.total else 0.0,
        peak=max((task.max_memory or 0 for task in run.tasks), default=0) or None,
        failures=_alike(failed)[:_MAX_FAILURES],
        failed_count=len(failed),
        skipped=Counter(task.root for task in run.tasks if task.state == "skipped"),
        warned=[task for task in run.tasks if task.warnings],
        path_steps=_ends(found.path.steps),
        timeline=timeline,
        colours=colours,
        graph=_draw_graph(run),
        is_collapsed=is_large(run),
        hazards=_count_hazards(run),
        hazard_words=HAZARD_WORDS,
        state_colours=STATE_COLOURS,
        largest=largest,
        table=_table(run, begin),
        all_states=STATES,
    )


def _draw_graph(run: RunRecord) -> str:
    if not run.tasks:
        return ""
    return to_svg(choose_picture(run, None, files=len(run.tasks) <= _MAX_LABELLED_TASKS))


def _count_hazards(run: RunRecord) -> dict[str, int]:
    counts = Counter(str(edge.hazard) for node in run.nodes() for edge in node.waits_for)
    return {name: counts[name] for name in HAZARD_WORDS if counts[name]}


def _ends(steps: Sequence[Any]) -> list[tuple[int, Any]]:
    """Return the steps of a path with their numbers; of a long one its ends, and None between."""
    numbered = [*enumerate(steps, 1)]
    if len(numbered) <= 2 * _MAX_PATH_ENDS:
        return numbered
    left_out = len(numbered) - 2 * _MAX_PATH_ENDS
    return [*numbered[:_MAX_PATH_ENDS], (left_out, None), *numbered[-_MAX_PATH_ENDS:]]


def _alike(failed: Sequence[TaskEntry]) -> list[tuple[TaskEntry, list[TaskEntry]]]:
    """Return failed tasks, each with those of the same name and error, of which there are more."""
    groups: dict[tuple[str, str | None], list[TaskEntry]] = {}
    for task in failed:
        groups.setdefault((group_name(task.name), task.error), []).append(task)
    # The first one of which the output is known stands for all.
    chosen = []
    for tasks in groups.values():
        shown = next((task for task in tasks if task.stderr or task.stdout), tasks[0])
        chosen.append((shown, [task for task in tasks if task is not shown]))
    return chosen


def _table(run: RunRecord, begin: float) -> dict[str, Any]:
    """Return the tasks as short lists; names of workers, which repeat, by their numbers."""
    workers: dict[str, int] = {}

    def rounded(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.6g}")

    def offset(task: TaskEntry) -> float | None:
        return None if task.started is None else round(task.started - begin, 6)

    rows = [
        [
            task.name,
            STATES.index(task.state) if task.state in STATES else -1,
            offset(task),
            rounded(duration(task)) if has_run(task) or task.seconds else None,
            rounded(task.cpu_seconds),
            task.max_memory,
            workers.setdefault(task.worker, len(workers)) if task.worker else -1,
            task.attempts,
            task.error or (f"because of {task.root}" if task.root else ""),
        ]
        for task in run.tasks
    ]
    return {"workers": [*workers], "rows": rows}


def _end_of(text: str) -> str:
    """Return the last lines of an output, which also has a limit in letters."""
    lines = text[-_MAX_OUTPUT_LETTERS:].splitlines()
    return "\n".join(lines[-_MAX_OUTPUT_LINES:])


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # reports are made seldom

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        seconds=seconds_text,
        bytes=bytes_text,
        percent=percent_text,
        time=time_text,
        group=group_name,
        output_end=_end_of,
    )
    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)

"""Draws the timeline of a run as SVG: a row for each slot, a bar for each task.

Bars that are together narrower than a pixel are drawn as one, so that the size of the drawing has a
limit for each row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from daskbatch.records.run_record import TaskEntry
from daskbatch.report.analysis.run_graph import duration, group_name
from daskbatch.report.analysis.timeline import TimelineRow
from daskbatch.report.graphs.svg import as_xml
from daskbatch.report.pages.units import seconds_text

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 1120, 150, 12, 8, 26

#: The height of a row, by the number of rows up to which it holds.
_ROW_HEIGHTS = ((24, 22), (64, 16), (200, 10), (math.inf, 6))

#: Row labels need this height.
_MIN_LABEL_HEIGHT = 10

#: Bars that end within so many pixels after the start of the bar before are drawn together.
_MERGE_PIXELS = 1.0

#: The colours of the names, by their share of the time; all others are grey.
NAME_COLOURS = (
    *("#4e79a7", "#59a14f", "#f28e2b", "#b07aa1", "#76b7b2", "#edc948"),
    *("#9c755f", "#ff9da7", "#86bcb6", "#d4a6c8", "#8cd17d", "#b6992d"),
)
OTHER_COLOUR = "#bab0ac"
FAILED_COLOUR = "#e53e3e"


@dataclass(slots=True)
class _Bar:
    """One or several tasks that are drawn as one bar."""

    begin: float
    end: float
    first: TaskEntry
    count: int
    seconds: float
    failed: bool
    critical: bool


def name_colours(tasks: Sequence[TaskEntry]) -> dict[str, str]:
    """Return the colour of each name: the names that took the longest have colours of their own."""
    totals: dict[str, float] = {}
    for task in tasks:
        name = group_name(task.name)
        totals[name] = totals.get(name, 0.0) + duration(task)
    names = sorted(totals, key=lambda name: -totals[name])
    return {
        name: NAME_COLOURS[index] if index < len(NAME_COLOURS) else OTHER_COLOUR
        for index, name in enumerate(names)
    }


def draw_timeline(
    rows: Sequence[TimelineRow],
    begin: float,
    end: float,
    colours: Mapping[str, str],
    critical: frozenset[str],
) -> str:
    """Return the timeline as SVG.

    Parameters
    ----------
    rows : sequence of TimelineRow
        The rows.
    begin, end : float
        The first start and the last end of all tasks.
    colours : mapping
        The colour of each name.
    critical : frozenset of str
        The uids of the tasks on the critical path, which are underlined.
    """
    height = next(height for most, height in _ROW_HEIGHTS if len(rows) <= most)
    total = _TOP + len(rows) * height + _BOTTOM
    scale = (_WIDTH - _LEFT - _RIGHT) / max(end - begin, 1e-9)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {total}" '
        f'class="timeline" role="img" aria-label="Timeline by slot" font-size="11">'
    ]
    lines += _axis(begin, end, scale, total - _BOTTOM)
    for index, row in enumerate(rows):
        y = _TOP + index * height
        if height >= _MIN_LABEL_HEIGHT:
            lines.append(
                f'<text x="{_LEFT - 8}" y="{y + height / 2 + 3.5:g}" text-anchor="end" '
                f'fill="#4a5568" font-size="{min(11, height)}">{as_xml(_row_label(row))}'
                f"<title>{as_xml(row.worker)}</title></text>"
            )
        for bar in _bars(row.tasks, begin, scale, critical):
            lines.append(_bar(bar, y + 1, height - 2, begin, scale, colours))
    return "\n".join([*lines, "</svg>"])


def _row_label(row: TimelineRow) -> str:
    where = row.host or row.worker.rpartition("/")[2]
    port = row.worker.rpartition(":")[2]
    where = f"{where}:{port}" if row.host and port.isdigit() else where
    where = where if len(where) <= 18 else "…" + where[-17:]
    return f"{where} +{row.index}" if row.is_extra else f"{where} /{row.index}"


def _bars(
    tasks: Sequence[TaskEntry], begin: float, scale: float, critical: frozenset[str]
) -> Iterator[_Bar]:
    bar: _Bar | None = None
    for task in tasks:
        start, end = task.started or begin, task.ended or begin
        failed, on_path = task.state == "failed", task.uid in critical
        if bar is not None and (end - bar.begin) * scale < _MERGE_PIXELS:
            bar.end, bar.count = end, bar.count + 1
            bar.seconds += duration(task)
            bar.failed, bar.critical = bar.failed or failed, bar.critical or on_path
            continue
        if bar is not None:
            yield bar
        bar = _Bar(start, end, task, 1, duration(task), failed, on_path)
    if bar is not None:
        yield bar


def _bar(
    bar: _Bar, y: float, height: float, begin: float, scale: float, colours: Mapping[str, str]
) -> str:
    x = _LEFT + (bar.begin - begin) * scale
    width = max(0.6, (bar.end - bar.begin) * scale)
    name = group_name(bar.first.name)
    colour = FAILED_COLOUR if bar.failed else colours.get(name, OTHER_COLOUR)
    said = f"{bar.first.name}, {bar.first.state}, {seconds_text(bar.seconds)}"
    if bar.count > 1:
        said = f"{bar.count} tasks from {bar.first.name}, {seconds_text(bar.seconds)} together"
    elif bar.first.slots > 1:
        said += f", {bar.first.slots} slots"
    said += f", from {seconds_text(bar.begin - begin)}"
    line = ""
    if bar.critical:
        line = (
            f'<rect x="{x:.2f}" y="{y + height - 2.5:.1f}" width="{width:.2f}" height="2.5" '
            'fill="#1a202c"/>'
        )
    label = ""
    text = bar.first.name
    if bar.count == 1 and height >= 12 and width > len(text) * 6.4 + 6:
        label = (
            f'<text x="{x + 4:.1f}" y="{y + height / 2 + 3.5:.1f}" fill="#fff" '
            f'pointer-events="none">{as_xml(text)}</text>'
        )
    return (
        f'<rect x="{x:.2f}" y="{y:g}" width="{width:.2f}" height="{height:g}" fill="{colour}">'
        f"<title>{as_xml(said)}</title></rect>{line}{label}"
    )


def _axis(begin: float, end: float, scale: float, bottom: float) -> Iterator[str]:
    """Draw vertical lines at round times since the begin."""
    span = max(end - begin, 1e-9)
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 8)
    for index in range(int(span / step + 1e-9) + 1):
        x = _LEFT + index * step * scale
        yield (
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e2e8f0"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#4a5568">'
            f"{seconds_text(index * step)}</text>"
        )

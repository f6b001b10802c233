"""The page /daskbatch beside Dask's own dashboard: draws what clients have answered.

Needs bokeh. Each open page has its own document, which the scheduler's event loop updates once a
second. All texts of users are escaped, or are shown by parts of bokeh that escape them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from time import time
from typing import Any

from bokeh.models import (
    ColumnDataSource,
    FactorRange,
    HoverTool,
    Range1d,
)
from bokeh.models.widgets.markups import Div
from bokeh.plotting import figure
from dask.utils import format_bytes
from distributed import Scheduler
from distributed.dashboard.components.scheduler import BOKEH_THEME, TaskGroupGraph, env
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from distributed.diagnostics.progress_stream import color_of
from tornado.ioloop import IOLoop

from daskbatch.dashboard.group_layout import mend_groups_page
from daskbatch.dashboard.page_source import ClientOnPage, PageSource
from daskbatch.dashboard.page_table import Table
from daskbatch.dashboard.summary import STATES, ClientSummary
from daskbatch.dispatch.key_names import dashboard_name

#: The address of the page, and its name in the menu.
PAGE = "daskbatch"

_UPDATE_INTERVAL_MILLISECONDS = 1000

#: How far back the timeline goes, and the number of rows and names at most.
_TIMELINE_SECONDS, _MAX_ROWS, _MAX_NAMES = 60.0, 40, 25

_COLOURS = {
    "done": "#2f9e5b",
    "running": "#3b82c4",
    "failed": "#d64545",
    "skipped": "#e08a3c",
    "cancelled": "#8f6bc8",
    "waiting": "#c3c9d1",
    "queued": "#e3e7ec",
}

_TEMPLATE = """
{% extends "base.html" %}
{% block extra_resources %}
<style>
  .daskbatch { display: grid; grid-template-columns: 1fr 1fr; gap: 6px 18px; padding: 8px 14px; }
  .daskbatch > section { min-width: 0; overflow-x: auto; }
  .daskbatch > .wide { grid-column: 1 / 3; }
  .daskbatch h3 { font: 600 15px sans-serif; margin: 4px 0; color: #333; }
  @media (max-width: 900px) { .daskbatch > section { grid-column: 1 / 3; } }
</style>
{% endblock %}
{% block content %}
{% from macros import embed %}
<div class="daskbatch">
  <section class="wide">{{ embed(roots.head) }}</section>
  <section><h3>Programs</h3>{{ embed(roots.programs) }}</section>
  <section><h3>Progress by name</h3>{{ embed(roots.progress) }}</section>
  <section class="wide"><h3>The last minute</h3>{{ embed(roots.timeline) }}</section>
  <section><h3>Running</h3>{{ embed(roots.running) }}</section>
  <section><h3>Waiting</h3>{{ embed(roots.waiting) }}</section>
  <section><h3>Failures</h3>{{ embed(roots.failures) }}</section>
  <section><h3>Dictionaries and queues</h3>{{ embed(roots.shared) }}</section>
</div>
{{ plot_script }}
{% endblock %}
"""


def connect(scheduler: Scheduler, dashboard: PageSource) -> None:
    """Add the page to the server of Dask's dashboard, and to its menu.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    dashboard : PageSource
        What is to be shown.
    """
    servers = [each for each in scheduler.http_application.applications if _has_bokeh(each)]
    if not servers:
        return
    mend_groups_page(TaskGroupGraph)
    # The pages of Dask share this dict, which is made once for each scheduler.
    variables = template_variables(scheduler)
    if PAGE not in variables["pages"]:
        variables["pages"].insert(1, PAGE)
    reference = weakref.ref(dashboard)

    def make_document(_: Scheduler, extra: Mapping[str, Any], doc: Any) -> None:
        found = reference()
        if found is not None:
            _make_document(found, extra, doc)

    application = BokehApplication(
        {f"/{PAGE}": make_document},
        scheduler,
        prefix=servers[0].prefix,
        template_variables=variables,
    )
    scheduler.http_application.add_application(application)
    application.initialize(IOLoop.current())
    application.start()


def _has_bokeh(application: Any) -> bool:
    return hasattr(application, "app_paths")


def _make_document(dashboard: PageSource, extra: Mapping[str, Any], doc: Any) -> None:
    page = _Page(dashboard)
    # The document keeps the page alive, and not the other way round.
    doc.add_next_tick_callback(page.update)
    doc.add_periodic_callback(page.update, _UPDATE_INTERVAL_MILLISECONDS)
    doc.title = "Dask: daskbatch"
    for root in page.roots:
        doc.add_root(root)
    doc.template = env.from_string(_TEMPLATE)
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME


#: A client, and what it has answered.
_Answer = tuple[ClientOnPage, ClientSummary]


class _Page:
    """One open page."""

    def __init__(self, dashboard: PageSource) -> None:
        self._dashboard = dashboard
        self._several = False
        self._head = Div(name="head", sizing_mode="stretch_width")
        self._failures = Div(name="failures", sizing_mode="stretch_width")
        self._programs = Table(
            "programs", ("client", "program", "state", "tasks", *STATES), 230, optional=STATES[3:]
        )
        self._running = Table("running", ("task", "program", "since", "for", "worker"), 230)
        self._waiting = Table("waiting", ("task", "program", "why"), 230)
        self._shared = Table("shared", ("kind", "name", "items", "size", "shards"), 230)
        self._progress, self._progress_source = _progress_figure()
        self._timeline, self._timeline_source = _timeline_figure()

    @property
    def roots(self) -> list[Any]:
        tables = (self._programs, self._running, self._waiting, self._shared)
        figures = (self._head, self._progress, self._timeline, self._failures)
        return [*figures, *(table.root for table in tables)]

    async def update(self) -> None:
        """Ask for what is new, and show what has arrived.

        A coroutine, since the scheduler's event loop must run it: from version 3.10 on, bokeh calls
        functions in a thread, that which makes the document included.
        """
        self._dashboard.look()
        clients = self._dashboard.clients()
        answers = [(client, found) for client, found in clients if found is not None]
        self._several = len({client.topic for client, _ in clients}) > 1
        self._show_head(clients, answers)
        self._show_programs(answers)
        self._show_progress(answers)
        self._show_timeline(answers)
        self._show_waiting(answers)
        self._show_failures(answers)
        self._show_shared()

    def _program(self, client: ClientOnPage, name: str) -> str:
        return f"{name} ({_label(client)})" if self._several else name

    def _show_head(
        self,
        clients: Sequence[tuple[ClientOnPage, ClientSummary | None]],
        answers: Sequence[_Answer],
    ) -> None:
        counts = dict.fromkeys(STATES, 0)
        for _, summary in answers:
            for program in summary.programs:
                for state, count in program.counts().items():
                    counts[state] = counts.get(state, 0) + count
        pills = "".join(
            f'<span style="background:{_COLOURS.get(state, "#888")};color:'
            f"{'#222' if state in ('waiting', 'queued') else '#fff'};border-radius:9px;"
            f'padding:1px 9px;margin-right:6px">{count} {escape(state)}</span>'
            for state, count in counts.items()
            if count
        )
        number = len(clients)
        silent = number - len(answers)
        said = f"{number} client{'s' * (number != 1)}"
        said += f", of which {silent} have not answered yet" if silent else ""
        text = f'<div style="font:14px sans-serif">{pills or "no tasks"} of {said}</div>'
        if self._head.text != text:
            self._head.text = text

    def _show_programs(self, answers: Iterable[_Answer]) -> None:
        rows = []
        for client, summary in answers:
            for program in summary.programs:
                counts = program.counts()
                rows.append(
                    {
                        "client": _label(client),
                        "program": program.name,
                        "state": program.state,
                        "tasks": sum(counts.values()),
                        **{state: counts.get(state, 0) for state in STATES},
                    }
                )
        self._programs.show(rows)

    def _show_progress(self, answers: Iterable[_Answer]) -> None:
        names: dict[str, dict[str, int]] = {}
        for _, summary in answers:
            for program in summary.programs:
                for name, states in program.names.items():
                    total = names.setdefault(name, dict.fromkeys(STATES, 0))
                    for state, count in states.items():
                        total[state] = total.get(state, 0) + count
        shown = sorted(names, key=lambda name: -sum(names[name].values()))[:_MAX_NAMES]
        shown.reverse()
        totals = [sum(names[name].values()) for name in shown]
        data: dict[str, list[Any]] = {
            "name": shown,
            "label": [
                f"{names[name]['done']} / {total}" + _failed_words(names[name])
                for name, total in zip(shown, totals, strict=True)
            ],
        }
        left = [0.0] * len(shown)
        for state in STATES:
            right = [
                start + names[name][state] / max(1, total)
                for start, name, total in zip(left, shown, totals, strict=True)
            ]
            data[f"{state}_left"], data[f"{state}_right"] = left, right
            data[state] = [names[name][state] for name in shown]
            left = right
        if list(self._progress.y_range.factors) != shown:
            self._progress.y_range.factors = shown
            self._progress.height = max(120, 26 * len(shown) + 40)
        _set(self._progress_source, data)

    def _show_timeline(self, answers: Iterable[_Answer]) -> None:
        now = time()
        running: list[dict[str, Any]] = []
        bars: list[tuple[str, float, float, Any, str]] = []
        for client, summary in answers:
            for task in summary.ran:
                end = now if task.ended is None else task.ended
                program = self._program(client, task.program)
                if task.ended is None:
                    running.append(
                        {
                            "task": task.name,
                            "program": program,
                            "since": datetime.fromtimestamp(task.started).strftime("%H:%M:%S"),
                            "for": _seconds(now - task.started),
                            "worker": task.worker,
                        }
                    )
                if end >= now - _TIMELINE_SECONDS:
                    bars.append((task.worker or "?", task.started, end, task, program))
        self._running.show(running)
        rows, data = _timeline(bars, now)
        if list(self._timeline.y_range.factors) != rows:
            self._timeline.y_range.factors = rows
            self._timeline.height = max(130, 18 * len(rows) + 60)
        _set(self._timeline_source, data)

    def _show_waiting(self, answers: Iterable[_Answer]) -> None:
        self._waiting.show(
            [
                {
                    "task": task.name,
                    "program": self._program(client, task.program),
                    "why": task.why,
                }
                for client, summary in answers
                for task in summary.waiting
            ]
        )

    def _show_failures(self, answers: Iterable[_Answer]) -> None:
        parts = []
        more = 0
        for client, summary in answers:
            more += summary.more.get("failures", 0)
            for task in reversed(summary.failures):
                program = escape(self._program(client, task.program))
                output = f'<pre style="{_PRE}">{escape(task.output)}</pre>' if task.output else ""
                parts.append(
                    f'<div style="margin-bottom:7px"><b style="color:#b42318">{escape(task.name)}'
                    f"</b> of {program}: {escape(task.error)}{output}</div>"
                )
        if more:
            parts.append(f"<div>and {more} more</div>")
        content = "".join(parts) or "none"
        style = "font:13px sans-serif;max-height:300px;overflow:auto"
        text = f'<div class="failures" style="{style}">{content}</div>'
        if self._failures.text != text:
            self._failures.text = text

    def _show_shared(self) -> None:
        self._shared.show(
            [
                {
                    "kind": {"ddict": "DDict", "queue": "Queue"}.get(each.kind, each.kind),
                    "name": each.name,
                    "items": "?" if each.items is None else str(each.items),
                    "size": "?" if each.nbytes is None else format_bytes(each.nbytes),
                    "shards": f"{each.shards} × {each.replicas}"
                    + (f", {each.lost} lost" if each.lost else ""),
                }
                for each in self._dashboard.shared
            ]
        )


_PRE = "margin:2px 0 0 0;padding:4px 6px;background:#f4f4f4;font-size:12px;white-space:pre-wrap"


def _set(source: ColumnDataSource, data: dict[str, list[Any]]) -> None:
    """Send data to the browser if they are new."""
    if source.data != data:
        source.data = data


def _progress_figure() -> tuple[Any, ColumnDataSource]:
    columns = [f"{state}{end}" for state in STATES for end in ("", "_left", "_right")]
    source = ColumnDataSource({column: [] for column in ["name", "label", *columns]})
    plot = figure(
        name="progress",
        y_range=FactorRange(),
        x_range=Range1d(start=0, end=1),
        height=210,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
    )
    for state in STATES:
        plot.hbar(
            y="name",
            left=f"{state}_left",
            right=f"{state}_right",
            height=0.8,
            color=_COLOURS[state],
            source=source,
        )
    plot.text(
        x=0, y="name", text="label", source=source, x_offset=6, text_baseline="middle",
        text_font_size="12px",
    )  # fmt: skip
    tooltips = [("name", "@name"), *((state, f"@{state}") for state in STATES)]
    plot.add_tools(HoverTool(tooltips=tooltips))
    plot.xaxis.visible = plot.xgrid.visible = plot.ygrid.visible = False
    plot.yaxis.major_label_text_font_size = "12px"
    return plot, source


def _timeline_figure() -> tuple[Any, ColumnDataSource]:
    columns = ("row", "left", "right", "colour", "line", "task", "program", "state", "seconds")
    source = ColumnDataSource({column: [] for column in columns})
    plot = figure(
        name="timeline",
        y_range=FactorRange(),
        x_range=Range1d(start=-_TIMELINE_SECONDS, end=0),
        height=150,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        x_axis_label="seconds before now",
    )
    plot.hbar(
        y="row",
        left="left",
        right="right",
        height=0.8,
        fill_color="colour",
        line_color="line",
        source=source,
    )
    plot.add_tools(
        HoverTool(
            tooltips=[
                ("task", "@task"),
                ("program", "@program"),
                ("state", "@state"),
                ("seconds", "@seconds"),
            ]
        )
    )
    plot.ygrid.visible = False
    return plot, source


def _timeline(
    bars: Sequence[tuple[str, float, float, Any, str]], now: float
) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the rows of the timeline, a row for each slot in use, and its bars."""
    ends: dict[str, float] = {}
    data: dict[str, list[Any]] = {
        column: []
        for column in (
            *("row", "left", "right", "colour", "line", "task", "program", "state", "seconds"),
        )
    }
    for worker, start, end, task, program in sorted(bars, key=lambda bar: bar[1]):
        number = 0
        # A report says when a task ended in other steps than those of clocks.
        while ends.get(f"{worker} #{number}", 0.0) > start + 1e-3:
            number += 1
        row = f"{worker} #{number}"
        if row not in ends and len(ends) >= _MAX_ROWS:
            continue
        ends[row] = end
        data["row"].append(row)
        data["left"].append(max(start - now, -_TIMELINE_SECONDS))
        data["right"].append(end - now)
        data["colour"].append(
            _COLOURS["failed"] if task.state == "failed" else color_of(dashboard_name(task.base))
        )
        data["line"].append("black" if task.ended is None else "white")
        data["task"].append(task.name)
        data["program"].append(program)
        data["state"].append(task.state)
        data["seconds"].append(round(end - start, 3))
    return sorted(ends, reverse=True), data


def _label(client: ClientOnPage) -> str:
    return f"{client.batch[:6]}.{client.number}"


def _failed_words(states: Mapping[str, int]) -> str:
    others = [state for state in ("failed", "skipped", "cancelled") if states[state]]
    return "".join(f", {states[state]} {state}" for state in others)


def _seconds(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

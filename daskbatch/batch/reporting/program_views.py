"""What a compiled task shows: pictures, a report, a trace, its critical path, a form in notebooks.

`CompiledTask` imports it when a program first asks for one of these. Any thread may call all
functions.
"""

from __future__ import annotations

from pathlib import Path

from daskbatch.batch.reporting.critical_path import CriticalPath, find_path
from daskbatch.batch.reporting.live_record import RecordedProgram, program_record
from daskbatch.report.graphs.collapse import choose_picture
from daskbatch.report.graphs.dot import to_dot
from daskbatch.report.graphs.draw import draw
from daskbatch.report.graphs.picture import Picture
from daskbatch.report.graphs.svg import to_svg
from daskbatch.report.pages.report_page import write_report
from daskbatch.report.trace import write_trace


def picture(program: RecordedProgram, collapse: bool | None, files: bool = False) -> Picture:
    """Return the picture of a compiled task; see `CompiledTask.visualize`."""
    return choose_picture(program_record(program), collapse, files)


def dot_text(program: RecordedProgram, collapse: bool | None, files: bool) -> str:
    """Return the graph for Graphviz; see `CompiledTask.to_dot`."""
    return to_dot(picture(program, collapse, files))


def svg_text(program: RecordedProgram) -> str:
    """Return the graph as SVG."""
    return to_svg(picture(program, None))


def write_picture(
    program: RecordedProgram, filename: str | Path, collapse: bool | None, files: bool
) -> Path:
    """Draw the graph into a file; see `CompiledTask.visualize`."""
    return draw(picture(program, collapse, files), Path(filename))


def critical_path(program: RecordedProgram) -> CriticalPath:
    """Return the critical path; see `CompiledTask.critical_path`."""
    return find_path(program_record(program), program.tasks)


def write_program_report(program: RecordedProgram, filename: str | Path) -> Path:
    """Write a report; see `CompiledTask.report`."""
    return write_report(program_record(program, with_failures=True), Path(filename))


def write_program_trace(program: RecordedProgram, filename: str | Path) -> Path:
    """Write a trace; see `CompiledTask.trace`."""
    return write_trace(program_record(program, with_failures=True), Path(filename))

"""The command ``report``: makes a report of a run from its log directory.

Needs no cluster. What goes wrong is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from daskbatch.errors import SpecError
from daskbatch.records.event_reader import read_run
from daskbatch.report.pages.report_page import write_report
from daskbatch.report.trace import write_trace

_FILE = "report.html"


def add_parser(commands: Any) -> None:
    """Add the command to those of the command line."""
    parser = commands.add_parser(
        "report",
        help="make a report of a run from its log_dir",
        description="Makes a report of a run that was recorded by Batch(log_dir=DIR), also if its "
        f"client was killed. Writes DIR/{_FILE}, one file that needs no network, and prints its "
        "path.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="the log_dir of the Batch")
    parser.add_argument("--run", metavar="ID", help="the run, if not the last one")
    parser.add_argument("--output", metavar="FILE", type=Path, help=f"the file, if not DIR/{_FILE}")
    parser.add_argument(
        "--trace", metavar="FILE", type=Path, help="also write a trace for Perfetto"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Make the report; return 0, or 1 if that is not possible."""
    try:
        record = read_run(options.directory, options.run)
        path = write_report(record, options.output or options.directory / _FILE)
        if options.trace is not None:
            write_trace(record, options.trace)
    except (SpecError, OSError) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0

"""Parses the command line, and runs the command.

Runs in the main thread of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from daskbatch._version import __version__
from daskbatch.command_line import doctor, report, template

#: What a shell expects of a program that was interrupted.
_INTERRUPTED = 130

_EPILOG = "COMMAND --help says more. docs/looking-at-a-run.md explains reports."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0 for success, 1 if the command found faults.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after ``python -m daskbatch``; by default those of this process.

    Raises
    ------
    SystemExit
        The arguments are wrong (2), or only help is wanted (0).
    """
    parser = argparse.ArgumentParser(
        prog="python -m daskbatch",
        description="Tools for daskbatch: sequential programs of tasks, run in parallel on Dask.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"daskbatch {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (doctor, report, template):
        module.add_parser(commands)
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1

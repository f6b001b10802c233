"""Runs one program with one library, in this fresh process, and prints its seconds as JSON.

``python run_one.py LIBRARY PROGRAM``. Starting the library is not part of the time, except of the
program ``start``, whose time is that of the whole process: see `compare.py`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from libraries import LIBRARIES, run_true
from programs import GRAPHS, nothing


def run(library: Any, program: str) -> float:
    """Return the seconds that a program took; check its result."""
    began = time.perf_counter()
    if program in GRAPHS:
        made = GRAPHS[program]()
        began = time.perf_counter()
        found = library.graph(made.calls)
        expected = made.expected
    elif program == "map":
        found, expected = sum(library.map(nothing, range(5_000))), 5_000
    elif program == "processes":
        found, expected = library.processes(200), 0
    elif program == "single":
        found, expected = library.single(200), 200
    elif program == "start":
        found, expected = library.single(1), 1
    else:
        found, expected = getattr(library, program)(500), sum(range(500))
    seconds = time.perf_counter() - began
    if found != expected:
        raise SystemExit(f"{program}: {found!r} in place of {expected!r}")
    return seconds


def main() -> None:
    name, program = sys.argv[1:]
    library = LIBRARIES[name]()
    try:
        if program != "start":  # its processes are there, and have imported what they need
            library.map(run_true if program == "processes" else nothing, range(4))
        print(json.dumps({"seconds": run(library, program)}), flush=True)
    finally:
        library.close()


if __name__ == "__main__":
    main()

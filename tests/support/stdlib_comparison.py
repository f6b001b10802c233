"""Makes the table of `docs/scripts.md` that compares executors, from runs of a script.

``PYTHONPATH=tests python -m support.stdlib_comparison`` prints the table.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from support.paths import PROJECT

SCRIPT = Path(__file__).with_name("comparison_rows.py").read_text()
GUARD = 'if __name__ == "__main__":\n'

#: The kinds of executors, as the columns of the table; the address of a cluster is the third.
KINDS = ("fork", "spawn")

HEADING = (
    "| in the script | `ProcessPoolExecutor`, fork | `ProcessPoolExecutor`, spawn | daskbatch |\n"
    "|---|---|---|---|\n"
)

#: What the rows are about, in the order of `comparison_rows.ROWS`.
TITLES = (
    "functions and classes of `__main__` in a file",
    "the same from `python -` and `python -c`",
    "lambdas, closures, classes defined in a function",
    "a class returns as itself",
    "a lambda or closure returns as itself",
    "enumerations: aliases, combined flags, `__new__`, `__init__`",
    "`NewType`, `TypeVar`, `ParamSpec`, `cache`, `singledispatch` of the script",
    "an object whose `__reduce__` returns its name",
    "definitions and globals that are made after the workers have started",
    "`import __main__` and `pickle` in a task",
    "`multiprocessing` pools and queues in a task",
    "`initializer=`, `initargs=`",
    "an exception that cannot be unpickled fails its call alone",
    "a task that never ends can be stopped",
)
_IN_A_FILE, _WITHOUT_A_FILE, _BY_NAME = 0, 1, 9
#: The words for a row of which some checks are true and others are not.
_PARTLY = {_BY_NAME: "what was sent"}


def make_table(cluster: str) -> str:
    """Return the table.

    Parameters
    ----------
    cluster : str
        The address of a cluster for the column of daskbatch.
    """
    columns = [_column(kind) for kind in (*KINDS, cluster)]
    rows = zip(TITLES, *columns, strict=True)
    return HEADING + "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _column(kind: str) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        guarded, unguarded = Path(directory, "guarded.py"), Path(directory, "unguarded.py")
        guarded.write_text(SCRIPT)
        unguarded.write_text(SCRIPT.replace(GUARD, "if True:\n"))
        found = _run(kind, "all", str(guarded))
        words = [_word(number, found.get(number, [False])) for number in range(len(TITLES))]
        if not _all(_run(kind, "bare", str(unguarded)).get(0)):
            words[_IN_A_FILE] = "with a guard" if words[_IN_A_FILE] == "yes" else "no"
    number = str(_WITHOUT_A_FILE)
    anywhere = [
        *_run(kind, number, "-", stdin=SCRIPT).get(_WITHOUT_A_FILE, [False]),
        *_run(kind, number, "-c", SCRIPT).get(_WITHOUT_A_FILE, [False]),
    ]
    words[_WITHOUT_A_FILE] = _word(_WITHOUT_A_FILE, anywhere)
    return words


def _all(checks: list[bool] | None) -> bool:
    return bool(checks) and all(checks or ())


def _word(row: int, checks: list[bool]) -> str:
    if all(checks):
        return "yes"
    return _PARTLY.get(row, "in part") if any(checks) else "no"


def _run(kind: str, row: str, *program: str, stdin: str = "") -> dict[int, list[bool]]:
    """Run the script; return the checks of the rows that it has printed, by row."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *program, kind, row],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    found: dict[int, list[bool]] = {}
    for line in done.stdout.splitlines():
        number, *words = line.split()
        found[int(number)] = [word == "True" for word in words]
    return found


def main() -> None:
    """Print the table."""
    from daskbatch import Batch

    with Batch(num_workers=2) as batch:
        print(make_table(str(batch.client.scheduler_info()["address"])), end="")


if __name__ == "__main__":
    main()

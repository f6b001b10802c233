"""Compares calls of a template with the same tasks made by `batch.function` and `batch.process`."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Table, seconds

from daskbatch import Batch

CALLS = 1_000
MOST = 2.0

ARGUMENTS = """
import_args: [step]
args: [i, text]
type: function
executables:
  - target: step
    args: [i, text]
"""

ACCESSES = """
import_args: [step, base_dir, get_file]
args: [matrix, i]
type: function
executables:
  - target: step
    args: [matrix, i]
reads:
  - files:
      - get_file: [base_dir, i, 0]
writes:
  - files:
      - get_file: [base_dir, i, 1]
name: step_task
timeout: {sec: 30}
"""

PROCESS = """
args: [i]
type: process
executables:
  - target: echo
    args: [hello, i]
    env: {LANG: C}
writes:
  - files: [out.txt]
"""


def step(number: object, text: object) -> object:
    return number, text


def get_file(base_dir: Path, i: int, j: int) -> Path:
    return base_dir / f"file_{i + j}"


def once(make: Callable[[int], Any], kept: list[Any]) -> Callable[[], None]:
    # The tasks are kept, as a user would; those of templates wait in the background.
    def calls() -> None:
        for number in range(CALLS):
            kept.append(make(number))

    return calls


def ratio(
    table: Table, what: str, ours: Callable[[int], Any], theirs: Callable[[int], Any]
) -> None:
    gc.collect()
    kept: list[Any] = []
    pairs = [(seconds(once(ours, kept)), seconds(once(theirs, kept))) for _ in range(15)]
    template = sorted(pair[0] for pair in pairs)[7]
    direct = sorted(pair[1] for pair in pairs)[7]
    table.row(f"{what}: directly", 1e6 * direct / CALLS, "µs a task")
    table.row_at_most(f"{what}: {CALLS} calls over as many tasks", template / direct, "×", MOST)


def main() -> None:
    table = Table("making tasks by a template, over making them directly")
    base_dir = Path("/some/base_dir")
    matrix = list(range(100))
    batch = Batch(num_workers=1)
    with tempfile.TemporaryDirectory() as place:

        def imported(text: str, *args: object) -> Callable[..., Any]:
            path = Path(place, "ptd.yml")
            path.write_text(text, encoding="utf-8")
            return batch.import_func(path, *args)

        by_arguments = imported(ARGUMENTS, step)
        by_accesses = imported(ACCESSES, step, base_dir, get_file)
        by_process = imported(PROCESS)
        ratio(
            table,
            "arguments alone",
            lambda i: by_arguments(i, "text"),
            lambda i: batch.function(step, i, "text"),
        )
        ratio(
            table,
            "a read, a write, a timeout",
            lambda i: by_accesses(matrix, i),
            lambda i: batch.function(
                step,
                matrix,
                i,
                reads=[batch.read(get_file(base_dir, i, 0))],
                writes=[batch.write(get_file(base_dir, i, 1))],
                name="step_task",
                timeout=30,
            ),
        )
        ratio(
            table,
            "a process",
            by_process,
            lambda i: batch.process(
                "echo", "hello", i, env={"LANG": "C"}, writes=[batch.write("out.txt")]
            ),
        )
    batch.terminate()  # the tasks wait in the background, and need not run
    table.end()


if __name__ == "__main__":
    main()

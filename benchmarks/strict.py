"""Times the opening of files in strict tasks, and in others of the same process."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import Table

from daskbatch.worker.execution.block import DeclaredFiles
from daskbatch.worker.execution.strict_access import Rules, Watch, WatchedFunction

COUNT = 20_000


def open_often(path: str) -> float:
    began = time.thread_time()
    for _ in range(COUNT):
        os.close(os.open(path, os.O_RDONLY))
    return (time.thread_time() - began) / COUNT


def least(function: Callable[[], float]) -> float:
    return min(function() for _ in range(5))


def main() -> None:
    table = Table("opening files: what strictness costs")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        path = str(Path(directory, "a", "b", "file"))
        Path(path).parent.mkdir(parents=True)
        Path(path).touch()
        bare = least(lambda: open_often(path))

        def watched(declared: DeclaredFiles, opened: str = path) -> float:
            rules = Rules(directory)
            return least(lambda: WatchedFunction(open_often, Watch("t", declared, rules))(opened))

        for name, cost in (
            ("a declared file", watched(DeclaredFiles(reads=(path,)))),
            ("a file in a declared directory", watched(DeclaredFiles(reads=(directory,)))),
            ("a file that does not count", watched(DeclaredFiles(), os.__file__)),
            ("in a task that is not strict, beside strict ones", least(lambda: open_often(path))),
        ):
            table.row_at_most(name, (cost - bare) * 1e6, "µs more", 5)
    table.end()


if __name__ == "__main__":
    main()

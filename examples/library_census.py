"""A census of Python's standard library: functions and executables process dozens of its source
files. Their order follows from what each of them reads and writes, and from nothing else.

For each file: copy it (`cp`), split it into words (a function), sort them (`sort`), count them
(a function), compress the copy (`gzip`), compute its checksum (`sha256sum`), and remove the
unsorted words, once they are sorted. At the end two tasks read whole directories: one makes a
table of all counts, the other a list of all checksums.

The same program is then run sequentially, and must leave the same files.

    python examples/library_census.py --files 60
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import subprocess
import sys
import sysconfig
import time
import tokenize
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskbatch import Batch

DIRECTORIES = ("sources", "words", "sorted", "counts", "checksums")


def take_apart(source: Path, words: Path) -> int:
    """Write the names that a Python file uses, one a line."""
    with tokenize.open(source) as file:
        found = [
            token.string
            for token in tokenize.generate_tokens(file.readline)
            if token.type == tokenize.NAME
        ]
    words.write_text("\n".join(found) + "\n", encoding="utf-8")
    return len(found)


def count(words: Path, counts: Path) -> int:
    """Count sorted words."""
    found = Counter(words.read_text(encoding="utf-8").split())
    counts.write_text(json.dumps(found, sort_keys=True), encoding="utf-8")
    return len(found)


def remove(path: Path) -> None:
    path.unlink()


def make_table(counts: Path, table: Path) -> list[tuple[str, int]]:
    """Add up all counts; return the ten most frequent words."""
    total: Counter[str] = Counter()
    for path in sorted(counts.iterdir()):
        total.update(json.loads(path.read_text(encoding="utf-8")))
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    table.write_text("".join(f"{number:8} {word}\n" for word, number in ranked), encoding="utf-8")
    return ranked[:10]


def make_list(checksums: Path, target: Path) -> int:
    """Write all checksums to one list."""
    lines = sorted(path.read_text(encoding="utf-8") for path in checksums.iterdir())
    target.write_text("".join(lines), encoding="utf-8")
    return len(lines)


@dataclass(frozen=True)
class Step:
    """A line of the sequential program: what it calls, reads, writes and removes."""

    call: Callable[..., Any] | str
    arguments: tuple[Any, ...]
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()
    removes: tuple[Path, ...] = ()


def write_program(files: Sequence[Path], home: Path) -> list[Step]:
    """Return the program, in the order in which a person would run it by hand."""
    steps: list[Step] = []
    for file in files:
        name = "-".join(file.relative_to(sysconfig.get_path("stdlib")).with_suffix("").parts)
        source, packed = home / "sources" / f"{name}.py", home / "sources" / f"{name}.py.gz"
        words, ordered = home / "words" / name, home / "sorted" / name
        counts, checksum = home / "counts" / name, home / "checksums" / name
        # `gzip` reads the content alone: time stamps and file names would differ between runs.
        pack = f"gzip -9 -n -c sources/{name}.py > sources/{name}.py.gz"
        check = f"sha256sum sources/{name}.py.gz > checksums/{name}"
        steps += [
            Step("cp", (file, source), writes=(source,)),
            Step(take_apart, (source, words), (source,), (words,)),
            Step("sort", ("-o", ordered, words), (words,), (ordered,)),
            Step(remove, (words,), removes=(words,)),
            Step(count, (ordered, counts), (ordered,), (counts,)),
            Step("sh", ("-c", pack), (source,), (packed,)),
            Step("sh", ("-c", check), (packed,), (checksum,)),
        ]
    table, checksums = home / "words.txt", home / "checksums.txt"
    steps += [
        Step(make_table, (home / "counts", table), (home / "counts",), (table,)),
        Step(make_list, (home / "checksums", checksums), (home / "checksums",), (checksums,)),
    ]
    return steps


def run_sequentially(steps: Sequence[Step], home: Path) -> float:
    """Run the program one line after another; return the seconds that it took."""
    began = time.perf_counter()
    for step in steps:
        if callable(step.call):
            step.call(*step.arguments)
        else:
            subprocess.run([step.call, *map(str, step.arguments)], check=True, cwd=home)
    return time.perf_counter() - began


def describe(batch: Batch, step: Step, home: Path) -> Any:
    """Make a task of a line of the program."""
    options = batch.options(
        reads=[batch.read(path) for path in step.reads],
        writes=[batch.write(path) for path in step.writes],
        removes=[batch.write(path) for path in step.removes],
        cwd=None if callable(step.call) else home,
    )
    if callable(step.call):
        return options.function(step.call, *step.arguments)
    return options.process(step.call, *step.arguments)


def choose_files(number: int) -> list[Path]:
    """Choose the largest source files of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    files = [path for path in library.rglob("*.py") if not skipped & set(path.parts)]
    return sorted(files, key=lambda path: (-path.stat().st_size, str(path)))[:number]


def make_home(home: Path) -> Path:
    shutil.rmtree(home, ignore_errors=True)
    for name in DIRECTORIES:
        (home / name).mkdir(parents=True)
    return home.resolve()


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    others = sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    return names == others and all(filecmp.cmp(one / n, other / n, shallow=False) for n in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=60, help="how many source files")
    parser.add_argument("--workers", type=int, default=None, help="task slots; default: all CPUs")
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="the results' place"
    )
    options = parser.parse_args()
    files = choose_files(options.files)

    with Batch(num_workers=options.workers) as batch:
        workers = batch.num_workers
        print(f"{workers} workers; Dask's dashboard, while they run: {batch.dashboard_link}")
        home = make_home(options.output / "parallel")
        began = time.perf_counter()
        tasks = [describe(batch, step, home) for step in write_program(files, home)]
        program = batch.compile(tasks, name="census")
        program.run(progress=True)
        parallel = time.perf_counter() - began
        top = program.tasks[-2].get()  # raises the exception of a failed task
        edges = {reason: number for reason, number in program.graph.counts().items() if number}
        reason = program.explain(tasks[2], tasks[3])
        program.visualize(options.output / "graph.svg")

    print("running the same program sequentially …", file=sys.stderr)
    alone = make_home(options.output / "sequential")
    sequential = run_sequentially(write_program(files, alone), alone)

    functions = sum(callable(step.call) for step in write_program(files, home))
    print(f"tasks      {len(tasks)}: {functions} functions, {len(tasks) - functions} executables")
    print(f"ran on     {workers} workers")
    print("edges      " + ", ".join(f"{number} {reason}" for reason, number in edges.items()))
    print(f"one edge   {reason}")
    ratio = f"×{sequential / parallel:.2f}"
    print(f"time       {parallel:.2f} s; sequentially {sequential:.2f} s: {ratio}")
    print("same files " + ("yes" if same_files(home, alone) else "NO, this is a bug"))
    print("top words  " + ", ".join(f"{word} {number}" for word, number in top))
    print(f"results    {options.output.resolve()} (words.txt, checksums.txt, graph.svg, …)")
    if not same_files(home, alone):
        sys.exit(1)


main()

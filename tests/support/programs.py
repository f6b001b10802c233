"""Makes random programs on real files, and runs them one step after another as the oracle."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daskbatch import Batch, DependencyFailed, TaskCancelled
from daskbatch.batch.task import Task

FILES = ("a", "b", "sub/c", "sub/d", "sub/deep/e", "sub/deep/f g ü")
DIRECTORIES = ("sub", "sub/deep")


@dataclass(frozen=True)
class Step:
    """A task of a random program. It names other steps by their positions, so that it pickles."""

    number: int
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    appends: bool = False
    arguments: tuple[int, ...] = ()
    fails: bool = False
    seconds: float = 0.0


def act(root: str, step: Step, *values: Any) -> str:
    """Execute a step. On the same state, the result is always the same."""
    state = [repr(values), str(step.number)]
    for name in step.reads:
        state += _contents(Path(root, name))
    result = hashlib.sha256("|".join(state).encode()).hexdigest()[:12]
    for name in step.writes:
        path = Path(root, name)
        for file in _files_below(path) if name in DIRECTORIES else [path]:
            with file.open("a" if step.appends else "w") as stream:
                stream.write(f"{step.number}:{result}\n")
    if step.seconds:
        _spin(step.seconds)
    if step.fails:
        raise ValueError(f"step {step.number} fails after {result}")
    return result


def _spin(seconds: float) -> None:
    import time

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _contents(path: Path) -> list[str]:
    if path.is_dir():
        return [text for file in _files_below(path) for text in _contents(file)]
    return [f"{path.name}={path.read_text()}" if path.exists() else f"no {path.name}"]


def _files_below(directory: Path) -> list[Path]:
    # By the list of names, not by what exists: a file may or may not exist already.
    return [directory / Path(name).relative_to(directory.name) for name in _names_below(directory)]


def _names_below(directory: Path) -> list[str]:
    prefix = "sub/" if directory.name == "sub" else "sub/deep/"
    names = [name for name in FILES if name.startswith(prefix)]
    return [f"{directory.name}/{name.removeprefix(prefix)}" for name in names]


def make_root(root: Path) -> Path:
    (root / "sub" / "deep").mkdir(parents=True)
    return root


def random_program(rng: random.Random, length: int, seconds: float = 0.0) -> list[Step]:
    """Return a random program: with short and long chains, much and little to do in parallel,
    and some failures.
    """
    steps: list[Step] = []
    busy = rng.choice([0.2, 0.5, 0.9])
    for number in range(length):
        names = FILES + DIRECTORIES
        reads = tuple(rng.sample(names, rng.choice([0, 1, 1, 2]))) if rng.random() < busy else ()
        writes = tuple(rng.sample(names, rng.choice([0, 1, 1, 2]))) if rng.random() < busy else ()
        earlier = range(max(0, number - rng.choice([1, 3, 20])), number)
        steps.append(
            Step(
                number,
                reads,
                writes,
                appends=rng.random() < 0.5,
                arguments=tuple(rng.sample(earlier, min(len(earlier), rng.choice([0, 0, 1, 2])))),
                fails=rng.random() < 0.04,
                seconds=rng.choice([0, 0, seconds]),
            )
        )
    return steps


@dataclass
class Outcome:
    """The outcome of a run: a result for each step, and the contents of the files."""

    results: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def run_sequentially(root: Path, steps: Sequence[Step], cancelled: Container[int] = ()) -> Outcome:
    """Run a program one step after another, in this process: the expected outcome."""
    outcome = Outcome()
    values: dict[int, str] = {}
    for step in steps:
        if step.number in cancelled:
            outcome.results.append("cancelled")
            continue
        needed = [*step.arguments, *last_writers(steps, step)]
        if any(number not in values for number in needed):
            outcome.results.append("skipped")
            continue
        try:
            values[step.number] = act(str(root), step, *(values[n] for n in step.arguments))
            outcome.results.append(values[step.number])
        except ValueError as error:
            outcome.results.append(f"failed: {error}")
    outcome.files = snapshot(root)
    return outcome


def last_writers(steps: Sequence[Step], reader: Step) -> set[int]:
    """Find the steps whose writes a step reads, by comparing it with all earlier steps."""
    needed = set()
    for read in reader.reads:
        for writer in steps[: reader.number]:
            for written in writer.writes:
                part = _overlap(read, written)
                if part is not None and not any(
                    _covers(again, part)
                    for later in steps[writer.number + 1 : reader.number]
                    for again in later.writes
                ):
                    needed.add(writer.number)
    return needed


def _covers(one: str, other: str) -> bool:
    return one == other or other.startswith(one + "/")


def _overlap(one: str, other: str) -> str | None:
    if _covers(one, other):
        return other
    return one if _covers(other, one) else None


def snapshot(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def make_tasks(
    batch: Batch, root: Path, steps: Sequence[Step], act: Callable[..., str] = act
) -> list[Task]:
    """Make the tasks of a program, ordered by their reads, writes and arguments alone."""
    tasks: list[Task] = []
    for step in steps:
        tasks.append(
            batch.function(
                act,
                str(root),
                step,
                *[tasks[number].result for number in step.arguments],
                reads=[batch.read(root, name) for name in step.reads],
                writes=[batch.write(root, name) for name in step.writes],
                name=f"step-{step.number}",
            )
        )
    return tasks


def run_as_batch(batch: Batch, root: Path, steps: Sequence[Step]) -> Outcome:
    """Run a program with a Batch."""
    tasks = make_tasks(batch, root, steps)
    batch.compile(tasks).run(timeout=100)
    return Outcome([result_of(task) for task in tasks], snapshot(root))


def result_of(task: Task) -> str:
    """Describe the outcome of a task as `run_sequentially` does."""
    try:
        return str(task.result.get(timeout=30))
    except ValueError as error:
        return f"failed: {error}"
    except DependencyFailed:
        return "skipped"
    except TaskCancelled:
        return "cancelled"

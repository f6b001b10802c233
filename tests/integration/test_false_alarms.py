"""Programs that do what they declare run strictly, and with warnings as errors, without an alarm.

With ``DASKBATCH_TEST_SEEDS=1000-1099`` these random programs run instead of the usual few.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.programs import (
    FILES,
    Outcome,
    Step,
    act,
    make_root,
    make_tasks,
    random_program,
    result_of,
    run_sequentially,
    snapshot,
)
from support.waiting import touch

from daskbatch import Batch, ProgramWarning, Task


def _seeds(default: range) -> range:
    first, _, last = os.environ.get("DASKBATCH_TEST_SEEDS", "").partition("-")
    return range(int(first), int(last or first) + 1) if first else default


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batch]:
    # All files below its directory count.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("strict"))
        with Batch(num_workers=2, strict=True) as batch:
            yield batch


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _full_root(directory: Path) -> Path:
    """Make the directory of a random program, in which all its files exist."""
    root = make_root(directory)
    for name in FILES:
        (root / name).write_text("at first\n")
    return root


def _make_mixed(batch: Batch, root: Path, steps: list[Step], rng: random.Random) -> list[Task]:
    """Make the tasks as `make_tasks` does, about a third of them in child processes."""
    tasks: list[Task] = []
    for step in steps:
        options = batch.options(
            isolation=rng.choice(["thread", "thread", "process"]),
            reads=[batch.read(root, name) for name in step.reads],
            writes=[batch.write(root, name) for name in step.writes],
            name=f"step-{step.number}",
        )
        values = [tasks[number].result for number in step.arguments]
        tasks.append(options.function(act, str(root), step, *values))
    return tasks


Make = Callable[[Batch, Path, list[Step], random.Random], list[Task]]


def _make_in_threads(batch: Batch, root: Path, steps: list[Step], rng: random.Random) -> list[Task]:
    return make_tasks(batch, root, steps)


@pytest.mark.parametrize("make", [_make_in_threads, _make_mixed])
@pytest.mark.parametrize("seed", _seeds(range(100, 103)))
def test_random_programs(strict: Batch, make: Make, seed: int) -> None:
    rng = random.Random(seed)
    steps = random_program(rng, rng.choice([5, 20, 40]), seconds=rng.choice([0, 0.002]))
    here = Path(strict._context.directory)
    expected = run_sequentially(_full_root(here / f"{seed}-{make.__name__}-expected"), steps)
    root = _full_root(here / f"{seed}-{make.__name__}-found")
    tasks = make(strict, root, steps, rng)
    # The check would say, truly, that some writes are replaced before any read.
    strict.compile(tasks, check=None).run(timeout=100)
    assert Outcome([result_of(task) for task in tasks], snapshot(root)) == expected
    assert not any(task.info.warnings for task in tasks)
    strict.fence(timeout=60)


@pytest.mark.parametrize("seed", _seeds(range(200, 201)))
def test_random_tasks_one_by_one(strict: Batch, seed: int) -> None:
    here = Path(strict._context.directory)
    steps = random_program(random.Random(seed), 30)
    tasks = make_tasks(strict, _full_root(here / f"{seed}-single"), steps)
    for task in tasks:
        task.start()
        # Any other exception than those of the steps is raised here.
        assert result_of(task)
        assert not task.info.warnings
    strict.fence(timeout=60)


def test_programs_that_are_compiled_before_an_earlier_one_has_run(strict: Batch) -> None:
    here = Path(strict._context.directory)

    def make(name: str, **declared: Any) -> Task:
        return strict.function(touch, here / name, **declared)

    def read(name: str) -> Any:
        path = here / name
        return strict.compile([strict.function(path.read_text, reads=strict.read(path))])

    programs: list[Any] = [strict.compile([make("made-1", writes=strict.write(here, "made-1"))])]
    programs.append(read("made-1"))
    # A task that no program has, and one whose write is declared later.
    programs += [make("made-2", writes=strict.write(here, "made-2")), read("made-2")]
    later = make("made-3")
    later.write(here, "made-3")
    programs += [later, read("made-3")]
    for each in programs:
        each.run(timeout=60, check=True)
    # Once they are over they do not excuse a file that is not there.
    (here / "made-1").unlink()
    with pytest.raises(ProgramWarning, match="made-1, which is not there"):
        read("made-1")

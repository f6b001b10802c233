"""Declarations of a program that do not fit are found, and no others."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pytest

from daskbatch.describe.access import Channel, Mode, make_access
from daskbatch.plan.checks import check_program

PATHS = ("/d", "/d/a", "/d/b", "/d/e", "/d/e/f", "/x")


class Plain(NamedTuple):
    """A task as the checks see it."""

    number: int
    reads: tuple[Channel, ...]
    writes: tuple[Channel, ...]
    producers: tuple[Plain, ...] = ()

    @property
    def name(self) -> str:
        return f"t{self.number}"


def channels(mode: Mode, paths: Iterable[str]) -> tuple[Channel, ...]:
    return tuple(each for path in paths for each in make_access(mode, path, (), "/").channels)


def program(*accesses: tuple[Sequence[str], Sequence[str]]) -> list[Plain]:
    return [
        Plain(number, channels(Mode.READ, reads), channels(Mode.WRITE, writes))
        for number, (reads, writes) in enumerate(accesses)
    ]


def found(tasks: Sequence[Plain], there: Iterable[str] = ()) -> list[tuple[int, str]]:
    """Return the position of each finding and its first words."""
    findings = check_program(tasks, lambda paths: set(paths) - set(there), list)
    return [(each.position, each.text.partition(",")[0]) for each in findings]


def covers(one: str, other: str) -> bool:
    return one == other or other.startswith(one + "/")


def expected(tasks: Sequence[Plain], there: Iterable[str]) -> list[tuple[int, str]]:
    """Compare all tasks with all others."""
    findings = []
    for position, task in enumerate(tasks):
        earlier = [str(each.key) for other in tasks[:position] for each in other.writes]
        for path in (str(each.key) for each in task.reads):
            if path not in there and not any(
                covers(path, each) or covers(each, path) for each in earlier
            ):
                findings.append((position, f"reads {path}"))
        for path in dict.fromkeys(str(each.key) for each in task.writes):
            for later in tasks[position + 1 :]:
                if any(
                    covers(path, str(each.key)) or covers(str(each.key), path)
                    for each in later.reads
                ):
                    break
                if path in [str(each.key) for each in later.writes]:
                    findings.append((position, f"writes {path}"))
                    break
    return sorted(findings)


#: Of these none is above another.
FLAT_PATHS = ("/d/a", "/d/b", "/d/ab", "/x")


@pytest.mark.parametrize("paths", [PATHS, FLAT_PATHS])
@pytest.mark.parametrize("seed", range(200))
def test_random_programs(seed: int, paths: Sequence[str]) -> None:
    dice = random.Random(seed)
    tasks = program(
        *(
            (dice.sample(paths, dice.choice([0, 1, 1, 2])), dice.sample(paths, dice.choice([0, 1])))
            for _ in range(dice.randrange(1, 9))
        )
    )
    there = dice.sample(paths, dice.randrange(4))
    assert found(tasks, there) == expected(tasks, there)


def test_a_task_that_changes_a_file_reads_the_write_before() -> None:
    assert found(program(([], ["/a"]), (["/a"], ["/a"]), (["/a"], []))) == []


def test_what_the_background_writes_is_there() -> None:
    tasks = program((["/a"], []), (["/d/x"], []), (["/e"], []))
    assert check_program(tasks, set, lambda: channels(Mode.WRITE, ["/a", "/d", "/e/f"])) == []


def test_only_what_nobody_writes_is_looked_up() -> None:
    asked: list[str] = []

    def find_missing(paths: Iterable[str]) -> set[str]:
        asked.extend(paths)
        return set()

    tasks = program(([], ["/d"]), (["/d/a", "/d", "/x"], []))
    assert check_program(tasks, find_missing, list) == []
    assert asked == ["/x"]


@pytest.mark.parametrize(
    ("path", "written", "said"),
    [
        ("/data/*.csv", (), "it is taken as the name of one file, and not as a pattern"),
        ("/data/report.csv", ("/data/reports.csv",), "did you mean /data/reports.csv?"),
        ("/data/one", ("/other",), "which no task before it writes"),
    ],
)
def test_hints(path: str, written: Sequence[str], said: str) -> None:
    tasks = program(([], written), ([path], []))
    (finding,) = check_program(tasks, set, list)
    assert finding.text.endswith(said)


def test_a_later_task_that_writes_it() -> None:
    (finding,) = check_program(program((["/a"], []), ([], ["/a"])), set, list)
    assert finding.text.endswith("a later task writes it")

"""Which workers can leave, and which stay long enough for a task."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from daskbatch.cluster.leaving.departures import drop_absent_actors
from daskbatch.cluster.leaving.probe import is_listening
from daskbatch.cluster.leaving.recipients import Holding, not_begun, unable_to_leave
from daskbatch.cluster.leaving.walltimes import fitting
from daskbatch.worker.announced_end import announced_end, ask_slurm

ALL = Holding(unique_values=True, shards=True)


@pytest.mark.parametrize(
    ("holding", "staying", "unable"),
    [
        (Holding(), [], False),
        (Holding(shards=True), [], True),
        (Holding(unique_values=True), [], True),
        (ALL, ["b"], False),
        (Holding(foreign_actors=True), ["b"], True),
    ],
)
def test_who_would_lose_something_cannot_leave(
    holding: Holding, staying: list[str], unable: bool
) -> None:
    assert unable_to_leave({"a": holding}, staying) == ({"a"} if unable else set())


def test_only_what_has_not_begun_runs_elsewhere() -> None:
    assert not_begun([("t", 1), ("t", 2), "x"], [("t", 2)]) == [("t", 1), "x"]


def test_workers_that_stay_long_enough() -> None:
    ends = {"ends": 1059.0, "exactly": 1060.0, "stays": math.inf}
    assert fitting(60.0, ends, now=1000.0) == {"exactly", "stays"}


@pytest.mark.parametrize(
    ("lifetime", "environment", "end"),
    [
        (None, {}, math.inf),
        (30, {}, 1030.0),
        (None, {"SLURM_JOB_END_TIME": "1020"}, 1020.0),
        (30, {"SLURM_JOB_END_TIME": "1020"}, 1020.0),
        (10, {"SLURM_JOB_END_TIME": "1020"}, 1010.0),
        (None, {"SLURM_JOB_END_TIME": "unknown"}, math.inf),
    ],
)
def test_the_announced_end(lifetime: float | None, environment: dict[str, str], end: float) -> None:
    assert announced_end(lifetime, 1000.0, environment) == end


def test_slurm_says_when_a_job_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "squeue"
    program.write_text('#!/bin/sh\ntest "$3" = 17 && echo 2026-01-02T03:04:05\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    end = datetime(2026, 1, 2, 3, 4, 5).timestamp()
    assert ask_slurm({"SLURM_JOB_ID": "17"}) == end
    assert ask_slurm({"SLURM_JOB_ID": "18"}) == math.inf
    assert ask_slurm({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "1"}) == math.inf
    assert ask_slurm({}) == math.inf


def test_a_refused_connection_is_known_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert asyncio.run(is_listening(address, 30.0))
    assert not asyncio.run(is_listening(address, 30.0))
    assert asyncio.run(is_listening("inproc://10.0.0.1/1/1", 0.0))


@dataclass(eq=False)
class Actor:
    """What the scheduler records of an actor."""

    processing_on: object = None
    who_has: set[object] | None = None


@dataclass(eq=False)
class WorkerState:
    """What the scheduler records of a worker."""

    actors: set[object] = field(default_factory=set)


def test_actors_that_were_never_made_keep_no_worker() -> None:
    worker, other = WorkerState(), WorkerState()
    there: set[object] = {"a key", Actor(None, {worker}), Actor(worker)}
    worker.actors = there | {Actor(), Actor(None, set()), Actor(other), Actor(None, {other})}
    drop_absent_actors(worker)
    assert worker.actors == there

"""The log of a run has whole lines, and all that the program was told, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from support.processes import killed_if_failed
from support.waiting import HANG_SECONDS, wait_for_file, wait_until, wait_until_running

from daskbatch import Batch
from daskbatch.records.event_log import complete
from daskbatch.records.event_schema import EVENTS_FILE, find_faults

#: A program whose tasks take some milliseconds, and that says of each what it was told.
PROGRAM = """
import os, sys, time
from daskbatch import Batch, as_completed

def work(number):
    print("output of", number, flush=True)
    time.sleep(0.002 * (number % 5))
    if number % 7 == 3:
        raise ValueError(number)
    return number

with Batch(num_workers=2, log_dir=sys.argv[1]) as batch:
    while True:
        tasks = [batch.function(work, number) for number in range(40)]
        tasks += [batch.function(pow, number, 2) for number in range(int(sys.argv[2]))]
        program = batch.compile(tasks)
        program.start()
        for task in as_completed(tasks):
            os.write(1, f"{task.uid} {task.state}\\n".encode())
"""


def read(directory: Path) -> list[Mapping[str, Any]]:
    text = (directory / EVENTS_FILE).read_text(encoding="utf-8")
    assert text.endswith("\n")
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        assert find_faults(event) == [], event
    return events


@pytest.mark.parametrize(("burst", "runs"), [(0, 2), (3000, 1)])
def test_what_a_client_that_is_killed_was_told_is_in_its_log(
    tmp_path: Path, burst: int, runs: int
) -> None:
    rng = random.Random(burst)
    directory = tmp_path / "log \u00fc"
    argv = [sys.executable, "-c", PROGRAM, str(directory), str(burst)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told: dict[str, str] = {}
    for _ in range(runs):
        with killed_if_failed(subprocess.Popen(argv, stdout=subprocess.PIPE, env=env)) as client:
            assert client.stdout is not None
            lines = [client.stdout.readline() for _ in range(rng.randrange(5, 60 + burst))]
            client.send_signal(signal.SIGKILL)
            lines += client.stdout.readlines()
        # A line that was cut was not told.
        told.update(line.decode().split() for line in lines if line.endswith(b"\n"))
        if not burst:
            states = {e["uid"]: e["state"] for e in read(directory) if e["kind"] == "task"}
            assert {uid: states.get(uid) for uid in told} == told
    complete(directory)
    events = read(directory)
    states = {event["uid"]: event["state"] for event in events if event["kind"] == "task"}
    assert {uid: states.get(uid) for uid in told} == told
    begun = [event for event in events if (event["kind"], event["state"]) == ("run", "begun")]
    assert len({event["run"] for event in begun}) == len(begun) == runs
    for event in events:
        if event.get("stdout"):
            assert (directory / event["stdout"]).read_text().startswith("output of ")


def hold(go: Path, marker: Path) -> None:
    print("before", flush=True)
    marker.touch()
    wait_for_file(go)
    print("after")


def test_a_killed_worker_is_seen_in_the_log(tmp_path: Path) -> None:
    go, marker, directory = tmp_path / "go", tmp_path / "marker", tmp_path / "log"
    with Batch(num_workers=1, log_dir=directory) as batch:
        task = batch.options(isolation="process", name="a/b: c").function(hold, go, marker)
        task.start()
        wait_until_running(task)
        output = directory / "output"
        wait_until(lambda: [path.read_text() for path in output.rglob("*.out")] == ["before\n"])
        (pid,) = batch.client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: task.info.attempts == 2)
        go.touch()
        task.wait(timeout=HANG_SECONDS)
    events = [event for event in read(directory) if event["uid"] == task.uid]
    assert [event["state"] for event in events] == [
        *("waiting", "running", "waiting", "running", "done")
    ]
    last = events[-1]
    assert last["attempts"] == 2
    assert (directory / last["stdout"]).read_text() == "before\nafter\n"
    assert Path(last["stdout"]).name == f"a_b_c-{task.uid.rpartition('-')[2]}.out"
    slots = [event["slots"] for event in read(directory) if "slots" in event]
    assert len({slot["worker"] for some in slots for slot in some}) == 2


def test_a_killed_scheduler_is_seen_in_the_log(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    batch = Batch(num_workers=1, log_dir=directory)
    try:
        done = batch.function(len, "four")
        done.run(timeout=HANG_SECONDS)
        task = batch.function(wait_for_file, tmp_path / "never")
        task.start()
        wait_until_running(task)
        (scheduler,) = {batch.client.run_on_scheduler(os.getpid)}
        os.kill(scheduler, signal.SIGKILL)
        task.wait(timeout=HANG_SECONDS)
        states = {event["uid"]: event for event in read(directory)}
        assert states[done.uid]["state"] == "done"
        assert states[task.uid]["state"] == "failed"
        assert states[task.uid]["error"].startswith("ServiceLost")
    finally:
        batch.terminate()
    assert read(directory)[-1]["state"] == "ended"


def test_a_given_cluster_and_two_runs_in_one_directory(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster:
        for name in ("one", "two"):
            with Batch(cluster, log_dir=tmp_path, name=name) as batch:
                first = batch.function(print, name, writes=batch.write("f"), name="write")
                second = batch.process("echo", "x" * 200_000, reads=batch.read("f"))
                batch.compile([first, second], check=None).run(timeout=HANG_SECONDS)
    events = read(tmp_path)
    assert len({event["run"] for event in events}) == 2
    for event in events:
        if event["kind"] == "task" and event["state"] == "done":
            text = (tmp_path / event["stdout"]).read_text()
            assert text in ("one\n", "two\n", "x" * 200_000 + "\n")
    waiting = (event for event in events if event["state"] == "waiting")
    edges = next(event["waits_for"] for event in waiting if event["name"] == "echo")
    assert [edge[1:] for edge in edges] == [["RAW", str(Path("f").absolute())]]

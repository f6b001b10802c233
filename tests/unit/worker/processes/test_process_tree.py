"""Process trees end with all processes that belong to them, even if these have left the tree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.own_process import in_own_process
from support.processes import KINDS, TREE, is_running, read_pids
from support.waiting import wait_until

from daskbatch.worker.processes.process_tree import (
    MARKER,
    OWNER,
    kill_tree,
    processes_before,
    sweep,
    sweep_all,
)


@dataclass
class Starter:
    """Starts processes with a marker in their environment that is this test's."""

    marker: str = field(default_factory=lambda: os.urandom(8).hex())
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __call__(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        given: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "bufsize": 0,
            "start_new_session": True,
            "env": {**os.environ, MARKER: self.marker},
        }
        process = subprocess.Popen(command, **{**given, **options})
        self.processes.append(process)
        wait_until(lambda: has_environment(process.pid))
        return process

    def tree(self, **options: Any) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
        process = self(sys.executable, "-c", TREE, **options)
        assert process.stdout is not None
        pids = read_pids(process.stdout)
        assert set(pids) == KINDS
        assert all(map(is_running, pids.values()))
        return process, pids


def has_environment(pid: int) -> bool:
    """Return whether the environment of a process can be read, or it has ended.

    For a moment after `exec` it is empty: a single search then does not find the process.
    """
    try:
        return bool(Path(f"/proc/{pid}/environ").read_bytes()) or not is_running(pid)
    except OSError:
        return True


@contextmanager
def new_starter() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    sweep_all(MARKER, starter.marker)
    for each in starter.processes:
        each.kill()
        each.wait()
        if each.stdout is not None:
            each.stdout.close()


@pytest.fixture
def start() -> Iterator[Starter]:
    with new_starter() as starter:
        yield starter


# -- kill_tree ----------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [0.0, 0.2])
def test_everything_is_ended(start: Starter, grace: float) -> None:
    process, pids = start.tree()
    began = time.monotonic()
    kill_tree(process.pid, start.marker, grace)
    took = time.monotonic() - began
    assert [kind for kind, pid in pids.items() if is_running(pid)] == []
    assert grace <= took < 60
    # The process that has started it can still get its exit code.
    assert process.wait() == -signal.SIGKILL


def test_without_a_marker_the_tree_and_the_group_are_ended(start: Starter) -> None:
    other = Starter()
    process, pids = start.tree(env={**os.environ, MARKER: other.marker})
    kill_tree(process.pid, "of something else", 0)
    # Nothing shows that these belong to the tree.
    left = {"daemon", "executed"}
    assert {kind for kind, pid in pids.items() if is_running(pid)} == left
    assert sorted(sweep_all(MARKER, other.marker)) == sorted(pids[each] for each in left)


def test_what_ends_when_asked_is_not_waited_for_longer(start: Starter) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    process = start("sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    # If it waited for all of this time, the test would hang.
    kill_tree(process.pid, start.marker, 600)
    assert process.stdout.read() == b"bye\n"
    assert process.wait() == 0


def test_parents_are_told_before_their_children(start: Starter) -> None:
    # Otherwise the shell would continue with its next command.
    process = start("sh", "-c", "echo x; sleep 300; echo next; sleep 300; echo last")
    assert process.stdout is not None
    assert process.stdout.readline() == b"x\n"
    wait_until(psutil.Process(process.pid).children, "it has no child")
    kill_tree(process.pid, start.marker, 20)
    assert process.stdout.read() == b""


def test_what_is_started_during_the_grace_is_ended_too(start: Starter) -> None:
    late = "trap '' TERM; echo $$; while :; do sleep 0.02; done"
    script = "trap 'setsid sh -c \"$LATE\" & exit 0' TERM; echo ready; sleep 300 & wait"
    process = start("sh", "-c", script, env={**os.environ, MARKER: start.marker, "LATE": late})
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    kill_tree(process.pid, start.marker, 1)
    process.wait()
    assert sweep(MARKER, start.marker) == []
    for line in process.stdout:
        assert not is_running(int(line))


def test_what_goes_on_starting_others_is_ended(start: Starter) -> None:
    # Each process starts the next one, in a new session, and ends.
    script = 'echo x; setsid sh -c "$AGAIN" & sleep 0.01'
    process = start("sh", "-c", script, env={**os.environ, MARKER: start.marker, "AGAIN": script})
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline() == b"x\n"
    kill_tree(process.pid, start.marker, 0)
    # No process that could write to the pipe exists any longer.
    rest = threading.Thread(target=process.stdout.read, daemon=True)
    rest.start()
    rest.join(10)
    assert not rest.is_alive()


def test_a_stopped_process_is_ended(start: Starter) -> None:
    process, pids = start.tree()
    os.kill(pids["session"], signal.SIGSTOP)
    os.kill(process.pid, signal.SIGSTOP)
    kill_tree(process.pid, start.marker, 0.05)
    assert not any(map(is_running, pids.values()))


def test_the_orphans_of_a_process_that_was_waited_for_are_ended(start: Starter) -> None:
    process, pids = start.tree()
    process.kill()
    process.wait()
    kill_tree(process.pid, start.marker, 0.05)
    assert not any(map(is_running, pids.values()))


def test_what_has_ended_already_is_no_trouble(start: Starter) -> None:
    process = start("true")
    wait_until(lambda: not is_running(process.pid), "it still runs")
    kill_tree(process.pid, start.marker, 1)
    assert process.wait() == 0
    kill_tree(process.pid, start.marker, 1)


def test_a_number_that_means_another_process_by_now_is_left_alone(start: Starter) -> None:
    # Not a child of this process, and not marked: as if it had got the number since.
    between = start("sh", "-c", "setsid sleep 300 & echo $!; wait", env=dict(os.environ))
    assert between.stdout is not None
    other = int(between.stdout.readline())
    kill_tree(other, start.marker, 0.05)
    assert is_running(other)
    psutil.Process(other).kill()


@pytest.mark.parametrize("pid", [-1, 0, 1, os.getpid()], ids=["all", "own group", "init", "own"])
def test_some_processes_are_never_ended(pid: int) -> None:
    with pytest.raises(ValueError, match=f"{pid} is not a process that may be ended"):
        kill_tree(pid, "marker", 0)


def test_our_own_group_is_not_ended(start: Starter) -> None:
    process = start("sleep", "300", start_new_session=False)
    kill_tree(process.pid, start.marker, 0)
    assert process.wait() == -signal.SIGKILL


def test_many_threads_at_once(start: Starter) -> None:
    processes = [start("sh", "-c", "setsid sleep 300 & sleep 300") for _ in range(8)]
    threads = [
        threading.Thread(target=kill_tree, args=(each.pid, start.marker, 0.1)) for each in processes
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(each.wait() for each in processes)
    assert sweep(MARKER, start.marker) == []


# -- sweep --------------------------------------------------------------------------------


def test_a_sweep_takes_only_what_carries_exactly_that(start: Starter) -> None:
    def sleeper(**env: str) -> int:
        return start("sleep", "300", env={**os.environ, **env}).pid

    name = start.marker
    mine = {sleeper(**{OWNER: name}), sleeper(**{OWNER: name, MARKER: "x"})}
    others = [
        sleeper(**{OWNER: name + "1"}),
        sleeper(**{OWNER: "1" + name}),
        sleeper(**{MARKER: name}),
        sleeper(**{"X" + OWNER: name}),
        sleeper(X=f"{OWNER}={name}"),
    ]
    assert set(sweep(OWNER, name)) == mine
    for pid in mine:
        wait_until(lambda pid=pid: not is_running(pid), "it still runs")
    assert sweep(OWNER, name) == []
    assert all(map(is_running, others))


def test_a_sweep_spares_its_own_process() -> None:
    program = (
        "from daskbatch.worker.processes.process_tree import *; import os;"
        "print(sweep(MARKER, os.environ[MARKER]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, MARKER: os.urandom(8).hex()},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_where_there_is_no_proc_a_sweep_does_the_same(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskbatch.worker.processes.process_tree.HAS_PROC", False)
    monkeypatch.setattr("daskbatch.worker.processes.reaper.HAS_PROC", False)
    process, pids = start.tree()
    kill_tree(process.pid, start.marker, 0.05)
    assert not any(map(is_running, pids.values()))


@in_own_process
def test_nothing_is_left_open() -> None:
    def once() -> None:
        process = start("sh", "-c", "setsid sleep 300 & sleep 300", stdout=None)
        kill_tree(process.pid, start.marker, 0.01)
        process.wait()

    with new_starter() as start:
        once()
        before = psutil.Process().num_fds()
        for _ in range(10):
            once()
        assert psutil.Process().num_fds() == before


def test_a_sweep_may_leave_out_what_ran_before(start: Starter) -> None:
    start("sleep", "1000")
    earlier = processes_before()
    second = start("sleep", "1000")
    assert sweep(MARKER, start.marker, earlier) == [second.pid]
    start.processes[0].kill()
    for process in start.processes:
        process.wait()
    assert sweep(MARKER, start.marker) == [], "both have been ended"


@pytest.mark.skipif(
    not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK), reason="numbers cannot be chosen here"
)
def test_a_process_with_the_number_of_one_that_ran_before_is_found(start: Starter) -> None:
    for _ in range(50):
        first = start("sleep", "1000")
        earlier = processes_before()
        first.kill()
        first.wait()
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(first.pid - 1))
        second = start("sleep", "1000")
        assert sweep(MARKER, start.marker, earlier) == [second.pid]
        second.wait()
        if second.pid == first.pid:
            return
    pytest.skip("another process has always got the number")

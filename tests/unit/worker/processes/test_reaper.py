"""The reaper: the processes that a worker has started end with it, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.own_process import in_own_process
from support.processes import KINDS, TREE, is_running, read_pids
from support.waiting import wait_until

from daskbatch.worker.processes import reaper as module
from daskbatch.worker.processes.process_tree import MARKER, OWNER, sweep_all
from daskbatch.worker.processes.reaper import Reaper, get_reaper

#: A worker: prints the name that its processes have, runs what it is given, and waits.
WORKER = """
import os, signal, subprocess, sys, threading
from daskbatch.worker.execution.executable import execute
from daskbatch.worker.processes.reaper import get_reaper

def start(*command):
    # Its output goes where ours does, so that the test can read it.
    options = {"stdout": 1, "env": {**os.environ, "DASKBATCH_WORKER": get_reaper().owner}}
    return subprocess.Popen(command, start_new_session=True, **options)

get_reaper().ensure()
print(get_reaper().owner, flush=True)
"""
STAY = "\nwhile True: signal.pause()\n"


def reapers_of(owner: str) -> list[psutil.Process]:
    """Find the reapers of a worker by their command lines."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if owner in each.cmdline() and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has closed its files; its command line is gone before that."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


@contextmanager
def new_reaper() -> Iterator[Reaper]:
    made = Reaper()
    yield made
    made.close()
    for each in reapers_of(made.owner):
        each.kill()
    sweep_all(OWNER, made.owner)


@pytest.fixture
def mine() -> Iterator[Reaper]:
    with new_reaper() as made:
        yield made


class Worker:
    """A process that stands for a worker."""

    def __init__(self, program: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER + program],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            env={**os.environ, **env},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout
        self.owner = self.stdout.readline().decode().strip()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.stdout.close()  # other processes may have it open, too, and keep it from ending
        sweep_all(OWNER, self.owner)

    def is_swept(self) -> bool:
        return not reapers_of(self.owner)


# -- the end of the worker ----------------------------------------------------------------


def ended(worker: Worker, pids: dict[str, int]) -> None:
    """Check that a worker that has just died leaves no process behind."""
    for kind, pid in pids.items():
        wait_until(lambda pid=pid: not is_running(pid), f"{kind} still runs")
    wait_until(worker.is_swept, "the reaper still runs")


def test_all_that_a_killed_worker_has_started_is_ended() -> None:
    program = f"start(sys.executable, '-c', {TREE!r})" + STAY
    with Worker(program) as worker:
        pids = read_pids(worker.stdout)
        assert set(pids) == KINDS
        assert len(reapers_of(worker.owner)) == 1
        worker.process.kill()
        worker.process.wait()
        ended(worker, pids)


def test_executables_end_with_their_worker(tmp_path: Path) -> None:
    told_in = tmp_path / "told"
    os.mkfifo(told_in)
    script = f"exec >{told_in}; setsid sleep 300 & echo session $!; echo root $$; wait"
    program = f"execute(['sh', '-c', {script!r}], '/', {{}}, None, True, None)"
    with Worker(program) as worker:
        with told_in.open("rb") as pipe:
            pids = read_pids(pipe, 2)
        assert all(map(is_running, pids.values()))
        worker.process.kill()
        worker.process.wait()
        ended(worker, pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGABRT, signal.SIGINT])
def test_all_signals_are_the_same_to_it(number: signal.Signals) -> None:
    with Worker("start('sh', '-c', 'echo root $$; sleep 300')" + STAY) as worker:
        pids = read_pids(worker.stdout, 1)
        # A signal may be sent to all processes of the worker.
        for each in reapers_of(worker.owner):
            each.send_signal(number) if number != signal.SIGABRT else None
        worker.process.send_signal(number)
        worker.process.wait()
        ended(worker, pids)


def test_a_worker_that_just_ends_is_the_same_to_it() -> None:
    with Worker("start('sh', '-c', 'echo root $$; sleep 300')") as worker:
        pids = read_pids(worker.stdout, 1)
        ended(worker, pids)


def test_the_children_of_a_worker_do_not_keep_its_warden_from_seeing_its_end() -> None:
    # A fork and a subprocess that outlive the worker, and do not have its name.
    program = (
        "subprocess.Popen(['sleep', '300'], stdout=2, start_new_session=True, close_fds=False)\n"
        "if os.fork() == 0:\n"
        "    os.write(1, b'fork %d\\n' % os.getpid())\n"  # in one write
        "    signal.pause()\n"
        "start('sh', '-c', 'echo root $$; sleep 300')" + STAY
    )
    with Worker(program) as worker:
        pids = read_pids(worker.stdout, 2)
        fork = pids.pop("fork")
        others = psutil.Process(worker.process.pid).children()
        worker.process.kill()
        worker.process.wait()
        ended(worker, pids)
        assert is_running(fork)
        for each in others:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def test_a_worker_that_dies_while_it_starts_processes_leaves_none() -> None:
    program = (
        """
def go():
    while True:
        start("sh", "-c", "setsid sleep 300 & sleep 300")
for _ in range(2):
    threading.Thread(target=go, daemon=True).start()
print("root", os.getpid(), flush=True)
"""
        + STAY
    )
    with Worker(program) as worker:
        read_pids(worker.stdout, 1)
        wait_until(lambda: len(psutil.Process(worker.process.pid).children()) > 10, "few start")
        worker.process.kill()
        worker.process.wait()
        wait_until(worker.is_swept, "the reaper still runs")
        assert sweep_all(OWNER, worker.owner) == []


def test_the_warden_of_a_worker_within_a_task_outlives_the_task() -> None:
    # Ending the outer task by its marker must not end the reaper of the inner worker.
    marker = os.urandom(8).hex()
    program = "start('env', '-u', 'DASKBATCH_TASK', 'sh', '-c', 'echo root $$; sleep 300')" + STAY
    with Worker(program, **{MARKER: marker, OWNER: marker}) as worker:
        pids = read_pids(worker.stdout, 1)
        (guard,) = reapers_of(worker.owner)
        assert guard.parent() not in psutil.Process(worker.process.pid).children()
        assert not {MARKER, OWNER} & set(guard.environ())
        assert worker.process.pid in sweep_all(MARKER, marker)
        worker.process.wait()
        ended(worker, pids)


# -- the reaper ---------------------------------------------------------------------------


def test_it_holds_nothing_but_its_pipe(mine: Reaper, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        mine.ensure()
    (guard,) = reapers_of(mine.owner)
    assert guard.num_fds() == 4
    links = [os.readlink(each) for each in Path(f"/proc/{guard.pid}/fd").iterdir()]
    assert sorted(links)[:3] == ["/dev/null"] * 3
    assert sorted(links)[3].startswith("pipe:")
    assert guard.cwd() == "/"
    assert os.getsid(guard.pid) != os.getsid(0)
    assert guard not in psutil.Process().children(recursive=True)


def test_it_is_small_and_is_started_once(mine: Reaper, monkeypatch: pytest.MonkeyPatch) -> None:
    mine.ensure()
    (guard,) = reapers_of(mine.owner)
    assert guard.memory_info().rss < 20e6
    # It imports nothing of what is installed, which would take time and memory.
    assert {"-I", "-S"} <= set(guard.cmdline())
    monkeypatch.setattr(subprocess, "Popen", None)
    for _ in range(1000):
        mine.ensure()
    assert reapers_of(mine.owner) == [guard]


def test_it_is_started_once_whoever_asks(mine: Reaper) -> None:
    assert reapers_of(mine.owner) == []
    threads = [threading.Thread(target=mine.ensure) for _ in range(10)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(reapers_of(mine.owner)) == 1


@in_own_process
def test_it_is_started_again_if_it_was_killed() -> None:
    with new_reaper() as mine:
        mine.ensure()
        before = psutil.Process().num_fds()
        # For a moment the process that starts it exists, too.
        wait_until(lambda: len(reapers_of(mine.owner)) == 1, "there are several")
        (first,) = reapers_of(mine.owner)
        first.kill()
        wait_until(lambda: has_ended(first), "it still runs")
        mine.ensure()
        wait_until(lambda: len(reapers_of(mine.owner)) == 1, "there are several")
        (second,) = reapers_of(mine.owner)
        assert second != first
        assert psutil.Process().num_fds() == before


@in_own_process
def test_its_end_ends_nothing_else() -> None:
    with new_reaper() as mine:
        before = psutil.Process().num_fds()
        mine.ensure()
        sleeper = subprocess.Popen(["sleep", "300"], env={**os.environ, OWNER: mine.owner})
        mine.close()
        wait_until(lambda: not reapers_of(mine.owner), "it still runs")
        mine.close()
        assert sleeper.poll() is None
        assert psutil.Process().num_fds() == before
        mine.ensure()
        assert len(reapers_of(mine.owner)) == 1
        sleeper.kill()
        sleeper.wait()


def test_the_end_of_one_that_was_killed_is_no_trouble(mine: Reaper) -> None:
    mine.ensure()
    for each in reapers_of(mine.owner):
        each.kill()
    wait_until(lambda: not reapers_of(mine.owner), "it still runs")
    mine.close()


def test_there_is_one_for_each_process() -> None:
    assert get_reaper() is get_reaper()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        # In the forked process no code of pytest may run.
        try:
            fine = module._pipes == set() and get_reaper() is get_reaper()
            os.write(send, f"{fine} {get_reaper().owner}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(send)
    with open(receive) as pipe:
        fine, owner = pipe.read().split()
    assert fine == "True"
    assert owner != get_reaper().owner


def test_without_proc_it_asks_ps(mine: Reaper, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = f"  7 sh -c x A=b {OWNER}=other\n  8 sh {OWNER}={mine.owner} C=d\n"
    fake = subprocess.CompletedProcess([], 0, listing.encode())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: fake)
    assert list(module._listed(OWNER, mine.owner)) == [8]

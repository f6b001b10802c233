"""The embedded cluster works in every kind of program, and ends with its creator."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import dask
import psutil
import pytest
from support.processes import killed_if_failed
from support.waiting import wait_until

from daskbatch import Batch

SCRIPT = """\
import os
from dataclasses import dataclass
from daskbatch import Batch

@dataclass
class Point:
    x: int

class OwnError(Exception):
    pass

def make(x):
    return Point(x)

def use(point):
    assert isinstance(point, Point)
    return point.x + 1

def fail():
    raise OwnError("own")

batch = Batch(num_workers=1)
made = batch.function(make, 12)
used = batch.function(use, made)
bad = batch.function(fail)
batch.compile([made, used, bad]).run(timeout=60)
assert isinstance(made.get(), Point)
assert made.get() == Point(12)
try:
    bad.get()
except OwnError as error:
    print("caught", error)

print("result", used.get(), [n for n in map(batch.num_workers.__mul__, [1, 2])])
batch.close()
batch.join()
"""

SAID = ["caught own", "result 13 [1, 2]"]


def python(*arguments: str, stdin: str = "", cwd: Path | None = None) -> list[str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_from_a_script_without_a_guard(tmp_path: Path) -> None:
    script = tmp_path / "a script with späce.py"
    script.write_text(SCRIPT, encoding="utf-8")
    assert python(str(script)) == SAID


def test_from_standard_input() -> None:
    assert python("-", stdin=SCRIPT) == SAID


def test_from_the_command_line() -> None:
    assert python("-c", SCRIPT) == SAID


def test_from_the_prompt() -> None:
    # At a prompt, a blank line ends what is indented.
    lines = SCRIPT.replace('print("caught", error)\n', 'print("caught", error)\n\n')
    assert python("-i", "-q", stdin=lines)[-2:] == SAID


def test_as_a_module(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SCRIPT)
    assert python("-m", "program", cwd=tmp_path) == SAID


def test_from_another_thread_and_under_asyncio() -> None:
    program = """
import asyncio, threading
from daskbatch import Batch

async def main():
    with Batch(num_workers=1) as batch:
        task = batch.function(pow, 2, 4)
        task.start()
        print(await task)

thread = threading.Thread(target=lambda: asyncio.run(main()))
thread.start()
thread.join()
asyncio.run(main())
"""
    assert python("-c", program) == ["16", "16"]


UNFINISHED = """
import os, sys, time
from daskbatch import Batch

batch = Batch(num_workers=2)
print(*batch.client.run(os.getpid).values(), flush=True)
batch.compile([batch.function(time.sleep, 600) for _ in range(4)]).start()
{then}
"""


def gone(pids: list[int], seconds: float = 20) -> bool:
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, seconds)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


@pytest.mark.parametrize("then", ["", "sys.exit(0)", "raise SystemExit(0)"])
def test_a_program_that_forgets_to_wait_ends_at_once(then: str) -> None:
    # The program would run for ten minutes if it waited for its tasks.
    done = subprocess.run(
        [sys.executable, "-c", UNFINISHED.format(then=then)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0
    assert "4 tasks were given up, because the program ended" in done.stderr
    assert "Traceback" not in done.stderr
    assert gone([int(pid) for pid in done.stdout.split()])


def test_a_creator_that_is_killed_leaves_nothing() -> None:
    with killed_if_failed(
        subprocess.Popen(
            [sys.executable, "-c", UNFINISHED.format(then="time.sleep(600)")],
            stdout=subprocess.PIPE,
            text=True,
        )
    ) as creator:
        assert creator.stdout is not None
        pids = [int(pid) for pid in creator.stdout.readline().split()]
        hosts = [parent.pid for pid in pids for parent in psutil.Process(pid).parents()[:2]]
        creator.send_signal(signal.SIGKILL)
        creator.wait()
        assert gone([*pids, *[pid for pid in hosts if pid not in (1, os.getpid())]])


def test_an_interrupt_while_waiting_leaves_a_batch_that_goes_on() -> None:
    program = """
import os, signal, threading, time
from pathlib import Path
from daskbatch import Batch

batch = Batch(num_workers=1)
task = batch.function(time.sleep, 0.7)
task.start()
threading.Timer(0.2, os.killpg, (0, signal.SIGINT)).start()
try:
    task.wait()
except KeyboardInterrupt:
    print("interrupted", task.state in ("waiting", "running"))
task.wait(60)
after = batch.function(len, "abc")
after.run(60)
print(task.state, after.get())
batch.close()
batch.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
    )
    assert done.stdout.splitlines() == ["interrupted True", "done 3"], done.stderr


def test_a_cluster_that_dies_is_said_to_be_gone() -> None:
    program = """
import os, signal, time
import psutil
from daskbatch import Batch, ServiceLost

batch = Batch(num_workers=1)
task = batch.function(time.sleep, 600)
task.start()
for child in psutil.Process().children():
    child.kill()
try:
    task.get(timeout=60)
except ServiceLost as error:
    print("lost:", "was lost with its Batch" in str(error))
for use in batch.function(len, "abc").start, batch.ddict, batch.queue:
    try:
        use()
    except ServiceLost as error:
        print("gone:", "make another Batch to go on" in str(error))
batch.close()
batch.join(timeout=60)
print("joined")
"""
    assert python("-c", program) == ["lost: True", *["gone: True"] * 3, "joined"]


@pytest.mark.parametrize(("name", "count"), [("short", 1), ("long" * 50, 2)], ids=["short", "long"])
def test_nothing_is_left_in_the_temporary_directory(name: str, count: int) -> None:
    """The sockets, which are elsewhere because their names must be short, are removed, too."""
    program = """
import os, tempfile
make, made = tempfile.mkdtemp, []
tempfile.mkdtemp = lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1]
from daskbatch import Batch
with Batch(num_workers=1) as batch:
    batch.function(len, "").run()
    assert all(map(os.path.exists, made))
print([each for each in made if os.path.exists(each)], len(made))
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        temporary = Path(directory, name)
        temporary.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=100,
        )
        assert done.stdout.split() == ["[]", str(count)]
        # Dask's own place stays, for whoever comes next.
        assert [each.name for each in temporary.iterdir()] in ([], ["dask-scratch-space"])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
@pytest.mark.parametrize("end", ["regular", "killed"])
def test_nothing_is_left_in_shared_memory(end: str) -> None:
    """Neither of the cluster process nor of a task, whether the creator ends or is killed."""
    program = """
import multiprocessing, os, re, signal, sys
from pathlib import Path
import psutil
from daskbatch import Batch

def make_lock():
    lock = multiprocessing.get_context("spawn").Lock()
    sys.lock = lock  # it stays until the worker ends
    return lock._semlock.name

batch = Batch(num_workers=1)
task = batch.function(make_lock)
task.run()
names = {task.get()[1:]}
for process in psutil.Process().children(recursive=True):
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    names.update(re.findall("/dev/shm/sem[.]([^ \\n]+)", maps))
print(*names, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
batch.close()
batch.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, end],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=100,
    )
    paths = [Path("/dev/shm", f"sem.{name}") for name in done.stdout.split()]
    assert len(paths) > 1
    wait_until(lambda: not any(path.exists() for path in paths), "semaphores are left")


def test_children_do_not_see_what_only_workers_should(batch: object) -> None:
    program = """
from daskbatch import Batch
with Batch(num_workers=1) as batch:
    task = batch.process("env")
    task.run()
    names = {line.partition("=")[0] for line in task.stdout.get().splitlines()}
    print(sorted(names & {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_"}))
    print(sorted(name for name in names if name.startswith("DASKBATCH")))
"""
    # Dask's own nannies, if this process has started any, have left theirs here.
    theirs = ("MALLOC_TRIM_THRESHOLD_", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in theirs}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.splitlines() == [
        "['OMP_NUM_THREADS']",
        "['DASKBATCH_TASK', 'DASKBATCH_WORKER']",
    ], done.stderr


def test_a_worker_outlives_an_interrupt_of_a_task() -> None:
    program = """
import signal
from daskbatch import Batch
with Batch(num_workers=1) as batch:
    task = batch.function(signal.raise_signal, signal.SIGINT)
    task.run(timeout=60)
    after = batch.function(len, "abc")
    after.run(timeout=60)
    print(task.state, after.get(), batch.num_workers)
"""
    assert python("-c", program) == ["done 3 1"]


def test_a_forked_child_of_the_creator_leaves_the_cluster_alone() -> None:
    program = """
import os, sys
from daskbatch import Batch
batch = Batch(num_workers=1)
reader, writer = os.pipe()
if os.fork() == 0:
    sys.exit(0)
print(os.wait()[1])
child = os.fork()
if child == 0:
    os.read(reader, 1)
    os._exit(0)
task = batch.function(len, "abc")
task.run(timeout=60)
batch.close()
batch.join()
print(task.get())
os.write(writer, b"x")
print(os.wait()[1])
"""
    assert python("-W", "ignore", "-c", program) == ["0", "3", "0"]


def test_a_forked_child_is_told_that_tasks_of_its_parent_are_not_its_own() -> None:
    """No process would ever report their outcomes to the child."""
    program = """
import os, time
from daskbatch import Batch, LifecycleError
batch = Batch(num_workers=2)
small = batch.function(len, "abc")
small.run(timeout=60)
large = batch.function(bytes, 5_000_000)
large.run(timeout=60)
running = batch.function(time.sleep, 600)
running.start()
with open("one.yml", "w") as file:
    file.write("{import_args: [f], type: function, executables: [{target: f}]}")
waiting = batch.import_func("one.yml", dict)()
if os.fork() == 0:
    try:
        print(small.get(), flush=True)
        for use in (
            large.get, running.get, running.wait, running.cancel, waiting.get, waiting.start,
        ):
            try:
                use()
            except LifecycleError as error:
                print("forked" in str(error), flush=True)
        own = batch.function(len, "abcd")
        own.run(timeout=60)
        print(own.get(), flush=True)
        batch.close()
    finally:
        os._exit(0)
print(os.wait()[1])
batch.terminate()
"""
    with tempfile.TemporaryDirectory() as directory:
        said = python("-W", "ignore", "-c", f"import os; os.chdir({directory!r})" + program)
    assert said == ["3", *["True"] * 6, "4", "0"]


def test_a_worker_that_leaves_is_replaced() -> None:
    program = """
from daskbatch import Batch
batch = Batch(num_workers=1)

async def leave(dask_worker):
    dask_worker.loop.add_callback(dask_worker.close)

batch.client.run(leave)
task = batch.function(len, "abc")
task.run(timeout=80)
print(task.get())
batch.close()
batch.join()
"""
    assert python("-c", program) == ["3"]


def test_a_worker_that_dies_again_and_again_is_started_each_time() -> None:
    # Dask would close a nanny whose worker is not there so long after it was lost.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "50ms"}),
        Batch(num_workers=1) as batch,
    ):
        for _ in range(3):
            pid = batch.function(os.getpid)
            pid.run(timeout=60)
            os.kill(pid.get(), signal.SIGKILL)


def square(number: int) -> int:
    return number * number


def pool_of(method: str) -> list[int]:
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(square, range(5))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_task_starts_processes_in_each_way(batch: Batch, method: str) -> None:
    task = batch.function(pool_of, method)
    task.run(timeout=60)
    assert task.get() == [0, 1, 4, 9, 16]


def _settings() -> tuple[str, str]:
    get = dask.config.get
    return get("distributed.admin.tick.interval"), get("distributed.worker.profile.interval")


@pytest.mark.parametrize(
    ("tick", "profile", "there"),
    [("20ms", "10ms", ("100ms", "50ms")), ("30ms", "5ms", ("30ms", "5ms"))],
)
def test_what_dask_does_all_the_time_is_done_less_often_unless_a_user_has_set_it(
    tick: str, profile: str, there: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Others are set for all programs that tests start.
    for name in ("ADMIN__TICK__INTERVAL", "WORKER__PROFILE__ENABLED"):
        monkeypatch.delenv(f"DASK_DISTRIBUTED__{name}")
    settings = {
        "distributed.admin.tick.interval": tick,
        "distributed.worker.profile.interval": profile,
    }
    with dask.config.set(settings), Batch(num_workers=1) as batch:
        assert batch.client.run_on_scheduler(_settings) == there
        assert set(batch.client.run(_settings).values()) == {there}

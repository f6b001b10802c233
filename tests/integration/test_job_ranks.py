"""Parallel jobs of Python callables, made by `Batch.job`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dask
import pytest
from support.processes import is_running, killed_if_failed
from support.ranks import needs_ranks
from support.waiting import wait_for_file, wait_until

from daskbatch import (
    Batch,
    DDict,
    DependencyFailed,
    Queue,
    SerializationError,
    TaskCancelled,
    TaskCrashed,
    TaskTimeout,
    WorkerLost,
)
from daskbatch.batch.task import Task

pytestmark = needs_ranks


def run(task: Task) -> Any:
    task.run(timeout=120)
    return task.get()


def pids_in(directory: Path, count: int = 2) -> list[int]:
    """Wait until as many processes have noted their pids."""
    wait_until(lambda: len(list(directory.glob("pid-*"))) >= count)
    return [int(each.name.removeprefix("pid-")) for each in directory.glob("pid-*")]


def note(directory: Path) -> None:
    (directory / f"pid-{os.getpid()}").touch()


def wait_noted(directory: Path, path: Path) -> int:
    """Note the pid, then wait for a file."""
    note(directory)
    wait_for_file(path)
    return os.getpid()


# -- values and arguments -------------------------------------------------------------------


def total(x: int, comm: Any) -> int:
    return int(comm.allreduce(x + comm.rank))


def test_the_result_is_the_list_of_the_values(batch: Batch) -> None:
    task = batch.job(total, 3, num_procs=2)
    assert run(task) == [7, 7]
    assert (task.name, task.state) == ("total", "done")


def test_results_are_passed_on(batch: Batch) -> None:
    three = batch.function(len, "abc")
    job = batch.job(total, three, num_procs=2)
    sums = batch.function(sum, job)
    again = batch.job(total, x=sums.result, num_procs=1)
    program = batch.compile([three, job, sums, again])
    program.run(timeout=120)
    assert program.get() == [3, [7, 7], 14, [14]]


def scaled(array: Any, comm: Any) -> Any:
    array *= comm.rank + 1
    return array


def test_large_arrays_reach_the_ranks_and_come_back(batch: Batch) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1 << 18, dtype=float)
    made = batch.function(scaled_alone, array)
    first, second = batch.job(scaled, array, num_procs=2), batch.job(scaled, made, num_procs=2)
    program = batch.compile([made, first, second])
    program.run(timeout=120)
    _, once, twice = program.get()
    for rank in (0, 1):
        assert (once[rank] == array * (rank + 1)).all()
        assert (twice[rank] == array * 2 * (rank + 1)).all()


def scaled_alone(array: Any) -> Any:
    return array * 2


SCRIPT = """
import dataclasses, enum, os
from daskbatch import Batch

class Kind(enum.Enum):
    EVEN = 0
    ODD = 1

@dataclasses.dataclass
class Found:
    kind: Kind
    total: int

BASE = 10

def find(number, comm):
    return Found(Kind(comm.rank % 2), BASE + comm.allreduce(number))

class Failed(Exception):
    pass

def fail(comm):
    raise Failed(comm.rank)

with Batch(num_workers=2) as batch:
    job = batch.job(find, 1, num_procs=2)
    job.run()
    assert job.get() == [Found(Kind.EVEN, 12), Found(Kind.ODD, 12)], job.get()
    assert job.get()[1].kind is Kind.ODD
    failing = batch.job(fail, num_procs=2)
    failing.run()
    try:
        failing.get()
    except Failed as error:
        print("failed", error.args[0] in (0, 1))
"""


def test_classes_and_functions_of_a_script() -> None:
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("failed True\n", 0), done.stderr


def test_a_callable_that_cannot_be_pickled(batch: Batch) -> None:
    lock = threading.Lock()
    job = batch.job(lambda: lock, num_procs=2)
    with pytest.raises(SerializationError, match="lock"):
        run(job)


# -- output and failures --------------------------------------------------------------------


def speak(comm: Any) -> None:
    print("out", comm.rank)
    print("err", comm.rank, file=sys.stderr)
    if comm.rank == 1:
        raise KeyError("of rank 1")
    comm.barrier()


def test_the_first_rank_that_fails_decides(batch: Batch) -> None:
    job = batch.job(speak, num_procs=2)
    with pytest.raises(KeyError, match="of rank 1") as caught:
        run(job)
    assert "rank 1 of 2" in str(caught.value.__cause__)
    assert job.stdout.get() == "out 0\nout 1"
    assert [job.stderr.rank(n) for n in (0, 1)] == ["err 0", "err 1"]
    after = batch.function(len, job.result)
    after.start()
    with pytest.raises(DependencyFailed):
        after.get(60)


def fail_at_first(path: Path) -> int:
    if os.environ["DASKBATCH_RANK"] == "0":
        with (path / "attempts").open("a") as file:
            file.write("x")
        if len((path / "attempts").read_text()) < 3:
            os._exit(9)
    return os.getpid()


def test_a_job_that_fails_is_tried_again_in_new_ranks(batch: Batch, tmp_path: Path) -> None:
    before = run(batch.job(os.getpid, num_procs=2))
    pids = run(batch.options(retries=2).job(fail_at_first, tmp_path, num_procs=2))
    assert not set(pids) & set(before)
    crashing = batch.job(fail_at_first, tmp_path / "missing", num_procs=2)
    with pytest.raises(FileNotFoundError):
        run(crashing)


def crash(comm: Any) -> None:
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()


def test_a_rank_that_is_killed(batch: Batch) -> None:
    with pytest.raises(TaskCrashed, match="task 'crash': rank 1 of 2 .*SIGKILL") as caught:
        run(batch.job(crash, num_procs=2))
    assert caught.value.exitcode == -signal.SIGKILL


def test_a_time_limit(batch: Batch, tmp_path: Path) -> None:
    job = batch.job(wait_noted, tmp_path, tmp_path / "never", num_procs=2, timeout=1)
    with pytest.raises(TaskTimeout, match="'wait_noted'"):
        run(job)
    wait_until(lambda: not any(map(is_running, pids_in(tmp_path, 0))))


def test_cancel_ends_the_ranks(batch: Batch, tmp_path: Path) -> None:
    job = batch.job(wait_noted, tmp_path, tmp_path / "never", num_procs=2)
    job.start()
    pids = pids_in(tmp_path)
    assert job.cancel()
    with pytest.raises(TaskCancelled):
        job.get(60)
    wait_until(lambda: not any(map(is_running, pids)))
    assert run(batch.job(total, 0, num_procs=2)) == [1, 1], "the slots were given back"


# -- warm ranks -----------------------------------------------------------------------------


def test_jobs_share_ranks_unless_they_are_fresh(batch: Batch) -> None:
    first = run(batch.job(os.getpid, num_procs=2))
    assert run(batch.job(os.getpid, num_procs=2)) == first
    fresh = run(batch.options(isolation="fresh").job(os.getpid, num_procs=2))
    assert not set(fresh) & set(first)


def test_idle_ranks_end_after_a_while(batch: Batch) -> None:
    with dask.config.set({"daskbatch.rank-idle-timeout": "10ms"}):
        pids = run(batch.job(os.getpid, num_procs=2))
    wait_until(lambda: not any(map(is_running, pids)))


def test_nothing_is_left_after_the_batch(tmp_path: Path) -> None:
    with Batch(num_workers=2) as batch:
        idle = run(batch.job(total_and_pid, num_procs=2))
        running = batch.job(wait_noted, tmp_path, tmp_path / "never", num_procs=2)
        running.start()
        pids = pids_in(tmp_path)
        batch.terminate()
    wait_until(lambda: not any(map(is_running, [*idle, *pids])))


def total_and_pid(comm: Any) -> int:
    comm.allreduce(1)
    return os.getpid()


INTERRUPTED = """
import os, sys
from pathlib import Path
sys.path[:] = {path!r}
from daskbatch import Batch
from test_job_ranks import wait_noted

with Batch(num_workers=2) as batch:
    batch.job(wait_noted, Path({directory!r}), Path({directory!r}, "never"), num_procs=2).run()
"""


def test_ctrl_c_ends_the_ranks(tmp_path: Path) -> None:
    path = [str(Path(__file__).parent), *sys.path]
    program = INTERRUPTED.format(path=path, directory=str(tmp_path))
    with killed_if_failed(
        subprocess.Popen(
            [sys.executable, "-c", program], start_new_session=True, stderr=subprocess.PIPE
        )
    ) as script:
        pids = pids_in(tmp_path)
        os.killpg(script.pid, signal.SIGINT)
        _, errors = script.communicate(timeout=120)
    assert b"KeyboardInterrupt" in errors
    wait_until(lambda: not any(map(is_running, pids)))


# -- ranks that use the Batch ---------------------------------------------------------------


def ask(batch: Batch, number: int) -> int:
    """Have a task of the same Batch compute something."""
    task = batch.function(pow, 2, number + int(os.environ["DASKBATCH_RANK"]))
    task.start()
    return int(task.get())


def test_ranks_submit_tasks_and_wait_for_them(batch: Batch) -> None:
    # Both slots belong to the job.
    assert run(batch.job(ask, batch, 3, num_procs=2)) == [8, 16]


def ask_for_a_job(batch: Batch, comm: Any) -> Any:
    found = None
    if comm.rank == 0:
        job = batch.job(total, 5, num_procs=2)
        job.start()
        found = job.get()
    return comm.bcast(found)


def test_a_rank_submits_a_job_of_all_slots(batch: Batch) -> None:
    assert run(batch.job(ask_for_a_job, batch, num_procs=2)) == [[11, 11], [11, 11]]


def exchange(shared: DDict, queue: Queue, comm: Any) -> Any:
    """Have rank 0 wait for what a function puts, and rank 1 for what rank 0 writes."""
    if comm.rank == 0:
        shared["found"] = queue.get()
        return None
    return shared["found"]


def test_ranks_wait_in_dictionaries_and_queues(batch: Batch) -> None:
    shared, queue = batch.ddict(wait_for_keys=True), batch.queue()
    job = batch.job(exchange, shared, queue, num_procs=2)
    job.start()
    # The function needs a slot, and both are those of the job.
    put = batch.function(queue.put, "é")
    put.run(timeout=120)
    assert job.get(120) == [None, "é"]
    shared.close()
    queue.close()


def wait_in_one_rank(queue: Queue, path: Path) -> str:
    """Have rank 0 wait; rank 1 continues after a short wait, and then lets rank 0 continue."""
    if os.environ["DASKBATCH_RANK"] == "0":
        return str(queue.get())
    queue.join()
    queue.put("from rank 1")
    return "done"


def test_one_rank_continues_while_another_one_waits(batch: Batch, tmp_path: Path) -> None:
    queue = batch.queue()
    assert run(batch.job(wait_in_one_rank, queue, tmp_path, num_procs=2)) == ["from rank 1", "done"]
    queue.close()


# -- workers that die -----------------------------------------------------------------------


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _worker_of(pid: int) -> int:
    """Return the process that has started the launcher of this rank."""
    while "mpiexec" not in _command(pid).split(" ")[0]:
        pid = _parent(pid)
    return _parent(pid)


def kill_worker(path: Path) -> str:
    """Kill the worker that runs the job, the first time, and wait to be ended with it."""
    note(path)
    if not (path / "killed").exists():
        if os.environ["DASKBATCH_RANK"] == "0":
            wait_until(lambda: len(list(path.glob("pid-*"))) == 2)
            (path / "killed").touch()
            os.kill(_worker_of(os.getpid()), signal.SIGKILL)
        time.sleep(1000)
    return "again"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_job_runs_again_if_its_worker_dies_and_it_cannot_be_seen(tmp_path: Path) -> None:
    with Batch(num_workers=2) as batch:
        job = batch.job(kill_worker, tmp_path, num_procs=2)
        assert run(job) == ["again", "again"]
        ended = pids_in(tmp_path, 4)
    wait_until(lambda: not any(map(is_running, ended)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_job_that_changes_a_file_is_lost_with_its_worker(tmp_path: Path) -> None:
    with Batch(num_workers=2) as batch:
        path = tmp_path / "changed"
        job = batch.job(
            kill_worker,
            tmp_path,
            num_procs=2,
            reads=[batch.read(path)],
            writes=[batch.write(path)],
        )
        with pytest.raises(WorkerLost):
            run(job)
        ended = pids_in(tmp_path)
        wait_until(lambda: not any(map(is_running, ended)))
        wait_until(lambda: batch.num_workers == 2, "the worker was not started again")
        assert run(batch.job(total, 0, num_procs=2)) == [1, 1], "the slots were given back"

"""Jobs of callables that fail: the first rank that fails decides, and nothing is left."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import is_running, killed_if_failed
from support.ranks import Job, needs_ranks, run_on_ranks
from support.waiting import wait_until

from daskbatch.errors import ProcessFailed, TaskCrashed, TaskTimeout
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.mpi.rank_pool import get_rank_pool
from daskbatch.worker.processes.process_tree import MARKER, OWNER
from daskbatch.worker.processes.reaper import carriers, get_reaper

pytestmark = needs_ranks

TOPIC = "daskbatch-0f"


@pytest.fixture(autouse=True)
def _nothing_is_left(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Check that after the end of the client no process, directory or memory is left."""
    shared = set(glob.glob("/dev/shm/mpich_*"))
    # An earlier test of this process may have left some, such as a child that is kept.
    earlier = set(carriers(OWNER, get_reaper().owner))
    directory = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield
    get_rank_pool().end_client(TOPIC)
    get_rank_pool().close()
    wait_until(lambda: not set(carriers(OWNER, get_reaper().owner)) - earlier, "processes are left")
    pids = [int(each.name) for each in tmp_path.glob("pids/*")]
    assert not [pid for pid in pids if is_running(pid)]
    wait_until(lambda: not _unused() - shared, "shared memory is left")
    assert not list(directory.iterdir())


def _unused() -> set[str]:
    """Return the files of shared memory of MPICH that no process has mapped."""
    found = set(glob.glob("/dev/shm/mpich_*"))
    for path in glob.glob("/proc/[0-9]*/maps") if found else ():
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            maps = file.read()
            found = {each for each in found if each not in maps}
    return found


def run(function: Any, *args: Any, **options: Any) -> Any:
    return run_on_ranks(function, *args, topic=TOPIC, **options)


def note(path: Path) -> None:
    (path / "pids").mkdir(exist_ok=True)
    (path / "pids" / str(os.getpid())).touch()


def hang(path: Path, comm: Any) -> None:
    """Have all ranks but the last wait for ever in a collective operation."""
    note(path)
    if comm.rank < comm.size - 1:
        comm.barrier()


class Custom(Exception):
    def __init__(self, rank: int, *, extra: str) -> None:
        super().__init__(f"custom of {rank}")
        self.rank, self.extra = rank, extra


def raise_on_one(path: Path, comm: Any) -> None:
    note(path)
    print("before", comm.rank)
    sys.stderr.write(f"error {comm.rank}\n")
    if comm.rank == 1:
        raise Custom(comm.rank, extra="é")
    comm.barrier()


def test_the_exception_of_a_rank_is_that_of_the_job(tmp_path: Path) -> None:
    outcome = run(raise_on_one, tmp_path)
    with pytest.raises(Custom) as caught:
        outcome.result  # noqa: B018
    assert (caught.value.rank, caught.value.extra) == (1, "é")
    assert any("rank 1 of 2" in each for each in caught.value.__notes__)
    cause = str(caught.value.__cause__)
    assert "rank 1 of 2" in cause
    assert 'raise Custom(comm.rank, extra="é")' in cause
    assert outcome.stdout.rank(0) == "before 0"
    assert outcome.stderr.rank(1) == "error 1"


def raise_everywhere(comm: Any) -> None:
    raise ValueError(comm.rank)


def test_if_all_ranks_raise_one_of_them_decides() -> None:
    with pytest.raises(ValueError, match=r"^[01]"):
        run(raise_everywhere).result  # noqa: B018


def end_in(how: str, path: Path, comm: Any) -> None:
    note(path)
    sys.stderr.write(f"last words {comm.rank}\n")
    comm.barrier()  # all have written
    if comm.rank == comm.size - 1:
        if how == "exit":
            sys.exit(4)
        elif how == "_exit":
            os._exit(3)
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif how == "abort":
            comm.Abort(7)
        elif how == "world":
            from mpi4py import MPI

            MPI.COMM_WORLD.Abort(8)
        elif how == "interrupt":
            raise KeyboardInterrupt
    comm.barrier()


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("exit", 4, r"called sys.exit\(4\) \(on rank 1 of 2"),
        ("_exit", 3, "rank 1 of 2 on .* ended its interpreter with exit code 3"),
        ("kill", -signal.SIGKILL, "rank 1 of 2 on .* was ended by SIGKILL"),
        ("segv", -signal.SIGSEGV, "rank 1 of 2 on .* was ended by SIGSEGV"),
        ("abort", 7, r"rank 1 of 2 on .* called MPI.Comm.Abort\(7\)"),
        ("world", 8, r"rank 1 of 2 on .* called MPI.Comm.Abort\(8\)"),
        ("interrupt", -signal.SIGINT, "was interrupted .on rank 1 of 2"),
    ],
)
def test_a_rank_that_ends_fails_the_job(how: str, code: int, words: str, tmp_path: Path) -> None:
    outcome = run(end_in, how, tmp_path)
    with pytest.raises(TaskCrashed, match=f"(?s)task 't'.*{words}") as caught:
        outcome.result  # noqa: B018
    assert caught.value.exitcode == code
    assert outcome.stderr.rank(0) == "last words 0"
    assert outcome.stderr.rank(1).startswith("last words 1")


def test_after_a_failure_the_next_job_has_new_ranks(tmp_path: Path) -> None:
    before = set(run(os.getpid).result)
    with pytest.raises(Custom):
        run(raise_on_one, tmp_path).result  # noqa: B018
    assert not set(run(os.getpid).result) & before


def test_a_time_limit_ends_all_ranks(tmp_path: Path) -> None:
    outcome = run(hang, tmp_path, settings={"timeout": 0.5})
    with pytest.raises(TaskTimeout, match="task 't': it ran for longer than its timeout of 0.5 s"):
        outcome.result  # noqa: B018


def ignore_signals(path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    note(path)
    while True:
        time.sleep(1)


def test_ranks_that_ignore_signals_are_ended(tmp_path: Path) -> None:
    outcome = run(ignore_signals, tmp_path, settings={"timeout": 0.5})
    assert isinstance(outcome.value, TaskTimeout)


@pytest.mark.parametrize("num_procs", [1, 2])
def test_a_running_job_is_stopped(num_procs: int, tmp_path: Path) -> None:
    job = Job(ignore_signals, tmp_path, num_procs=num_procs, topic=TOPIC).start()
    wait_until(lambda: len(list(tmp_path.glob("pids/*"))) == num_procs)
    assert job.run.stop_running(0)
    assert job.outcome().status == Status.CANCELLED


def test_a_job_is_stopped_while_its_ranks_start(tmp_path: Path) -> None:
    slow = tmp_path / "mpiexec"
    slow.write_text("#!/bin/sh\nmkdir $0.started\nexec sleep 1000\n")
    slow.chmod(0o755)
    job = Job(hang, tmp_path, topic=TOPIC, settings={"launcher": f"'{slow}' {{num_procs}}"}).start()
    wait_until((tmp_path / "mpiexec.started").exists)
    assert job.run.stop_running(0)
    assert job.outcome().status == Status.CANCELLED


@pytest.mark.parametrize("victim", ["rank", "supervisor", "launcher"])
def test_a_kill_from_outside_ends_the_job(victim: str, tmp_path: Path) -> None:
    job = Job(ignore_signals, tmp_path, topic=TOPIC).start()
    wait_until(lambda: len(list(tmp_path.glob("pids/*"))) == 2)
    pid = min(int(each.name) for each in tmp_path.glob("pids/*"))
    steps = {"rank": 0, "supervisor": 1}.get(victim)
    if steps is None:
        marked = set(carriers(OWNER, get_reaper().owner))
        pid = next(each for each in sorted(marked) if b"mpiexec" in _command(each))
    elif steps:
        pid = _parent(pid)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TaskCrashed, match="task 't': rank . of 2 on"):
        job.outcome().result  # noqa: B018


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    return b""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_ranks_that_died_while_idle_are_not_used(victim: str) -> None:
    pids = run(os.getpid).result
    pid = pids[0]
    if victim == "launcher":
        marked = set(carriers(OWNER, get_reaper().owner))
        pid = next(each for each in sorted(marked) if b"mpiexec" in _command(each))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    assert not set(run(os.getpid).result) & set(pids)


def test_a_launcher_that_fails_is_an_error_with_its_words(tmp_path: Path) -> None:
    failing = tmp_path / "a launcher é"
    failing.write_text("#!/bin/sh\necho no such queue >&2\nexit 3\n")
    failing.chmod(0o755)
    outcome = run(os.getpid, settings={"launcher": f"'{failing}' -n {{num_procs}}"})
    with pytest.raises(ProcessFailed, match="exit code 3.*no such queue") as caught:
        outcome.result  # noqa: B018
    assert caught.value.returncode == 3


#: Starts the ranks, kills the supervisor of the first one before it connects, and ends.
_KILLING = """\
#!{python}
import os, subprocess, sys
count, program = int(sys.argv[1]), sys.argv[2:]
program[-1] = program[-1].replace(
    "main()", "import daskbatch.worker.mpi.rank_main as m; connect = m.connect; "
    "m.connect = lambda *args: os._exit(9) if args[1] == 'supervisor' else connect(*args); "
    "import os; m.end_with_parent = lambda parent: None; m.main()"
)
started = [
    subprocess.Popen(program, env={{**os.environ, "PMI_RANK": str(n)}}) for n in range(count)
]
for each in started:
    each.wait()
sys.exit(1)
"""


def test_a_supervisor_that_is_killed_before_it_connects_is_an_error(tmp_path: Path) -> None:
    killing = tmp_path / "launcher"
    killing.write_text(_KILLING.format(python=sys.executable))
    killing.chmod(0o755)
    outcome = run(os.getpid, settings={"launcher": f"{killing} {{num_procs}}"})
    with pytest.raises(ProcessFailed, match="exit code 1"):
        outcome.result  # noqa: B018


def test_a_launcher_of_another_mpi_is_an_error(tmp_path: Path) -> None:
    alone = tmp_path / "launcher"
    alone.write_text('#!/bin/sh\nshift\nexport PMI_RANK=0\n"$@" &\n"$@" &\nwait\n')
    alone.chmod(0o755)
    outcome = run(os.getpid, settings={"launcher": f"{alone} {{num_procs}}"})
    with pytest.raises(ProcessFailed, match="takes itself for rank 0 of 2"):
        outcome.result  # noqa: B018


def size_of_world() -> int:
    from mpi4py import MPI

    return int(MPI.COMM_WORLD.Get_size())


def test_ranks_that_mpi_takes_for_jobs_of_one_rank_are_an_error(tmp_path: Path) -> None:
    """So it is if the launcher is that of Open MPI, and mpi4py uses MPICH."""
    apart = tmp_path / "launcher"
    apart.write_text(
        '#!/bin/sh\nshift\nOMPI_COMM_WORLD_RANK=0 "$@" &\nOMPI_COMM_WORLD_RANK=1 "$@" &\nwait\n'
    )
    apart.chmod(0o755)
    settings = {"launcher": f"{apart} {{num_procs}}"}
    with pytest.raises(ProcessFailed, match="has started 2 ranks, but mpi4py .* for a job of 1"):
        run(size_of_world, settings=settings).result  # noqa: B018
    assert run(len, "abc", settings=settings).result == [3, 3], "they do not use MPI"


def test_a_launcher_that_is_not_there_is_an_error() -> None:
    outcome = run(os.getpid, settings={"launcher": "/no/mpiexec -n {num_procs}"})
    with pytest.raises(ProcessFailed, match="/no/mpiexec"):
        outcome.result  # noqa: B018


WORKER = """
import os, sys, time
sys.path[:] = {path!r}
from pathlib import Path
from support.ranks import Job
from test_rank_failures import ignore_signals
Job(ignore_signals, Path({directory!r})).start()
time.sleep(1000)
"""


def test_ranks_end_with_their_worker(tmp_path: Path) -> None:
    path = [str(Path(__file__).parent), *sys.path]
    program = WORKER.format(path=path, directory=str(tmp_path))
    # Its ranks are not marked as those of this process.
    environment = {n: v for n, v in os.environ.items() if n not in (MARKER, OWNER)}
    with killed_if_failed(
        subprocess.Popen([sys.executable, "-c", program], env=environment)
    ) as worker:
        wait_until(lambda: len(list(tmp_path.glob("pids/*"))) == 2 or worker.poll() is not None)
        pids = [int(each.name) for each in tmp_path.glob("pids/*")]
        assert len(pids) == 2
        worker.kill()
    wait_until(lambda: not any(map(is_running, pids)), "the ranks outlive their worker")

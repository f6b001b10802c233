"""Jobs of callables on real ranks: values, output, warm ranks, and what a job must not see."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.ranks import TOPIC, needs_ranks, run_on_ranks
from support.waiting import wait_for_file

from daskbatch.errors import LoadingError, SerializationError
from daskbatch.serialization import pickling
from daskbatch.worker.mpi import rank_set
from daskbatch.worker.mpi.rank_pool import get_rank_pool

pytestmark = needs_ranks


@pytest.fixture(scope="module", autouse=True)
def _end_ranks() -> Iterator[None]:
    yield
    get_rank_pool().end_client(TOPIC)
    get_rank_pool().close()
    get_rank_pool()._ended_topics.discard(TOPIC)


def place() -> tuple[int, int, int]:
    """Return the rank, the number of ranks, and the process."""
    return int(os.environ["DASKBATCH_RANK"]), int(os.environ["DASKBATCH_SIZE"]), os.getpid()


def processes() -> list[int]:
    return [pid for _, _, pid in run_on_ranks(place).result]


# -- values -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_procs", [1, 2, 3])
def test_the_values_are_in_the_order_of_the_ranks(num_procs: int) -> None:
    found = run_on_ranks(place, num_procs=num_procs).result
    assert [(rank, size) for rank, size, _ in found] == [(n, num_procs) for n in range(num_procs)]
    assert len({pid for _, _, pid in found}) == num_procs


def total(x: int, comm: Any, *, factor: int = 1) -> int:
    return int(comm.allreduce(x * factor + comm.rank))


def world_total() -> int:
    from mpi4py import MPI

    return int(MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank + 1))


def test_a_parameter_named_comm_receives_a_communicator_of_all_ranks() -> None:
    assert run_on_ranks(total, 5, factor=2).result == [21, 21]


def test_a_callable_may_use_the_communicator_of_mpi4py() -> None:
    assert run_on_ranks(world_total).result == [3, 3]


class Adder:
    def __init__(self, base: int) -> None:
        self.base = base

    def __call__(self, x: int, comm: Any = None) -> int:
        return self.base + int(comm.allreduce(x))

    def method(self, x: int, comm: Any) -> int:
        return self(x, comm)


def annotated() -> Any:
    """Return a function whose annotations are not defined: from 3.14 on they need no quotes."""
    mpi = "MPI.Comm" if sys.version_info >= (3, 14) else "'MPI.Comm'"
    found = {"total": total}
    text = f"def annotated(x: int, comm: {mpi}) -> int: return total(x, comm, factor=0)"
    exec(compile(text, __file__, "exec", dont_inherit=True), found)
    return found["annotated"]


@pytest.mark.parametrize(
    "function",
    [
        *(partial(total, factor=0), Adder(-1), Adder(-1).method),
        *(lambda x, comm: total(x, comm) - 7, annotated()),
    ],
    ids=["partial", "object", "method", "lambda", "annotated"],
)
def test_any_callable_runs_on_ranks(function: Any) -> None:
    from support.ranks import Job

    from daskbatch.describe.spec import rank_call
    from daskbatch.worker.mpi.rank_function import RankSettings

    call = rank_call(function, (4,), {}, RankSettings(2))
    args, kwargs = pickling.loads(call.data)
    assert Job(call.function.function, *args, **kwargs).outcome().result in ([1, 1], [7, 7], [2, 2])


async def later(comm: Any) -> int:
    import asyncio

    await asyncio.sleep(0)
    return int(comm.rank)


def test_a_coroutine_function_runs_on_ranks() -> None:
    assert run_on_ranks(later).result == [0, 1]


def given(comm: Any) -> Any:
    return comm


def test_a_communicator_that_the_user_gives_stays() -> None:
    assert run_on_ranks(given, comm="mine").result == ["mine", "mine"]
    assert run_on_ranks(partial(given, comm="bound")).result == ["bound", "bound"]


def first(comm: Any, x: int) -> None:
    """Has the communicator where a positional argument is."""


def test_arguments_that_reach_the_communicator_are_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"first\(\) receives its parameter comm as a keyword"):
        run_on_ranks(first, 3).result  # noqa: B018


def changed(array: Any, comm: Any) -> tuple[float, float, bool]:
    array[0] = comm.rank + 1
    comm.barrier()
    return float(array[0]), float(array[-1]), array.flags.writeable


def test_each_rank_may_change_its_own_copy_of_a_large_argument() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1 << 17, dtype=float)
    last = float(array[-1])
    assert run_on_ranks(changed, array).result == [(1.0, last, True), (2.0, last, True)]
    assert array[0] == 0


def blob(size: int) -> tuple[bytes, int]:
    return os.urandom(size), int(os.environ["DASKBATCH_RANK"])


def test_large_values_arrive_whole() -> None:
    found = run_on_ranks(blob, 3 << 20).result
    assert [(len(data), rank) for data, rank in found] == [(3 << 20, 0), (3 << 20, 1)]


def shared_pages(array: Any) -> str:
    """Return the file from which the array's memory is mapped."""
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split()[0].partition("-")
        if int(begin, 16) <= address < int(end, 16):
            return line.split()[4]
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_argument_is_one_file_for_all_ranks_of_a_host() -> None:
    numpy = pytest.importorskip("numpy")
    inodes = run_on_ranks(shared_pages, numpy.zeros(1 << 17)).result
    assert inodes[0] == inodes[1] != "0"


def test_an_initializer_runs_once_in_each_rank(tmp_path: Path) -> None:
    setup = pickling.dumps((_initialize, (tmp_path,)))
    pids = {
        pid
        for _ in range(2)
        for _, _, pid in run_on_ranks(place, setup=setup, topic="daskbatch-0c").result
    }
    assert {int(each.name) for each in tmp_path.iterdir()} == pids
    assert all(each.read_text() == "x" for each in tmp_path.iterdir())
    get_rank_pool().end_client("daskbatch-0c")


def _initialize(directory: Path) -> None:
    with (directory / str(os.getpid())).open("a") as file:
        file.write("x")


def test_without_mpi4py_callables_run_but_have_no_communicator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mpi4py"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'mpi4py'\", name='mpi4py')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    topic = "daskbatch-0e"
    assert [rank for rank, _, _ in run_on_ranks(place, topic=topic).result] == [0, 1]
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'daskbatch\[mpi\]'"):
        run_on_ranks(total, 1, topic=topic).result  # noqa: B018
    get_rank_pool().end_client(topic)


# -- output -------------------------------------------------------------------------------


def speak(text: str) -> None:
    rank = os.environ["DASKBATCH_RANK"]
    print(f"{text} {rank}")
    sys.stderr.write(f"error {rank}\n")
    os.write(1, f"written {rank}\n".encode())
    subprocess.run(["sh", "-c", f"echo child {rank}"], check=True)


def test_the_output_is_by_rank() -> None:
    outcome = run_on_ranks(speak, "é ü")
    assert outcome.stdout.rank(1) == "é ü 1\nwritten 1\nchild 1"
    assert outcome.stdout == "é ü 0\nwritten 0\nchild 0\né ü 1\nwritten 1\nchild 1"
    assert [outcome.stderr.rank(n) for n in (0, 1)] == ["error 0", "error 1"]


def flood(size: int) -> None:
    rank = os.environ["DASKBATCH_RANK"]
    sys.stdout.write(rank * size)


def test_each_rank_has_its_share_of_the_limit() -> None:
    outcome = run_on_ranks(flood, 3 << 20)
    for rank in (0, 1):
        text = outcome.stdout.rank(rank)
        assert text.startswith(str(rank))
        assert "bytes dropped" in text
        assert len(text) < (1 << 19) + 200


# -- warm ranks ---------------------------------------------------------------------------


def test_jobs_one_after_another_run_in_the_same_ranks() -> None:
    assert processes() == processes() == processes()


def test_a_fresh_job_has_ranks_that_no_other_job_uses() -> None:
    warm = processes()
    fresh = run_on_ranks(place, settings={"fresh": True}).result
    assert not {pid for _, _, pid in fresh} & set(warm)
    assert processes() == warm


@pytest.mark.parametrize(
    "options",
    [
        {"num_procs": 1},
        {"topic": "daskbatch-0b"},
        {"settings": {"env": (("A", "1"),)}},
        {"settings": {"cores": 2}},
    ],
    ids=["ranks", "client", "environment", "cores"],
)
def test_a_job_with_another_key_has_other_ranks(options: dict[str, Any]) -> None:
    warm = processes()
    other = run_on_ranks(place, **options).result
    assert not {pid for _, _, pid in other} & set(warm)


def leave(directory: str) -> None:
    os.chdir(directory)
    os.environ["LEFT"] = "1"
    os.environ.pop("DASKBATCH_RANK")
    sys.stdout.close()
    os.close(2)


def look() -> tuple[str, bool, bool]:
    print("seen")
    return os.getcwd(), "LEFT" in os.environ, "DASKBATCH_RANK" in os.environ


def test_a_job_sees_neither_directory_nor_environment_of_an_earlier_one(tmp_path: Path) -> None:
    warm = processes()
    assert run_on_ranks(leave, str(tmp_path)).result == [None, None]
    outcome = run_on_ranks(look)
    assert outcome.result == [(os.getcwd(), False, True)] * 2
    assert outcome.stdout == "seen\nseen"
    assert processes() == warm


def test_a_job_runs_in_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "a directory é"
    directory.mkdir()
    outcome = run_on_ranks(look, settings={"cwd": str(directory)})
    assert [each[0] for each in outcome.result] == [str(directory)] * 2
    missing = run_on_ranks(look, settings={"cwd": str(tmp_path / "missing")})
    with pytest.raises(FileNotFoundError, match="task 't': its cwd .*does not exist|cwd"):
        missing.result  # noqa: B018


def send_unreceived(kind: str, comm: Any) -> None:
    from mpi4py import MPI

    target = {"world": MPI.COMM_WORLD, "job": comm, "self": MPI.COMM_SELF}[kind]
    if comm.rank == 0:
        target.isend("of an earlier job", target.size - 1, tag=3)


def begin_to_receive() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        MPI.COMM_WORLD.irecv(source=1, tag=3)


def count_differently(kind: str) -> None:
    """Have rank 0 alone call a collective operation, which does not wait for the other rank."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0 and kind == "begin":
        MPI.COMM_WORLD.Ibarrier()
    elif MPI.COMM_WORLD.rank == 0 and kind == "send":
        MPI.COMM_WORLD.bcast("of an earlier job")
    elif MPI.COMM_WORLD.rank == 0:  # as a library in C does
        MPI.Comm.Ibarrier(MPI.COMM_WORLD)


def begin_together() -> None:
    from mpi4py import MPI

    MPI.COMM_WORLD.Ibcast(bytearray(8))


def start_process() -> None:
    subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end_mpi() -> None:
    from mpi4py import MPI

    MPI.Finalize()


def use_mpi_on_one_rank() -> None:
    import mpi4py

    mpi4py.rc.initialize = False
    if os.environ["DASKBATCH_RANK"] == "0":
        from mpi4py import MPI  # noqa: F401


def exchange() -> Any:
    """Return what rank 1 receives from rank 0."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.rank == 0:
        comm.send("of this job", 1, tag=3)
        return None
    return comm.recv(source=0, tag=3)


@pytest.mark.parametrize(
    ("job", "args"),
    [
        (send_unreceived, ["world"]),
        (send_unreceived, ["job"]),
        (send_unreceived, ["self"]),
        (begin_to_receive, []),
        (begin_together, []),
        (start_process, []),
        (end_mpi, []),
    ],
    ids=["world", "job", "self", "receive", "begin", "process", "finalize"],
)
def test_what_a_job_leaves_unfinished_no_later_job_sees(job: Any, args: list[Any]) -> None:
    run_on_ranks(world_total)
    warm = processes()
    assert run_on_ranks(job, *args).result == [None, None]
    assert run_on_ranks(exchange).result == [None, "of this job"]
    assert not set(processes()) & set(warm)


@pytest.mark.parametrize("kind", ["begin", "send", pytest.param("library", marks=pytest.mark.slow)])
def test_ranks_that_disagree_on_collective_operations_are_not_used_again(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "library":
        # Nothing waits for the end of a check that cannot end.
        monkeypatch.setattr(rank_set, "_CHECK_TIMEOUT_SECONDS", 1000.0)
    assert run_on_ranks(count_differently, kind).result == [None, None]
    assert run_on_ranks(world_total).result == [3, 3]


def test_ranks_of_which_some_use_mpi_are_not_used_again() -> None:
    found = run_on_ranks(use_mpi_on_one_rank, topic="daskbatch-0d")
    assert found.result == [None, None]
    assert run_on_ranks(world_total, topic="daskbatch-0d").result == [3, 3]
    get_rank_pool().end_client("daskbatch-0d")


def keep_errors() -> None:
    from mpi4py import MPI

    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_ARE_FATAL)


def handler_is_reset() -> bool:
    from mpi4py import MPI

    return bool(MPI.COMM_WORLD.Get_errhandler() == MPI.ERRORS_RETURN)


def test_the_error_handler_is_reset() -> None:
    run_on_ranks(world_total)
    warm = processes()
    assert run_on_ranks(keep_errors).result == [None, None]
    assert run_on_ranks(handler_is_reset).result == [True, True]
    assert processes() == warm


def meet_others(path: Path, count: int, comm: Any) -> int:
    (path / f"{comm.rank}-{os.getpid()}").touch()
    while len(list(path.iterdir())) < count:
        pass
    return int(comm.allreduce(1))


def test_two_jobs_at_a_time_have_ranks_of_their_own(tmp_path: Path) -> None:
    from support.ranks import Job

    jobs = [Job(meet_others, tmp_path, 4).start() for _ in range(2)]
    assert [job.outcome().result for job in jobs] == [[2, 2], [2, 2]]


def thread_waits(path: Path) -> int:
    """Leave a thread behind that waits for ever."""
    threading.Thread(target=wait_for_file, args=(path,)).start()
    return 1


def test_a_thread_that_a_job_leaves_hinders_no_end(tmp_path: Path) -> None:
    options: dict[str, Any] = {"settings": {"fresh": True}}
    assert run_on_ranks(thread_waits, tmp_path / "never", **options).result == [1, 1]


# -- what cannot be sent ------------------------------------------------------------------


def not_sendable() -> Any:
    return threading.Lock()


def test_a_value_that_cannot_be_pickled_fails_the_job() -> None:
    with pytest.raises(SerializationError, match="its result.*cannot be sent.*rank [01] of 2"):
        run_on_ranks(not_sendable).result  # noqa: B018


class OnlyHere:
    """Cannot be unpickled on a rank."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("not on a rank")


def test_an_argument_that_cannot_be_unpickled_fails_the_job() -> None:
    with pytest.raises(LoadingError, match="arguments could not be loaded.*not on a rank"):
        run_on_ranks(len, OnlyHere()).result  # noqa: B018

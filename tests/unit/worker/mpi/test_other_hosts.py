"""Ranks that reach their worker by TCP alone, as ranks on another host do."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ranks import Outcome, needs_ranks, run_on_ranks

from daskbatch.errors import TaskCrashed
from daskbatch.worker.execution.allocation import Allocation
from daskbatch.worker.execution.task_context import TaskContext
from daskbatch.worker.mpi.launcher import find_launcher
from daskbatch.worker.mpi.rank_pool import get_rank_pool

pytestmark = needs_ranks

TOPIC = "daskbatch-2e"

#: Starts ranks which believe that the worker has no Unix socket; the first one may have it.
_LAUNCHER = """\
#!{python}
import json, os, sys
program = sys.argv[2:]
part = [
    sys.executable, "-c",
    "import json, os, sys\\n"
    "address = json.loads(os.environ['DASKBATCH_RANK_LINK'])\\n"
    "if int(os.environ['PMI_RANK']) >= {local}: address[0] = ''\\n"
    "os.environ['DASKBATCH_RANK_LINK'] = json.dumps(address)\\n"
    "os.execv(sys.argv[1], sys.argv[1:])",
]
os.execv({mpiexec!r}, [{mpiexec!r}, "-n", sys.argv[1], *part, *program])
"""


class NoSlot:
    def release(self) -> None:
        pass

    def request(self) -> None:
        pass

    def is_held(self) -> bool:
        return True


@pytest.fixture(scope="module", params=[0, 1], ids=["all-by-tcp", "one-local"])
def launcher(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    found = find_launcher()
    if found.kind.value != "MPICH":
        pytest.skip(f"this test knows MPICH's variables, and the launcher is {found}")
    path = tmp_path_factory.mktemp("launcher") / "launch"
    path.write_text(
        _LAUNCHER.format(python=sys.executable, mpiexec=found.words[0], local=request.param)
    )
    path.chmod(0o755)
    yield f"{path} {{num_procs}}"
    get_rank_pool().end_client(TOPIC)
    get_rank_pool().close()
    get_rank_pool()._ended_topics.discard(TOPIC)


def run(launcher: str, function: Any, *args: Any, num_procs: int = 3) -> Outcome:
    context = TaskContext(NoSlot(), TOPIC, "key", "tcp://127.0.0.1:1")
    context.allocation = Allocation((("127.0.0.1", 1), ("127.0.0.2", num_procs - 1)))
    return run_on_ranks(
        function,
        *args,
        num_procs=num_procs,
        topic=TOPIC,
        context=context,
        settings={"launcher": launcher},
    )


def report(text: str, comm: Any) -> tuple[int, int]:
    print(f"{text} {comm.rank}")
    os.write(2, f"error {comm.rank}\n".encode())
    return int(comm.allreduce(1)), os.getpid()


def test_values_and_output_arrive(launcher: str) -> None:
    pids = set()
    for _ in range(3):
        outcome = run(launcher, report, "é")
        assert [count for count, _ in outcome.result] == [3, 3, 3]
        assert outcome.stdout == "é 0\né 1\né 2"
        assert [outcome.stderr.rank(n) for n in range(3)] == ["error 0", "error 1", "error 2"]
        pids.add(tuple(pid for _, pid in outcome.result))
    assert len(pids) == 1


def doubled(data: bytes, array: Any) -> tuple[bytes, Any]:
    array *= 2
    return data, array[-3:]


def test_large_arguments_and_values_arrive(launcher: str) -> None:
    numpy = pytest.importorskip("numpy")
    data = os.urandom(3 << 20)
    found = run(launcher, doubled, data, numpy.arange(1 << 20)).result
    for each, array in found:
        assert each == data
        assert list(array) == [2 * n for n in range((1 << 20) - 3, 1 << 20)]


def memory_of(array: Any) -> str:
    """Return the file from which the array's memory is mapped."""
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split()[0].partition("-")
        if int(begin, 16) <= address < int(end, 16):
            return line.split()[4]
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_argument_is_sent_to_a_host_once(launcher: str) -> None:
    numpy = pytest.importorskip("numpy")
    inodes = run(launcher, memory_of, numpy.zeros(1 << 17)).result
    assert inodes[1] == inodes[2] != "0"


def fail(how: str, comm: Any) -> None:
    print("before", comm.rank, flush=True)
    if comm.rank == 2:
        if how == "raise":
            raise ValueError("on another host")
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()


def test_an_exception_arrives(launcher: str) -> None:
    with pytest.raises(ValueError, match="on another host"):
        run(launcher, fail, "raise").result  # noqa: B018


def test_the_output_of_a_rank_that_was_killed_arrives(launcher: str) -> None:
    outcome = run(launcher, fail, "kill")
    with pytest.raises(TaskCrashed, match="rank 2 of 3 on .* was ended by SIGKILL"):
        outcome.result  # noqa: B018
    assert outcome.stdout.rank(2) == "before 2"

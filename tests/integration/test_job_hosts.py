"""Parallel jobs on two hosts. The hosts are network namespaces, which the test makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.hosts import cluster, hosts
from support.paths import PROJECT

#: Runs on the first host, and prints what it has found as JSON.
PROGRAM = '''
import json, os, signal, sys, time
from pathlib import Path

import psutil

from daskbatch import Batch, ProcessFailed, TaskTimeout, WorkerLost

address, directory = sys.argv[1:]
hidden, shown = Path(directory, "hidden"), Path(directory, "shown")
WHERE = "ip -o -4 addr show dev e0 | grep -o '10[.0-9]*' | head -1; echo e$DASKBATCH_RANK >&2; "
STAY = "trap '' TERM; echo $$ > \\"$0.$DASKBATCH_RANK\\"; while true; do sleep 0.1; done"
found = {}


def run(task):
    task.run(timeout=120)
    try:
        return task.get()
    except (ProcessFailed, TaskTimeout, WorkerLost, FileNotFoundError) as error:
        return [type(error).__name__, getattr(error, "returncode", None), str(error)]


def sh(script, *args, num_procs=3, **options):
    return batch.job("sh", "-c", script, *args, num_procs=num_procs, **options)


def started(place):
    """Return the processes of all ranks, once they have started."""
    deadline = time.monotonic() + 60
    files = [Path(f"{place}.{rank}") for rank in range(3)]
    while not all(file.exists() and file.read_text().endswith("\\n") for file in files):
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.02)
    return [psutil.Process(int(file.read_text())) for file in files]


def all_end(processes):
    return not psutil.wait_procs(processes, 60)[1]


with Batch(address) as batch:
    batch.client.wait_for_workers(2)
    job = sh(WHERE)
    found["code"] = run(job)
    found["places"] = [job.stdout.rank(rank) for rank in range(3)]
    found["errors"] = job.stderr.get()

    found["failed"] = run(sh(WHERE + "[ $DASKBATCH_RANK = 2 ] && exit 3; sleep 600"))
    found["missing"] = run(batch.job(hidden / "solver", num_procs=3))
    found["directory"] = run(batch.job("true", num_procs=3, cwd=hidden / "place"))
    found["late"] = run(sh("echo late >&2; sleep 600", timeout=2))

    code = "from mpi4py import MPI; c = MPI.COMM_WORLD; print(c.rank, c.allreduce(c.rank + 1))"
    job = batch.job(sys.executable, "-c", code, num_procs=3)
    found["mpi"] = [run(job), job.stdout.get()]

    # Callables: the communicator spans both hosts; output and failures come from both.
    def place(base, comm):
        import socket, subprocess
        found = subprocess.run(["ip", "-o", "-4", "addr", "show", "dev", "e0"], capture_output=True)
        address = found.stdout.decode().split("inet ")[1].split("/")[0]
        print(f"rank {comm.rank} on {address}")
        return comm.allreduce(base + comm.rank), comm.bcast(address), address, os.getpid()

    def fail(ranks, comm):
        print(f"e{comm.rank}", file=sys.stderr)
        if comm.rank in ranks:
            raise LookupError(f"no value on rank {comm.rank}")
        comm.Barrier()

    def die(rank, first, comm):
        Path(f"{first}.{comm.rank}").write_text(f"{os.getpid()}\\n")
        if comm.rank == rank:
            while not all(Path(f"{first}.{each}").exists() for each in range(3)):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        comm.Barrier()

    def outcome(function, *args, **options):
        job = batch.job(function, *args, num_procs=3, **options)
        job.run(timeout=120)
        try:
            value = job.get()
        except Exception as error:
            value = [type(error).__name__, str(error), "\\n".join(getattr(error, "__notes__", []))]
        return [value, [job.stdout.rank(rank) for rank in range(3)], job.stderr.get()]

    found["callable"] = outcome(place, 10)
    found["again"] = outcome(place, 20)
    found["fails there"] = outcome(fail, [2])
    found["fails here"] = outcome(fail, [0])
    found["fails on both"] = outcome(fail, [0, 1, 2])
    for name, rank in (("dies there", 2), ("dies here", 0)):
        crashed = outcome(die, rank, f"{shown}-die{rank}")[0]
        pids = [int(Path(f"{shown}-die{rank}.{each}").read_text()) for each in range(3)]
        deadline = time.monotonic() + 60
        while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
            time.sleep(0.02)
        found[name] = [crashed, not any(map(psutil.pid_exists, pids))]
    found["recovered"] = outcome(place, 30)

    job = sh(STAY, f"{shown}-cancelled")
    job.start()
    ranks = started(f"{shown}-cancelled")
    job.cancel()
    job.wait(timeout=60)
    found["cancelled"] = [job.state, all_end(ranks)]

    # Of the last rank, on the second host: the supervisor, and the process of which the launcher
    # knows.
    for generation in (1, 2):
        job = sh(STAY, f"{shown}-{generation}", check=False)
        job.start()
        ranks = started(f"{shown}-{generation}")
        victim = ranks[2]
        for _ in range(generation):
            victim = victim.parent()
        victim.kill()
        job.wait(timeout=60)
        found[f"killed {generation}"] = [job.state, all_end(ranks)]

    # The worker that runs the job dies. The job changes what it reads, so it does not run again.
    workers = batch.client.run(lambda dask_worker: (dask_worker.address, os.getpid()))
    (worker,) = [pid for address, pid in workers.values() if "10.78.0.1:" in address]
    job = sh(STAY, f"{shown}-lost", reads=batch.read(shown), writes=batch.write(shown))
    job.start()
    ranks = started(f"{shown}-lost")
    os.kill(worker, signal.SIGKILL)
    found["lost"] = [job.wait(timeout=120), job.state, all_end(ranks)]
    found["after"] = run(sh("true"))

print(json.dumps(found))
'''


@pytest.mark.slow
def test_a_job_on_two_hosts(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "place").mkdir(parents=True)
    (hidden / "solver").write_text("#!/bin/sh\nsleep 60\n")
    (hidden / "solver").chmod(0o755)
    with hosts(2) as made:
        made.write_ssh(tmp_path / "ssh", hidden)
        variables = {
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "HYDRA_LAUNCHER": "ssh",
            "HYDRA_LAUNCHER_EXEC": str(tmp_path / "ssh"),
        }
        with cluster(made, (2, 2), tmp_path, variables) as address:
            program = subprocess.run(
                made.command(0, sys.executable, "-c", PROGRAM, address, str(tmp_path)),
                capture_output=True,
                text=True,
                timeout=400,
                env={**os.environ, **variables},
            )
    log = (tmp_path / "cluster.log").read_text(errors="replace")
    assert program.returncode == 0, f"{program.stderr}\n{log}"
    found = json.loads(program.stdout)
    assert found["code"] == 0
    # Consecutive ranks fill a host.
    assert found["places"] == ["10.78.0.1", "10.78.0.1", "10.78.0.2"]
    assert found["errors"] == "e0\ne1\ne2"
    assert found["failed"] == [
        "ProcessFailed",
        3,
        "task 'sh': rank 2 of 3 on host 10.78.0.2: sh ended with exit code 3\n"
        "stderr of rank 0: e0\nstderr of rank 1: e1\nstderr of rank 2: e2",
    ]
    kind, code, message = found["missing"]
    assert (kind, code) == ("ProcessFailed", 127)
    assert f"{hidden}/solver: No such file or directory on host 10.78.0.2" in message
    kind, _, message = found["directory"]
    assert kind == "FileNotFoundError"
    assert "task 'true': its cwd on the host 10.78.0.2 does not exist: " in message
    assert found["late"][0] == "TaskTimeout"
    assert "stderr of ranks 0-2: late" in found["late"][2]
    assert found["mpi"] == [0, "0 6\n1 6\n2 6"]
    _check_callables(found)
    assert found["cancelled"] == ["cancelled", True]
    assert found["killed 1"] == ["failed", True]
    assert found["killed 2"][1] is True
    assert found["lost"] == [None, "failed", True]
    assert found["after"] == 0


def _check_callables(found: dict[str, Any]) -> None:
    """Check what callables on ranks of both hosts have returned, written and raised."""
    here, there = "10.78.0.1", "10.78.0.2"
    places = [here, here, there]
    for name, total in (("callable", 33), ("again", 63), ("recovered", 93)):
        values, printed, _ = found[name]
        assert [value[:3] for value in values] == [[total, here, place] for place in places], name
        assert printed == [f"rank {rank} on {place}" for rank, place in enumerate(places)], name
    # The ranks are kept, on both hosts.
    first, again = ([value[3] for value in found[name][0]] for name in ("callable", "again"))
    assert first == again
    for name, rank in (("fails there", 2), ("fails here", 0)):
        (kind, message, notes), _, errors = found[name]
        assert (kind, message) == ("LookupError", f"no value on rank {rank}")
        assert f"rank {rank} of 3" in notes, notes
        assert f"e{rank}" in errors.splitlines()
    kind, message, notes = found["fails on both"][0]
    assert kind == "LookupError"
    assert f"rank {message[-1]} of 3" in notes
    for name, rank in (("dies there", 2), ("dies here", 0)):
        (kind, message, _), ended = found[name]
        assert kind == "TaskCrashed", message
        assert f"rank {rank}" in message
        assert ended

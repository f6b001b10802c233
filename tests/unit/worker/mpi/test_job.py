"""A run of a job, as the thread of a worker makes it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from support.waiting import read_pid, wait_until

from daskbatch.errors import ProcessFailed
from daskbatch.worker.execution.capture import capturing
from daskbatch.worker.execution.executable import ProcessStopped, running_by_thread
from daskbatch.worker.mpi import job_run
from daskbatch.worker.mpi.job import JobPart, failed_rank, run_job
from daskbatch.worker.mpi.job_run import RankEnd


def run(*command: object, ranks: int = 2, launcher: str = "auto", **more: Any) -> Any:
    arguments = {"stdin": None, "check": True, "timeout": None, "is_mpmd": False, **more}
    return run_job([JobPart(ranks, command, "/", {})], launcher=launcher, **arguments)


def test_ranks_that_do_not_start_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_run, "_START_TIMEOUT_SECONDS", 0.3)
    with pytest.raises(ProcessFailed, match="has not started all ranks, and has started 0 of 2"):
        run("true", launcher="sh -c 'sleep 600' {num_procs}")


def test_without_a_capture() -> None:
    assert run("echo", "text") == 0


def test_another_thread_stops_it(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def call() -> None:
        try:
            run("sh", "-c", 'echo $$ > "$0"; sleep 600', tmp_path / "pid", ranks=1)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    read_pid(tmp_path / "pid")
    assert thread.ident is not None
    assert running_by_thread[thread.ident].stop()
    thread.join(60)
    assert [type(error) for error in caught] == [ProcessStopped]


def test_several_threads_run_jobs() -> None:
    found: dict[int, str] = {}

    def call(number: int) -> None:
        with capturing(1000) as capture:
            run("sh", "-c", 'echo "$0 $DASKBATCH_RANK"', number)
            found[number] = capture.texts()[0]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads))
    assert found == {number: f"{number} 0\n{number} 1" for number in range(4)}


def test_which_rank_decides() -> None:
    stopped = RankEnd(-15, by_itself=False)
    assert failed_rank({0: RankEnd(0), 1: RankEnd(0)}) is None
    assert failed_rank({0: stopped, 1: RankEnd(0), 2: RankEnd(5), 3: RankEnd(4)}) == 2
    assert failed_rank({0: RankEnd(0), 1: stopped, 2: stopped}) == 1

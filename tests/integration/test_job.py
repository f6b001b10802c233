"""Parallel jobs of executables, made by `Batch.job`."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
from support.processes import is_running, shared_memory_of
from support.waiting import read_pid, wait_until, wait_until_running

from daskbatch import (
    Batch,
    DependencyFailed,
    ProcessFailed,
    ProcessTemplate,
    SpecError,
    TaskCancelled,
    TaskTimeout,
)
from daskbatch.batch.task import Task
from daskbatch.worker.mpi.launcher import Kind, find_launcher
from daskbatch.worker.mpi.rank_supervisor import RANK_MARKER
from daskbatch.worker.processes.process_tree import MARKER

#: What each rank prints.
SAY = "echo out $DASKBATCH_RANK of $DASKBATCH_SIZE; echo err $DASKBATCH_RANK >&2"


def sh(batch: Batch, script: str, *args: object, num_procs: int = 2, **options: Any) -> Task:
    """Make a job whose ranks run a script of the shell; `$0` is the first of the arguments."""
    return batch.job("sh", "-c", script, *args, num_procs=num_procs, **options)


def run(task: Task) -> Any:
    task.run(timeout=120)
    return task.get()


def failure(task: Task) -> ProcessFailed:
    with pytest.raises(ProcessFailed) as caught:
        run(task)
    return caught.value


def python(code: str) -> tuple[str, str, str]:
    return sys.executable, "-c", code


# -- output ---------------------------------------------------------------------------------


def test_the_output_of_all_ranks_in_their_order(batch: Batch) -> None:
    task = sh(batch, SAY)
    assert run(task) == 0
    assert task.stdout.get() == "out 0 of 2\nout 1 of 2"
    assert task.stderr.get() == "err 0\nerr 1"
    assert [task.stdout.rank(i) for i in (0, 1)] == ["out 0 of 2", "out 1 of 2"]
    assert task.stderr.rank(np.int64(1)) == "err 1"
    assert type(task.stdout.get()) is str


def test_a_line_without_an_end_is_not_continued_by_another_rank(batch: Batch) -> None:
    task = sh(batch, "printf $DASKBATCH_RANK; sleep 0.05; printf a; printf '\\n\\n' >&2")
    assert run(task) == 0
    assert task.stdout.get() == "0a\n1a"
    assert task.stderr.get() == "\n\n\n"
    assert task.stderr.rank(0) == "\n"


def test_output_that_is_no_text_and_large_output(batch: Batch) -> None:
    code = "import os,sys; os.write(1, b'\\xff\\n' + bytes([97 + int(sys.argv[1])]) * (1 << 20))"
    task = sh(batch, 'exec "$0" -c "$1" $DASKBATCH_RANK', sys.executable, code)
    assert run(task) == 0
    assert task.stdout.rank(0) == "\ufffd\n" + "a" * (1 << 20)
    assert task.stdout.rank(1) == "\ufffd\n" + "b" * (1 << 20)


def test_ranks_share_the_limit_of_the_output() -> None:
    with dask.config.set({"daskbatch.output-limit": "2000"}), Batch(num_workers=2) as batch:
        task = sh(batch, "i=0; while [ $i -lt $0 ]; do echo 123456789; i=$((i + 1)); done", 200)
        run(task)
        for i in (0, 1):
            lines = task.stdout.rank(i).splitlines()
            assert "[daskbatch: 1000 bytes dropped, see daskbatch.output-limit]" in lines
        assert task.stdout.get() == "\n".join(task.stdout.rank(i) for i in (0, 1))


def test_only_jobs_have_ranks(batch: Batch) -> None:
    process, function, job = batch.process("true"), batch.function(abs, 1), sh(batch, "true")
    program = batch.compile([process, function, job])
    program.run(timeout=60)
    for task in (process, function, program):
        with pytest.raises(SpecError, match="is not a parallel job"):
            task.stdout.rank(0)
    with pytest.raises(SpecError, match="is its result: rank"):
        job.result.rank(0)
    for index in (2, -1, 0.0, True, "0", None):
        with pytest.raises(SpecError, match="'sh' has the ranks 0 to 1, not "):
            job.stdout.rank(index)  # type: ignore[arg-type]


def test_what_ranks_print_is_there_after_a_failure(batch: Batch) -> None:
    task = sh(batch, SAY + "; [ $DASKBATCH_RANK = 0 ] || exit 3; sleep 60")
    failure(task)
    assert task.stdout.get() == "out 0 of 2\nout 1 of 2"


# -- results --------------------------------------------------------------------------------


def test_the_code_of_the_lowest_rank_that_has_failed_by_itself(batch: Batch) -> None:
    assert run(sh(batch, "exit $((3 + DASKBATCH_RANK))", check=False)) == 3
    # Rank 0 is ended because rank 1 has failed.
    stopped = sh(batch, "[ $DASKBATCH_RANK = 1 ] && exit 4; sleep 60", check=False)
    assert run(stopped) == 4


def test_a_failure_names_the_rank_and_shows_the_errors_of_all(batch: Batch) -> None:
    task = sh(batch, "echo bad $DASKBATCH_RANK >&2; exit $DASKBATCH_RANK", name="solve")
    error = failure(task)
    assert str(error) == (
        "task 'solve': rank 1 of 2: sh ended with exit code 1\n"
        "stderr of rank 0: bad 0\nstderr of rank 1: bad 1"
    )
    assert error.returncode == 1
    assert error.command == ["sh", "-c", "echo bad $DASKBATCH_RANK >&2; exit $DASKBATCH_RANK"]
    assert error.stderr == "bad 0\nbad 1"


def test_a_rank_that_is_ended_by_a_signal(batch: Batch) -> None:
    script = "[ $DASKBATCH_RANK = 1 ] && kill -KILL $$; sleep 60"
    error = failure(sh(batch, script))
    assert "rank 1 of 2: sh was ended by SIGKILL" in str(error)
    assert error.returncode == -signal.SIGKILL
    assert run(sh(batch, script, check=False)) == -signal.SIGKILL


def test_an_executable_that_is_not_there(batch: Batch, tmp_path: Path) -> None:
    assert run(batch.job("no-such-solver", num_procs=2, check=False)) == 127
    error = failure(batch.job("no-such-solver", "-x", num_procs=2))
    assert error.returncode == 127
    assert "stderr of ranks 0-1: no-such-solver: No such file or directory" in str(error)
    (tmp_path / "text").write_text("no program")
    assert run(batch.job(tmp_path / "text", num_procs=1, check=False)) == 126


def test_several_executables(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    task = batch.job(
        [
            (1, ProcessTemplate("sh", ("-c", "echo a $X $Y; pwd"), env={"X": "1"})),
            (1, ProcessTemplate("sh", ["-c", "echo b $X $Y; pwd; exit 5"], cwd=tmp_path / "b")),
        ],
        env={"Y": "2"},
        cwd=tmp_path,
        check=False,
    )
    assert run(task) == [0, 5]
    assert task.name == "sh:sh"
    assert task.stdout.get() == f"a 1 2\n{tmp_path}\nb 2\n{tmp_path}/b"


def test_the_codes_of_several_executables(batch: Batch) -> None:
    exits = [(1, ProcessTemplate("sh", ("-c", f"exit {code}"))) for code in (6, 7)]
    assert run(batch.job(exits, check=False)) == [6, 7]
    error = failure(batch.job(exits, num_procs=2))
    assert error.returncode == 6
    assert error.command == ["sh", "-c", "exit 6"]
    fine = batch.job([(1, ProcessTemplate("true")), (1, ProcessTemplate("true"))])
    assert run(fine) == [0, 0]
    one = batch.job([(2, ProcessTemplate("true"))])
    assert run(one) == [0]


# -- what a job receives --------------------------------------------------------------------


def test_only_the_first_rank_has_the_input(batch: Batch, tmp_path: Path) -> None:
    large = "".join(f"line {i}\n" for i in range(200_000))
    file = tmp_path / "in put \N{SNOWMAN}"
    file.write_text("from a file")
    number = batch.function(int, "42")
    number.start()
    for given, expected in (
        ("text\n", "text"),
        (b"bytes", "bytes"),
        (file, "from a file"),
        (number, "42"),
        ("", ""),
        (None, ""),
        (large, large.rstrip()),
    ):
        task = batch.job("cat", num_procs=2, stdin=given)
        assert run(task) == 0
        assert (task.stdout.rank(0), task.stdout.rank(1)) == (expected, "")


def test_arguments_and_the_environment(batch: Batch, tmp_path: Path) -> None:
    place = tmp_path / "a b \N{SNOWMAN}"
    place.mkdir()
    first = batch.function(str, "value")
    second = sh(
        batch, 'echo "$0|$1|$2|$NAME"; pwd', first, 1.5, "* $HOME", env={"NAME": "a=b"}, cwd=place
    )
    third = batch.process("echo", second.stdout, second)
    batch.compile([first, second, third]).run(timeout=60)
    assert second.stdout.rank(1) == f"value|1.5|* $HOME|a=b\n{place}"
    assert third.stdout.get() == f"{second.stdout.get()} 0"


def test_jobs_are_ordered_by_files(batch: Batch, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    read, write = batch.read, batch.write
    tasks = [
        batch.function(source.write_text, "7\n", writes=write(source)),
        sh(batch, 'cat "$0" > "$1.$DASKBATCH_RANK"', source, target, reads=read(source)),
        batch.process("sh", "-c", f"cat {shlex.quote(str(target))}.* > {target}"),
        batch.function(target.read_text, reads=read(target)),
    ]
    tasks[1].write(tmp_path, "target.0", "target.1")
    tasks[2].read(tmp_path, "target.0", "target.1")
    tasks[2].write(target)
    batch.compile(tasks).run(timeout=60)
    assert tasks[-1].get() == "7\n7\n"


def test_tasks_that_need_a_failed_job_do_not_run(batch: Batch, tmp_path: Path) -> None:
    job = sh(batch, "exit 1", name="solve", writes=batch.write(tmp_path / "x"))
    after = batch.function(abs, 1, reads=batch.read(tmp_path / "x"))
    batch.compile([job, after]).run(timeout=60)
    with pytest.raises(DependencyFailed) as caught:
        after.get()
    assert caught.value.root == "solve"


def test_cores_are_slots_of_each_rank(batch: Batch) -> None:
    task = batch.options(cores=2).job("sh", "-c", "echo $OMP_NUM_THREADS", num_procs=1)
    assert run(task) == 0
    assert task.stdout.get() == "2"
    wide = batch.options(cores=2).job("true", num_procs=2)
    with pytest.raises(SpecError, match="2 ranks of 2 slots of one host each"):
        wide.start()


def test_a_job_tries_again(batch: Batch, tmp_path: Path) -> None:
    script = 'echo x >> "$0"; [ $(wc -l < "$0") -ge 3 ]'
    task = batch.options(retries=2).job("sh", "-c", script, tmp_path / "tries", num_procs=1)
    assert run(task) == 0
    assert (tmp_path / "tries").read_text() == "x\n" * 3


def test_variables_of_another_launcher_do_not_reach_a_job() -> None:
    others = {
        "PMI_RANK": "5",
        "PMI_FD": "9",
        "PMIX_RANK": "5",
        "OMPI_COMM_WORLD_RANK": "5",
        "SLURM_PROCID": "5",
        "SLURM_STEP_ID": "5",
        "PRTE_X": "5",
        "MPI_LOCALRANKID": "5",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in others.items():
            patch.setenv(name, value)
        with Batch(num_workers=2) as batch:
            job = sh(batch, "env")
            process = batch.process("env")
            child = batch.options(isolation="process").function(lambda: dict(os.environ))
            batch.compile([job, process, child]).run(timeout=60)
            for text in (job.stdout.rank(1), process.stdout.get()):
                assert not [line for line in text.splitlines() if line.endswith("=5")]
            assert not others.keys() & child.get().keys()


def test_a_job_of_a_program_of_mpi(batch: Batch) -> None:
    code = (
        "from mpi4py import MPI; c = MPI.COMM_WORLD; print(c.rank, c.size, c.allreduce(c.rank + 1))"
    )
    task = batch.job(*python(code), num_procs=2)
    assert run(task) == 0
    assert task.stdout.get() == "0 2 3\n1 2 3"


def test_a_program_of_mpi_aborts(batch: Batch) -> None:
    code = (
        "from mpi4py import MPI; c = MPI.COMM_WORLD; print('before', flush=True)\n"
        "if c.rank == 1: c.Abort(7)\n"
        "c.Barrier()"
    )
    task = batch.job(*python(code), num_procs=2)
    error = failure(task)
    assert error.returncode == 7
    assert "MPI_Abort" in str(error)
    assert task.stdout.rank(1) == "before"
    assert run(batch.job(*python(code), num_procs=2, check=False)) == 7


# -- wrong descriptions ---------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2", None, float("nan")])
def test_a_number_of_ranks_that_is_none(batch: Batch, number: object) -> None:
    for job in (batch.job, batch.options(retries=1).job):
        with pytest.raises(SpecError, match="num_procs= is .*: it must be a whole number from 1"):
            job("true", num_procs=number)  # type: ignore[arg-type]


def test_more_ranks_than_slots(batch: Batch) -> None:
    task = batch.job("true", num_procs=3)
    with pytest.raises(SpecError, match="'true' asks for 3 ranks"):
        task.run(timeout=60)


def test_wrong_targets_and_options(batch: Batch) -> None:
    part = ProcessTemplate("true")
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: batch.job(3, num_procs=1), "cannot run 3 on the ranks"),  # type: ignore[arg-type]
        (lambda: batch.job("", num_procs=1), "cannot run ''"),
        (lambda: batch.job([]), "an empty list"),
        (lambda: batch.job([part]), "give pairs"),  # type: ignore[list-item]
        (lambda: batch.job([(1, "true")]), "give pairs"),  # type: ignore[list-item]
        (lambda: batch.job([(0, part)]), "whole number from 1"),
        (lambda: batch.job([(2, part)], num_procs=3), "have 2 ranks"),
        (lambda: batch.job([(2, part)], "x"), "in its ProcessTemplates"),
        (lambda: batch.job("true", num_procs=1, x=1), "no keyword arguments: x"),
        (lambda: batch.job("true", num_procs=1, stdin=3), "stdin="),
        (lambda: batch.job(len, num_procs=1, stdin="x"), "stdin= is for executables"),
        (lambda: batch.job(len, num_procs=1, check=False), "check= is for executables"),
        (lambda: ProcessTemplate(len), "cannot run"),  # type: ignore[arg-type]
        (lambda: ProcessTemplate("a", "bc"), "args="),
        (lambda: ProcessTemplate("a", cwd=1), "cwd="),  # type: ignore[arg-type]
        (lambda: ProcessTemplate("a", env={"": "x"}), "env="),
    ]
    for make, message in wrong:
        with pytest.raises(SpecError, match=message):
            make()


def test_a_directory_that_is_not_there(batch: Batch, tmp_path: Path) -> None:
    task = sh(batch, "pwd", cwd=tmp_path / "none", name="solve", check=False)
    with pytest.raises(FileNotFoundError, match="its cwd on the host .* does not exist: "):
        run(task)


def test_a_zero_byte_in_an_argument(batch: Batch) -> None:
    task = batch.job("echo", "a\0b", num_procs=2)
    with pytest.raises(ValueError, match="embedded null byte"):
        run(task)


def test_an_input_that_is_not_there(batch: Batch, tmp_path: Path) -> None:
    task = batch.job("cat", num_procs=2, stdin=tmp_path / "none", name="solve")
    with pytest.raises(FileNotFoundError, match="task 'solve': its stdin does not exist: "):
        run(task)


# -- launchers ------------------------------------------------------------------------------


def launched(batch: Batch, launcher: str, **options: Any) -> Task:
    with dask.config.set({"daskbatch.mpi-launcher": launcher}):
        return sh(batch, SAY, **options)


def test_a_launcher_that_fails(batch: Batch) -> None:
    error = failure(launched(batch, "sh -c 'echo cannot connect >&2; exit 3' {num_procs}"))
    assert "task 'sh': the launcher sh ended with exit code 3, and has started 0 of 2 r" in str(
        error
    )
    assert "output of the launcher: cannot connect" in str(error)
    assert error.returncode == 3
    # That is no exit code of the job.
    unchecked = launched(batch, "sh -c 'exit 3' {num_procs}", check=False)
    assert failure(unchecked).returncode == 3


def test_a_launcher_that_starts_nothing(batch: Batch) -> None:
    error = failure(launched(batch, "sh -c true {num_procs}"))
    assert "has not started all ranks" in str(error)


def test_a_job_is_cancelled_while_its_launcher_starts_no_rank(batch: Batch, tmp_path: Path) -> None:
    launcher = f"sh -c 'echo $$ > {shlex.quote(str(tmp_path / 'pid'))}; sleep 600' {{num_procs}}"
    task = launched(batch, launcher)
    task.start()
    pid = read_pid(tmp_path / "pid")
    wait_until_running(task)
    assert task.cancel()
    task.wait(timeout=60)
    assert_all_ended([pid])


def test_a_launcher_that_starts_too_many_ranks(batch: Batch) -> None:
    mpiexec = shlex.quote(os.path.join(os.path.dirname(sys.executable), "mpiexec"))
    task = launched(batch, f"{mpiexec} -n 1{{num_procs}}")
    task.run(timeout=120)
    assert task.state in ("done", "failed")
    assert task.stdout.rank(0) in ("", "out 0 of 2")


def test_a_launcher_that_is_not_there(batch: Batch) -> None:
    error = failure(launched(batch, "/no/mpiexec -n {num_procs}"))
    assert "the MPI launcher /no/mpiexec cannot be started: No such file" in str(error)
    assert "daskbatch.mpi-launcher" in str(error)
    assert error.returncode == 127


@pytest.mark.parametrize("setting", ["mpiexec", "mpiexec -n {procs}", "mpiexec '"])
def test_a_wrong_setting(batch: Batch, setting: str) -> None:
    error = failure(launched(batch, setting))
    assert f"the setting daskbatch.mpi-launcher is {setting!r}: " in str(error)


def test_no_launcher(batch: Batch) -> None:
    def find() -> str:
        from daskbatch.worker.mpi.launcher import find_launcher

        # Directories without launchers, and an interpreter in such a directory.
        old_path, old_executable = os.environ["PATH"], sys.executable
        os.environ["PATH"], sys.executable = "/usr/sbin/none:/bin/none", "/nowhere/python"
        try:
            find_launcher()
        except ProcessFailed as error:
            return str(error)
        finally:
            os.environ["PATH"], sys.executable = old_path, old_executable
        return ""

    # In a child process: no other task sees these.
    task = batch.options(isolation="process").function(find)
    assert "install one, for example with pip install 'daskbatch[mpi]'" in run(task)


def test_the_hosts_in_a_command_line(batch: Batch, tmp_path: Path) -> None:
    mpiexec = shlex.quote(os.path.join(os.path.dirname(sys.executable), "mpiexec"))
    script = tmp_path / "my launcher"
    script.write_text(
        f'#!/bin/sh\necho "$1" > "$(dirname "$0")/hosts"; cat "$2" >> "$(dirname "$0")/hosts"\n'
        f'shift 2\nexec {mpiexec} "$@"\n'
    )
    script.chmod(0o755)
    task = launched(batch, f"'{script}' {{hosts}} {{hostfile}} -n {{num_procs}}")
    assert run(task) == 0
    assert task.stdout.get() == "out 0 of 2\nout 1 of 2"
    assert (tmp_path / "hosts").read_text() == "127.0.0.1:2\n127.0.0.1:2\n"


# -- ends -----------------------------------------------------------------------------------

#: Each rank writes its pid, and starts processes: one in its group, one in another session.
TREE = (
    'setsid sh -c \'echo $$ > "$0"; exec sleep 600\' "$0.$DASKBATCH_RANK.session" & '
    'sh -c \'echo $$ > "$0"; exec sleep 600\' "$0.$DASKBATCH_RANK.child" & '
    'echo $$ > "$0.$DASKBATCH_RANK"; wait'
)


def tree_pids(place: Path) -> list[int]:
    kinds = ("", ".session", ".child")
    return [read_pid(Path(f"{place}.{rank}{kind}")) for rank in (0, 1) for kind in kinds]


def launchers() -> list[int]:
    """Return the launchers that run below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("mpiexec" in word or "hydra" in word for word in process.cmdline()[:1]):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def assert_all_ended(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_running, pids)), f"some of {pids} still run")


def test_a_job_is_cancelled(batch: Batch, tmp_path: Path) -> None:
    task = sh(batch, TREE, tmp_path / "pid")
    task.start()
    pids = tree_pids(tmp_path / "pid")
    wait_until_running(task)
    assert task.cancel()
    task.wait(timeout=60)
    with pytest.raises(TaskCancelled):
        task.get()
    assert_all_ended(pids)
    assert run(sh(batch, "true")) == 0


def test_a_job_runs_out_of_time(batch: Batch, tmp_path: Path) -> None:
    # Not shorter: the processes must have started by then.
    task = sh(batch, "echo waits >&2; " + TREE, tmp_path / "pid", timeout=3)
    with pytest.raises(TaskTimeout, match="stderr of ranks 0-1: waits"):
        run(task)
    assert_all_ended(tree_pids(tmp_path / "pid"))


def test_ranks_receive_sigterm_before_sigkill(batch: Batch, tmp_path: Path) -> None:
    script = (
        "trap 'echo ended; exit 0' TERM; echo $$ > \"$0.$DASKBATCH_RANK\"; "
        "while true; do sleep 0.05; done"
    )
    task = sh(batch, script, tmp_path / "pid")
    task.start()
    for rank in (0, 1):
        read_pid(Path(f"{tmp_path}/pid.{rank}"))
    assert task.cancel()
    task.wait(timeout=60)
    assert task.stdout.get() in ("ended\nended", "")  # the output of a cancelled task may be lost


def test_a_rank_that_ignores_sigterm_is_killed(batch: Batch, tmp_path: Path) -> None:
    script = "trap '' TERM; echo $$ > \"$0.$DASKBATCH_RANK\"; while true; do sleep 0.05; done"
    task = sh(batch, script, tmp_path / "pid")
    task.start()
    pids = [read_pid(Path(f"{tmp_path}/pid.{rank}")) for rank in (0, 1)]
    assert task.cancel()
    task.wait(timeout=60)
    assert_all_ended(pids)


def test_what_a_rank_has_left_behind_ends_with_the_job(batch: Batch, tmp_path: Path) -> None:
    script = 'setsid sh -c \'echo $$ > "$0"; exec sleep 600\' "$0.$DASKBATCH_RANK" & sleep 0.3'
    task = sh(batch, script, tmp_path / "pid")
    assert run(task) == 0
    assert_all_ended([read_pid(Path(f"{tmp_path}/pid.{rank}")) for rank in (0, 1)])


def test_a_killed_launcher(batch: Batch, tmp_path: Path) -> None:
    task = sh(batch, TREE, tmp_path / "pid")
    task.start()
    pids = tree_pids(tmp_path / "pid")
    for pid in launchers():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ProcessFailed):
        task.get(timeout=60)
    assert_all_ended(pids)
    assert run(sh(batch, "true")) == 0


@pytest.mark.parametrize("generation", [1, 2])
def test_a_killed_supervisor(batch: Batch, tmp_path: Path, generation: int) -> None:
    # A command line of the user may be that of any launcher: each rank has a supervisor.
    with dask.config.set(
        {"daskbatch.mpi-launcher": f"{find_launcher().words[0]} -n {{num_procs}}"}
    ):
        task = sh(batch, TREE, tmp_path / "pid")
        task.start()
    pids = tree_pids(tmp_path / "pid")
    victim = psutil.Process(pids[3])
    for _ in range(generation):
        victim = victim.parent()
    victim.kill()
    with pytest.raises(ProcessFailed):
        task.get(timeout=60)
    assert_all_ended(pids)
    assert run(sh(batch, "true")) == 0


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("victim", ["placeholder", "proxy", "launcher"])
def test_a_killed_part_of_the_launcher(
    batch: Batch, tmp_path: Path, victim: str, supervised: bool
) -> None:
    launcher = find_launcher()
    if launcher.kind is not Kind.MPICH or (supervised and victim == "placeholder"):
        pytest.skip("there is no such process")
    setting = f"{launcher.words[0]} -n {{num_procs}}" if supervised else "auto"
    with dask.config.set({"daskbatch.mpi-launcher": setting}):
        task = sh(batch, TREE, tmp_path / "pid")
        task.start()
    pids = tree_pids(tmp_path / "pid")
    marker = psutil.Process(pids[3]).environ()[MARKER]
    found = [
        each
        for each in psutil.process_iter()
        if is_marked(each, marker) and RANK_MARKER not in each.environ()
    ]
    names = {"placeholder": "sh", "proxy": "hydra_pmi_proxy", "launcher": "mpiexec"}
    some = [each for each in found if Path(each.cmdline()[0]).name == names[victim]]
    assert len(some) == (2 if victim == "placeholder" else 1)
    some[-1].kill()
    with pytest.raises(ProcessFailed):
        task.get(timeout=60)
    assert_all_ended(pids)
    assert not any(is_marked(each, marker) for each in found)
    assert run(sh(batch, "true")) == 0


def is_marked(process: psutil.Process, marker: str) -> bool:
    try:
        return process.environ().get(MARKER) == marker and bool(process.cmdline())
    except (psutil.Error, OSError):
        return False


def test_a_rank_is_found_by_its_launcher_and_has_its_variables(batch: Batch) -> None:
    code = (
        "import os; from mpi4py import MPI; c = MPI.COMM_WORLD\n"
        "e = os.environ; print(c.rank, e['PMI_RANK'], e['PMI_SIZE'], e['DASKBATCH_SIZE'],"
        " 'HYDI_CONTROL_FD' in e)"
    )
    if find_launcher().kind is not Kind.MPICH:
        pytest.skip("these are the variables of MPICH")
    task = batch.job(*python(code), num_procs=2)
    assert run(task) == 0
    assert task.stdout.get() == "0 0 2 2 False\n1 1 2 2 False"


def test_nothing_is_left_in_shared_memory(batch: Batch, tmp_path: Path) -> None:
    code = (
        "from mpi4py import MPI; import os, sys, pathlib, time; c = MPI.COMM_WORLD; c.Barrier()\n"
        "pathlib.Path(sys.argv[1] + str(c.rank)).write_text(f'{os.getpid()}\\n'); time.sleep(600)"
    )
    for end in ("cancel", "kill"):
        place = str(tmp_path / end)
        task = batch.job(*python(code), place, num_procs=2)
        task.start()
        pids = [read_pid(Path(f"{place}{rank}")) for rank in (0, 1)]
        files = shared_memory_of(pids[0])
        assert files
        if end == "cancel":
            task.cancel()
        else:
            os.kill(pids[1], signal.SIGKILL)
        task.wait(timeout=60)
        assert_all_ended(pids)
        wait_until(lambda: not any(file.exists() for file in files), "shared memory is left")  # noqa: B023

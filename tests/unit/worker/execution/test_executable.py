"""Executables: exit codes, input and output, and that they end when they must."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.own_process import in_own_process
from support.processes import is_running
from support.waiting import wait_until

from daskbatch.errors import ProcessFailed, TaskTimeout
from daskbatch.worker.execution import executable as module
from daskbatch.worker.execution.capture import capturing
from daskbatch.worker.execution.executable import (
    ADDED_VARIABLE,
    ProcessStopped,
    RunningExecutable,
    execute,
)
from daskbatch.worker.processes.process_tree import MARKER, OWNER, sweep
from daskbatch.worker.processes.reaper import get_reaper


def run(*command: Any, limit: int = 1 << 20, **changes: Any) -> tuple[int, str, str]:
    """Run an executable; return its exit code, its stdout and its stderr."""
    given: dict[str, Any] = {"cwd": os.getcwd(), "env": {}, "stdin": None, "check": False}
    with capturing(limit) as capture:
        code = execute(command, **{**given, "timeout": 60.0, **changes})
    return code, *capture.texts()


def python(script: str, *args: Any, **changes: Any) -> tuple[int, str, str]:
    return run(sys.executable, "-c", script, *args, **changes)


# -- exit codes ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_the_exit_code_is_given(code: int) -> None:
    assert run("sh", "-c", f"exit {code}") == (code, "", "")


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_is_a_negative_code(ended_by: signal.Signals) -> None:
    assert run("sh", "-c", f"kill -{ended_by.value} $$")[0] == -ended_by
    with pytest.raises(ProcessFailed, match=f"sh was ended by {ended_by.name}") as caught:
        run("sh", "-c", f"kill -{ended_by.value} $$", check=True)
    assert caught.value.returncode == -ended_by


def test_an_executable_that_is_not_there_is_127(tmp_path: Path) -> None:
    for name in ("no-such-executable", tmp_path / "none", "./none"):
        code, out, err = run(name, "argument")
        assert (code, out) == (127, "")
        assert str(name) in err
        assert "No such file" in err


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_a_file_that_cannot_be_executed_is_126(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"\x00\x01 no program")
    file.chmod(mode)
    code, _, err = run(file)
    assert code == 126
    assert str(file) in err


def test_a_directory_is_126(tmp_path: Path) -> None:
    assert run(tmp_path)[0] == 126


def test_a_failure_says_what_was_run_and_what_it_said() -> None:
    with pytest.raises(ProcessFailed) as caught:
        run("sh", "-c", "echo first >&2; echo second >&2; exit 3", check=True)
    error = caught.value
    assert error.returncode == 3
    assert error.command == ["sh", "-c", "echo first >&2; echo second >&2; exit 3"]
    assert error.stderr == "first\nsecond"
    assert str(error) == "sh ended with exit code 3: second"


def test_a_missing_executable_is_a_failure_if_checked() -> None:
    with pytest.raises(ProcessFailed) as caught:
        run("no-such-executable", check=True)
    assert caught.value.returncode == 127
    assert "no-such-executable" in str(caught.value)


# -- arguments, environment, directory ----------------------------------------------------


@pytest.mark.parametrize(
    ("target", "end"),
    [
        (
            "sort -n x",
            "; there is no shell: pass the arguments separately: process('sort', '-n', 'x', '1')",
        ),
        ("sort x >", "; there is no shell: call one: process('sh', '-c', 'sort x > 1')"),
        ("sort", "; it is in no directory of the worker's PATH"),
    ],
)
def test_a_line_for_a_shell_is_told_to_be_none(
    target: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ProcessFailed, match="No such file or directory") as caught:
        run(target, "1", check=True)
    assert str(caught.value).endswith(end)
    assert caught.value.returncode == 127


def test_arguments_are_passed_as_they_are_without_a_shell(tmp_path: Path) -> None:
    given = ["a b", "*", "$HOME", "; echo x", "", "ü", tmp_path, b"bytes", 3, 2.5]
    code, out, _ = python("import sys; print(*sys.argv[1:], sep='|')", *given)
    assert code == 0
    assert out == f"a b|*|$HOME|; echo x||ü|{tmp_path}|bytes|3|2.5"


def test_the_environment_is_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("REPLACED", "old")
    env = {"REPLACED": "new", "ADDED": "added"}
    assert run("sh", "-c", "echo $KEPT $REPLACED $ADDED", env=env)[1] == "kept new added"
    assert run("sh", "-c", "echo $KEPT $REPLACED $ADDED")[1] == "kept old"
    assert os.environ["REPLACED"] == "old"


def test_what_was_set_for_the_worker_alone_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FOR_WORKER", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(ADDED_VARIABLE, "FOR_WORKER,OMP_NUM_THREADS")
    show = f"echo ${{FOR_WORKER-none}} ${{OMP_NUM_THREADS-none}} ${{{ADDED_VARIABLE}-none}}"
    assert run("sh", "-c", show)[1] == "none none none"
    assert run("sh", "-c", show, env={"OMP_NUM_THREADS": "4"})[1] == "none 4 none"


def test_what_an_mpi_launcher_has_set_for_the_worker_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removed = [
        "PMI_FD",
        "PMI_RANK",
        "PMIX_RANK",
        "HYDI_CONTROL_FD",
        "HYDRA_PROXY",
        "OMPI_COMM_WORLD_RANK",
        "MPI_LOCALRANKID",
        "MPIR_CVAR_X",
        "I_MPI_X",
    ]
    kept = ["MPI_HOME", "MPICC", "XPMI_RANK", "I_MP", "OMP_NUM_THREADS"]
    for name in removed + kept:
        monkeypatch.setenv(name, "of the worker")
    show = "import os, sys; print(*[name for name in sys.argv[1:] if name in os.environ])"
    assert python(show, *removed, *kept)[1].split() == kept
    own = dict.fromkeys(removed, "of the task")
    assert python(show, *removed, *kept, env=own)[1].split() == removed + kept
    assert os.environ["PMI_RANK"] == "of the worker"


def test_each_launch_is_marked_by_its_worker_and_by_a_value_of_its_own() -> None:
    show = f"echo ${OWNER} ${MARKER}"
    marks = [run("sh", "-c", show, env={MARKER: "x", OWNER: "x"})[1].split() for _ in range(3)]
    assert {owner for owner, _ in marks} == {get_reaper().owner}
    assert len({marker for _, marker in marks}) == 3


def test_it_runs_in_the_given_directory(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\npwd\n")
    script.chmod(0o755)
    assert run("pwd", cwd=str(tmp_path))[1] == str(tmp_path)
    assert run("./script", cwd=str(tmp_path)) == (0, str(tmp_path), "")


def test_a_missing_directory_is_not_taken_for_a_missing_executable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        run("true", cwd=str(tmp_path / "gone"))


# -- input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdin", "read"),
    [
        (None, ""),
        ("", ""),
        ("grüße\n", "grüße"),
        (b"bytes", "bytes"),
        # With an id: the system cannot start programs while pytest's own is in the environment.
        pytest.param("x" * 300_000, "x" * 300_000, id="large"),
    ],
)
def test_it_reads_what_it_is_given(stdin: Any, read: str) -> None:
    assert run("cat", stdin=stdin) == (0, read, "")


def test_it_reads_bytes_as_they_are() -> None:
    count = "import sys; print(list(sys.stdin.buffer.read()))"
    assert python(count, stdin=b"\x00\xff\n")[1] == "[0, 255, 10]"


def test_it_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("content\n")
    assert run("cat", stdin=tmp_path / "in.txt")[1] == "content"


def test_a_relative_input_file_is_looked_for_where_the_executable_runs(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("content\n")
    assert run("cat", stdin=Path("in.txt"), cwd=str(tmp_path))[1] == "content"


def test_a_missing_input_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        run("cat", stdin=tmp_path / "none.txt")


def test_input_that_nobody_reads_does_no_harm() -> None:
    assert run("true", stdin="x" * 1_000_000) == (0, "", "")


# -- output -------------------------------------------------------------------------------


def test_both_streams_are_kept_apart() -> None:
    assert run("sh", "-c", "echo out; echo err >&2") == (0, "out", "err")


def test_much_output_on_both_streams_at_once_is_read() -> None:
    script = (
        "import sys\n"
        "for _ in range(300):\n"
        "    sys.stdout.write('o' * 10_000); sys.stderr.write('e' * 10_000)\n"
    )
    code, out, err = python(script, limit=1 << 22)
    assert (code, out, err) == (0, "o" * 3_000_000, "e" * 3_000_000)


def test_no_more_output_is_kept_than_asked() -> None:
    code, out, _ = python("print('x' * 5_000_000)", limit=1000)
    assert code == 0
    assert len(out) < 1100
    assert "4999001 bytes dropped" in out


def test_output_that_is_no_text_is_kept_in_some_form() -> None:
    assert python("import os; os.write(1, b'a\\xffb')")[1] == "a\ufffdb"


def test_what_was_written_before_a_crash_is_kept() -> None:
    code, out, _ = python("import os; os.write(1, b'before'); os.abort()")
    assert (code, out) == (-signal.SIGABRT, "before")


def test_without_a_capture_it_can_run_too() -> None:
    with pytest.raises(ProcessFailed) as caught:
        execute(["sh", "-c", "echo no >&2; exit 2"], os.getcwd(), {}, None, True, None)
    assert caught.value.stderr == "no"


# -- the end ------------------------------------------------------------------------------

#: Prints its pid and that of a child in a new session, and runs for long. Both ignore SIGTERM.
DEAF = """
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "trap '' TERM; while :; do sleep 1; done"
child = subprocess.Popen(["sh", "-c", deaf], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(300)
"""


def test_a_child_left_behind_that_holds_the_pipes_does_not_hold_up_the_end() -> None:
    began = time.monotonic()
    code, out, _ = run("sh", "-c", "sleep 300 & echo $!", timeout=None)
    assert time.monotonic() - began < 60
    assert code == 0
    child = psutil.Process(int(out))
    assert child.is_running()
    child.kill()


def test_a_child_left_behind_that_writes_on_does_not_hold_up_the_end(tmp_path: Path) -> None:
    # The child writes only after its pid was written.
    script = "mkfifo go; (read line; exec yes) < go & echo $!; echo > go"
    code, out, _ = run("sh", "-c", script, cwd=tmp_path, timeout=None, limit=1000)
    assert code == 0
    # Nobody reads its output any longer, so it may have ended by itself.
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(out.split()[0])).kill()


def ended(*command: Any, timeout: float) -> list[int]:
    """Run an executable until its time limit; return the pids that it has printed."""
    with capturing(1000) as capture, pytest.raises(TaskTimeout, match=f"timeout of {timeout} s"):
        execute(command, os.getcwd(), {}, None, True, timeout)
    return [int(word) for word in capture.texts()[0].split()]


@pytest.mark.slow
def test_a_timeout_ends_a_process_and_its_children_though_they_ignore_sigterm() -> None:
    pids = ended(sys.executable, "-c", DEAF, timeout=1.5)
    assert len(pids) == 2
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid), f"{pid} still runs")


def test_a_timeout_ends_children_whose_parent_has_gone() -> None:
    # The shell between them ends at once: the child has no parent here, but the same group.
    (orphan,) = ended("sh", "-c", "(sleep 300 & echo $!); exec sleep 300", timeout=0.5)
    wait_until(lambda: not is_running(orphan), "the orphan still runs")


def test_a_process_that_ends_when_asked_is_not_waited_for_longer() -> None:
    began = time.monotonic()
    with pytest.raises(TaskTimeout):
        run("sh", "-c", "trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done", timeout=0.3)
    assert time.monotonic() - began < 30


def test_a_timeout_ends_what_has_left_the_tree() -> None:
    script = "(setsid sh -c 'echo $$; exec sleep 300' &) ; exec sleep 300"
    (daemon,) = ended("sh", "-c", script, timeout=0.5)
    assert not is_running(daemon)


@pytest.mark.slow
def test_a_timeout_says_how_long_it_ran_and_what_it_said_last() -> None:
    script = "for i in $(seq 30); do echo line $i; done; echo oh no >&2; trap 'echo bye' TERM; "
    with pytest.raises(TaskTimeout) as caught:
        run("sh", "-c", script + "while :; do sleep 0.05; done", timeout=0.5)
    lines = "\n".join(f"line {i}" for i in range(22, 31))
    said = str(caught.value)
    began, _, rest = said.partition(" s: it was ended after ")
    assert began == "sh ran for longer than its timeout of 0.5"
    seconds, _, rest = rest.partition(" s; ")
    # It did not end by SIGTERM.
    assert 2.5 <= float(seconds) < 30
    # Shells differ: some print that their children were terminated.
    assert rest.startswith(f"its last output: {lines}\nbye; its last errors: oh no")


def test_a_timeout_of_what_says_nothing_or_too_much() -> None:
    with pytest.raises(TaskTimeout) as caught:
        run("sleep", "300", timeout=0.05)
    assert str(caught.value).endswith(" s")
    with pytest.raises(TaskTimeout) as caught:
        python(
            "print('x' * 100_000, end='END', flush=True); import time; time.sleep(99)", timeout=1
        )
    assert str(caught.value).endswith("xxEND")
    assert len(str(caught.value)) < 2200


def test_a_process_has_a_session_of_its_own() -> None:
    sessions = python("import os; print(os.getsid(0) == os.getpid())")[1]
    assert sessions == "True"


@in_own_process
def test_nothing_is_left_open_and_nothing_is_left_running() -> None:
    run("true")
    this = psutil.Process()
    before = this.num_fds(), len(this.children()), threading.active_count()
    for _ in range(50):
        run("true", stdin="text")
        run("no-such-executable")
    for _ in range(5):
        with pytest.raises(TaskTimeout):
            run("sleep", "300", timeout=0.02)
        stopped("sh", "-c", "setsid sleep 300 & echo ready; wait")
    assert (this.num_fds(), len(this.children()), threading.active_count()) == before
    assert module.running_by_thread == {}
    assert sweep(OWNER, get_reaper().owner) == []


# -- being stopped ------------------------------------------------------------------------


#: The executable that each thread is about to run.
starting: dict[int, Executing] = {}


class NotifyingExecutable(RunningExecutable):
    """Notifies the test as soon as it can be stopped: it may end before the test looks."""

    def __enter__(self) -> RunningExecutable:
        entered = super().__enter__()
        ident = threading.get_ident()
        assert module.running_by_thread[ident] is self
        if executing := starting.pop(ident, None):
            executing.running = self
            executing.began.set()
        return entered


class Executing:
    """An executable for which a new thread waits."""

    running: RunningExecutable

    def __init__(self, *command: Any) -> None:
        self.raised: BaseException | None = None
        self.code: int | None = None
        self.began = threading.Event()
        self._command = command
        self.thread = threading.Thread(target=self._run)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "RunningExecutable", NotifyingExecutable)
            self.thread.start()
            assert self.began.wait(30)

    def _run(self) -> None:
        starting[threading.get_ident()] = self
        with capturing(1 << 20) as self.capture:
            try:
                self.code = execute(self._command, os.getcwd(), {}, None, True, None)
            except BaseException as error:
                self.raised = error

    def said(self) -> str:
        return self.capture.texts()[0]

    def join(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive()


def stopped(*command: Any, grace: float | None = None) -> tuple[Executing, float]:
    """Stop an executable once it has printed "ready".

    Returns the executable and how long its end took. `grace` replaces the time that it has to end.
    """
    returned = threading.Event()
    kill_tree = module.kill_tree

    def kill_after_return(pid: int, marker: str, seconds: float) -> None:
        assert returned.wait(30), "stop() has waited for the end"
        kill_tree(pid, marker, seconds if grace is None else grace)

    executing = Executing(*command)
    wait_until(lambda: "ready" in executing.said(), "it is not ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "kill_tree", kill_after_return)
        began = time.monotonic()
        assert executing.running.stop()
        returned.set()
        executing.join()
    assert type(executing.raised) is ProcessStopped
    assert executing.code is None
    assert sweep(MARKER, executing.running.marker) == []
    return executing, time.monotonic() - began


def test_it_can_be_stopped() -> None:
    # `stopped` would fail if the whole time were waited for.
    stopped("sh", "-c", "echo ready; sleep 300", grace=600)


def test_it_is_asked_to_end_before_it_is_made_to() -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    executing, _ = stopped("sh", "-c", script, grace=600)
    assert executing.said() == "ready\nbye"


@pytest.mark.slow
def test_all_that_is_deaf_to_that_is_stopped() -> None:
    executing, took = stopped(sys.executable, "-c", DEAF.replace("print(", "print('ready', "))
    assert took >= 2
    for pid in executing.said().split()[1:]:
        assert not is_running(int(pid))


def test_what_has_ended_cannot_be_stopped() -> None:
    executing = Executing("sh", "-c", "sleep 0.1")
    executing.join()
    assert (executing.code, executing.raised) == (0, None)
    assert executing.running.stop() is False
    assert executing.running.stop() is False


def test_it_is_stopped_but_once_whoever_asks() -> None:
    executing = Executing("sleep", "300")
    assert [executing.running.stop() for _ in range(3)] == [True] * 3
    executing.join()
    assert type(executing.raised) is ProcessStopped
    assert executing.running.stop() is True


def test_what_is_stopped_before_it_begins_does_not_go_on() -> None:
    # The thread is before, in or just after the start of the process.
    for _ in range(20):
        executing = Executing("sleep", "300")
        assert executing.running.stop()
        executing.join()
        assert type(executing.raised) is ProcessStopped


def test_a_stop_and_an_end_at_the_same_time_agree() -> None:
    outcomes = set()
    for delay in range(60):
        executing = Executing("sh", "-c", "setsid sleep 300 >/dev/null 2>&1 & exit 0")
        threading.Event().wait(delay / 10_000)
        was_stopped = executing.running.stop()
        executing.join()
        if was_stopped:
            assert type(executing.raised) is ProcessStopped
            # What it had left behind has ended, too.
            assert sweep(MARKER, executing.running.marker) == []
        else:
            assert (executing.code, executing.raised) == (0, None)
            # A process that an executable leaves behind is not ended. In the middle of its exec it
            # cannot be found.
            marker = executing.running.marker
            wait_until(lambda marker=marker: sweep(MARKER, marker), "nothing was left behind")
        outcomes.add(was_stopped)
    assert True in outcomes


def test_a_stop_after_the_time_limit_is_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    # It has not ended by itself within the grace.
    asked = threading.Event()
    ending = module.kill_tree

    def kill_tree(*arguments: Any) -> None:
        asked.set()
        assert module.running_by_thread[threading.get_ident()].stop()
        ending(*arguments)

    monkeypatch.setattr(module, "kill_tree", kill_tree)
    with pytest.raises(ProcessStopped):
        run("sleep", "300", timeout=0.05)
    assert asked.is_set()


def test_several_at_once_are_stopped_one_by_one() -> None:
    all_of_them = [Executing("sleep", "300") for _ in range(6)]
    assert len({each.running.marker for each in all_of_them}) == 6
    for each in all_of_them[::2]:
        assert each.running.stop()
        each.join()
    assert all(each.thread.is_alive() for each in all_of_them[1::2])
    for each in all_of_them[1::2]:
        assert each.running.stop()
        each.join()
    assert module.running_by_thread == {}

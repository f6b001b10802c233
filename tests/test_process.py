"""Executables: their exit codes, what they read and write, and that they end when they must."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from daskbatch.errors import ProcessFailed, TaskTimeout
from daskbatch.worker.capture import capturing
from daskbatch.worker.process import ADDED_VARIABLE, end_tree, execute


def run(*command: Any, limit: int = 1 << 20, **changes: Any) -> tuple[int, str, str]:
    """Run an executable; gives its exit code, its stdout and its stderr."""
    given: dict[str, Any] = {"cwd": os.getcwd(), "env": {}, "stdin": None, "check": False}
    with capturing(limit) as capture:
        code = execute(command, **{**given, "timeout": 60.0, **changes})
    return code, *capture.texts()


def python(script: str, *args: Any, **changes: Any) -> tuple[int, str, str]:
    return run(sys.executable, "-c", script, *args, **changes)


def wait_until(true: Callable[[], Any], what: str) -> None:
    """A guard against hanging: what is waited for is near, and has no event."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.01)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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
        ("x" * 300_000, "x" * 300_000),
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

#: Prints its own pid and that of a child in a session of its own, and goes on for long.
#: Both are deaf to SIGTERM.
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


def test_a_child_left_behind_that_writes_on_does_not_hold_up_the_end() -> None:
    code, out, _ = run("sh", "-c", "yes & echo $!", timeout=None, limit=1000)
    assert code == 0
    # Nobody reads what it writes any more, so it may have ended by itself.
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(out.split()[0])).kill()


def ended(*command: Any, timeout: float) -> list[int]:
    """Run an executable until its time is up; gives the pids that it has printed."""
    with capturing(1000) as capture, pytest.raises(TaskTimeout, match=f"timeout of {timeout} s"):
        execute(command, os.getcwd(), {}, None, True, timeout)
    return [int(word) for word in capture.texts()[0].split()]


def test_a_timeout_ends_a_process_and_its_children_though_they_ignore_sigterm() -> None:
    pids = ended(sys.executable, "-c", DEAF, timeout=1.5)
    assert len(pids) == 2
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid), f"{pid} still runs")


def test_a_timeout_ends_children_whose_parent_has_gone() -> None:
    # The shell between them ends at once: the child is nobody's child, but of the same group.
    (orphan,) = ended("sh", "-c", "(sleep 300 & echo $!); exec sleep 300", timeout=0.5)
    wait_until(lambda: not is_running(orphan), "the orphan still runs")


def test_a_process_that_ends_when_asked_is_not_waited_for_longer() -> None:
    began = time.monotonic()
    with pytest.raises(TaskTimeout):
        run("sh", "-c", "trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done", timeout=0.3)
    assert time.monotonic() - began < 30


def test_the_end_of_a_tree_that_has_ended_already_is_no_trouble() -> None:
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    end_tree(process)
    assert process.returncode == 0


def test_a_process_has_a_session_of_its_own() -> None:
    sessions = python("import os; print(os.getsid(0) == os.getpid())")[1]
    assert sessions == "True"


def test_no_file_descriptors_are_left_open() -> None:
    run("true")
    before = psutil.Process().num_fds()
    for _ in range(5):
        run("true", stdin="text")
        run("no-such-executable")
    with pytest.raises(TaskTimeout):
        run("sleep", "300", timeout=0.05)
    assert psutil.Process().num_fds() == before

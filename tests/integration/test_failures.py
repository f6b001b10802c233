"""A task that fails: its exception, its retries, and which other tasks still run."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.waiting import touch

from daskbatch import (
    Batch,
    DependencyFailed,
    ProcessFailed,
    SerializationError,
    TaskCrashed,
    TaskTimeout,
    WorkerLost,
)


class OddError(Exception):
    """Its `__init__` has other parameters than the `args` that it passes to its base."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code


def raise_odd() -> None:
    raise OddError(7, "odd")


def result_or_error(task: Any) -> Any:
    try:
        return task.get(timeout=60)
    except Exception as error:
        return error


# -- the task's own failure -------------------------------------------------------------


def test_the_same_exception_with_the_workers_traceback(batch: Batch) -> None:
    task = batch.function(raise_odd)
    task.run(timeout=60)
    for _ in range(2):
        with pytest.raises(OddError, match=r"odd \(7\)") as caught:
            task.get()
        assert caught.value.code == 7
        assert caught.value.args == ("odd (7)",)
        assert 'in raise_odd\n    raise OddError(7, "odd")' in str(caught.value.__cause__)
    shown = "".join(traceback.format_exception(caught.value))
    assert "in raise_odd" in shown


@pytest.mark.parametrize(("code", "exitcode"), [(3, 3), (None, 0), ("a text", 1)])
def test_sys_exit(batch: Batch, code: Any, exitcode: int) -> None:
    task = batch.function(sys.exit, code)
    task.run(timeout=60)
    with pytest.raises(TaskCrashed, match="task 'exit' called sys.exit") as caught:
        task.get()
    assert caught.value.exitcode == exitcode


def interrupt() -> None:
    raise KeyboardInterrupt


def test_keyboard_interrupt(batch: Batch) -> None:
    task = batch.function(interrupt)
    task.run(timeout=60)
    with pytest.raises(TaskCrashed, match="task 'interrupt' was interrupted"):
        task.get()


def test_the_traceback_says_which_of_many_tasks_it_is_of(batch: Batch) -> None:
    tasks = [batch.options(name=f"ratio {i % 2}").function(divmod, 1, i) for i in (0, 1, 2, 0)]
    program = batch.compile(tasks)
    program.run(timeout=60)
    with pytest.raises(ZeroDivisionError) as caught:
        program.get()
    first = str(caught.value.__cause__).lstrip('\n"').splitlines()[0]
    (address,) = {each for each in batch.client.nthreads() if each in first}
    said = f"task 'ratio 0[0]' (1), {tasks[0].uid}, on worker {address}, attempt 1:"
    assert first.removeprefix("daskbatch.TaskTraceback: ") == said
    with pytest.raises(ZeroDivisionError) as caught:
        tasks[3].get()
    assert tasks[3].uid in str(caught.value.__cause__)
    assert not hasattr(caught.value, "__notes__")
    assert len(caught.value.args) == 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (threading.Lock, "': its result, a lock, cannot be sent: TypeError"),
        (lambda: (n for n in ()), "its result, a generator, cannot be sent"),
        (lambda: {"a": threading.Lock()}, r"object; it is result\['a'\], a lock"),
    ],
)
def test_results_that_cannot_be_sent(batch: Batch, function: Any, said: str) -> None:
    task = batch.function(function)
    task.run(timeout=60)
    with pytest.raises(SerializationError, match=said):
        task.get()


def test_arguments_that_cannot_be_sent(batch: Batch) -> None:
    task = batch.function(len, [threading.Lock()], name="locked")
    behind = batch.function(str, task)
    batch.compile([task, behind]).run(timeout=60)
    with pytest.raises(
        SerializationError, match="'locked': its arguments cannot be sent: TypeErr"
    ) as caught:
        task.get()
    assert "; it is args[0][0], a lock: make it inside the function" in str(caught.value)
    with pytest.raises(DependencyFailed, match="did not run, because 'locked' failed"):
        behind.get()


def test_functions_that_cannot_be_sent(batch: Batch) -> None:
    lock = threading.Lock()
    task = batch.function(lambda: lock)
    task.run(timeout=60)
    with pytest.raises(
        SerializationError, match="'<lambda>': its function cannot be sent"
    ) as caught:
        task.get()
    said = "object; it is the closure variable lock, a lock: make it inside the function"
    assert said in str(caught.value)


class LoadsNowhere:
    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("not here")


def test_arguments_that_cannot_be_loaded(batch: Batch) -> None:
    task = batch.function(len, LoadsNowhere(), name="unloadable")
    task.run(timeout=60)
    said = "'unloadable': its arguments could not be loaded on the worker: RuntimeError: not here"
    with pytest.raises(SerializationError, match=said):
        task.get()


def test_results_that_cannot_be_loaded_here(batch: Batch) -> None:
    task = batch.function(LoadsNowhere)
    task.run(timeout=60)
    with pytest.raises(SerializationError, match="result of task 'LoadsNowhere' cannot be loaded"):
        task.get()


def test_a_function_of_a_module_that_workers_do_not_have(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "not_on_workers.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import not_on_workers  # type: ignore[import-not-found]

    monkeypatch.undo()  # the workers follow changes of sys.path
    task = batch.function(not_on_workers.f)
    task.run(timeout=60)
    with pytest.raises(
        SerializationError, match="its function could not be loaded.*not_on_workers"
    ):
        task.get()


def test_endless_recursion(batch: Batch) -> None:
    task = batch.function(_recurse, 0)
    task.run(timeout=60)
    with pytest.raises(RecursionError):
        task.get()


def _recurse(depth: int) -> int:
    return _recurse(depth + 1)


def test_a_time_limit_that_a_function_does_not_keep(batch: Batch) -> None:
    slow = batch.function(_wait, 0.3, name="slow", timeout=0.05)
    quick = batch.function(_wait, 0.0, timeout=30)
    batch.compile([slow, quick]).run(timeout=60)
    with pytest.raises(TaskTimeout, match="task 'slow': it ran for longer than its timeout"):
        slow.get()
    assert quick.get() is None


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


# -- retries ----------------------------------------------------------------------------


def fail_until(path: Path, attempts: int) -> int:
    with path.open("a") as file:
        file.write("x")
    print("attempt", len(path.read_text()))
    if len(path.read_text()) < attempts:
        raise ValueError("not yet")
    return len(path.read_text())


def test_retries(batch: Batch, tmp_path: Path) -> None:
    enough = batch.options(retries=2).function(fail_until, tmp_path / "a", 3)
    not_enough = batch.options(retries=1).function(fail_until, tmp_path / "b", 3)
    none = batch.function(fail_until, tmp_path / "c", 2)
    batch.compile([enough, not_enough, none]).run(timeout=60)
    assert enough.get() == 3
    assert enough.stdout.get() == "attempt 3", "the output is that of the last attempt"
    for task in (not_enough, none):
        with pytest.raises(ValueError, match="not yet"):
            task.get()
    assert [len((tmp_path / name).read_text()) for name in "abc"] == [3, 2, 1]


def test_no_retries_for_what_did_not_run(batch: Batch, tmp_path: Path) -> None:
    bad = batch.function(divmod, 1, 0)
    behind = batch.options(retries=3, name="behind").function(touch, tmp_path / "ran")
    behind_by_argument = batch.options(retries=3).function(str, bad)
    batch.compile([bad, behind_by_argument, behind]).run(timeout=60)
    with pytest.raises(DependencyFailed):
        behind_by_argument.get()
    behind.get()
    assert (tmp_path / "ran").exists()


# -- what it does to others -------------------------------------------------------------


def test_who_does_not_run_and_who_does(batch: Batch, tmp_path: Path) -> None:
    data, other = batch.write(tmp_path, "data"), batch.write(tmp_path, "other")
    read_data, read_other = batch.read(tmp_path, "data"), batch.read(tmp_path, "other")
    root = batch.function(raise_odd, writes=[data], reads=[read_other], name="root")
    by_argument = batch.function(str, root, name="by argument")
    by_reading = batch.function(touch, tmp_path / "raw", reads=[read_data], name="by reading")
    further = batch.function(str, by_reading, name="further")
    after_read = batch.function(touch, tmp_path / "war", writes=[other], name="after a read")
    after_write = batch.function(touch, tmp_path / "waw", writes=[data], name="after a write")
    reads_the_second = batch.function(touch, tmp_path / "second", reads=[read_data])
    independent = batch.function(touch, tmp_path / "independent")
    program = batch.compile(
        [
            root,
            by_argument,
            by_reading,
            further,
            after_read,
            after_write,
            reads_the_second,
            independent,
        ]
    )
    program.run(timeout=60)
    assert isinstance(result_or_error(root), OddError)
    for task in (by_argument, by_reading, further):
        error = result_or_error(task)
        assert isinstance(error, DependencyFailed)
        assert error.root == "root"
        assert isinstance(error.__cause__, OddError)
        assert str(error) == (
            f"task '{task.name}' did not run, because 'root' failed: OddError: odd (7)"
        )
        assert task.state == "skipped"
        assert task.stdout.get() == ""
    names = [task.get() for task in (after_read, after_write, reads_the_second, independent)]
    assert names == ["war", "waw", "second", "independent"]


def test_the_first_failure_is_the_root_of_a_long_chain(batch: Batch) -> None:
    task = batch.function(raise_odd, name="first")
    chain = [task]
    for _ in range(500):
        chain.append(batch.function(str, chain[-1]))
    batch.compile(chain).run(timeout=60)
    error = result_or_error(chain[-1])
    assert isinstance(error, DependencyFailed)
    assert error.root == "first"


def test_the_batch_goes_on(batch: Batch) -> None:
    for function in (raise_odd, sys.exit, interrupt, threading.Lock):
        bad, good = batch.function(function), batch.function(len, "abc")
        batch.compile([bad, good]).run(timeout=60)
        assert (bad.state, good.get()) == ("failed", 3)


# -- executables ------------------------------------------------------------------------


def test_exit_codes(batch: Batch) -> None:
    fails = batch.process("sh", "-c", "echo out; echo first >&2; echo last >&2; exit 3")
    tolerated = batch.process("sh", "-c", "exit 3", check=False)
    killed = batch.process("sh", "-c", "kill -TERM $$", check=False)
    missing = batch.process("no-such-executable", check=False)
    batch.compile([fails, tolerated, killed, missing]).run(timeout=60)
    with pytest.raises(
        ProcessFailed, match=r"task 'sh\[0\]': sh ended with exit code 3: last"
    ) as caught:
        fails.get()
    assert caught.value.returncode == 3
    assert caught.value.command[0] == "sh"  # type: ignore[index]
    assert caught.value.stderr == "first\nlast"
    assert fails.stdout.get() == "out"
    assert (tolerated.get(), killed.get(), missing.get()) == (3, -signal.SIGTERM, 127)
    assert "No such file" in missing.stderr.get()


def test_a_time_limit_ends_a_process_and_its_children(batch: Batch, tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 600 & echo $! > {tmp_path}/pid; echo begun; wait; sleep 600"
    task = batch.process("sh", "-c", script, timeout=0.3, name="stubborn")
    task.run(timeout=60)
    with pytest.raises(TaskTimeout, match="task 'stubborn': sh ran for longer than its timeout of"):
        task.get()
    assert task.stdout.get() == "begun"
    pid = int((tmp_path / "pid").read_text())
    # An orphan that nobody reaps stays as a zombie.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# -- workers that die -------------------------------------------------------------------


def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_its_workers_fails_alone() -> None:
    with Batch(num_workers=2) as batch:
        killer, other = batch.function(kill_worker), batch.function(len, "abc")
        batch.compile([killer, other]).run(timeout=60)
        with pytest.raises(WorkerLost, match="again: 3 workers have died under it") as caught:
            killer.get()
        assert (caught.value.exitcode, caught.value.attempt) == (-signal.SIGKILL, 3)
        assert other.get() == 3
        after = batch.function(len, "abcd")
        after.run(timeout=60)
        assert after.get() == 4


def test_a_worker_killed_from_outside_is_replaced() -> None:
    with Batch(num_workers=2) as batch:
        program = batch.compile([batch.function(_slow_square, number) for number in range(40)])
        program.start()
        program.tasks[0].wait(timeout=60)
        os.kill(next(iter(batch.client.run(os.getpid).values())), signal.SIGKILL)
        program.wait(timeout=60)
        assert program.get() == [number**2 for number in range(40)]


def _slow_square(number: int) -> int:
    threading.Event().wait(0.03)
    return number**2


# -- exceptions that refer to exceptions ------------------------------------------------


def fail_with_itself() -> None:
    error = ValueError("mine")
    error.other = KeyError("other")  # type: ignore[attr-defined]
    error.other.first = error  # type: ignore[attr-defined]
    raise error


def fail_with_a_chain(length: int) -> None:
    error = ValueError(0)
    for number in range(1, length):
        following = ValueError(number)
        following.original = error  # type: ignore[attr-defined]
        error = following
    raise error


def test_exceptions_that_refer_to_each_other(batch: Batch) -> None:
    circle, chain = batch.function(fail_with_itself), batch.function(fail_with_a_chain, 40)
    batch.compile([circle, chain]).run(timeout=60)
    with pytest.raises(ValueError, match="mine") as caught:
        circle.get()
    assert caught.value.other.first is caught.value  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="39") as caught:
        chain.get()
    assert caught.value.original.original.args == (37,)  # type: ignore[attr-defined]

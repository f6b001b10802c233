"""What a task's threads, pools, children and wrappers of its streams write belongs to the task."""

from __future__ import annotations

import codecs
import concurrent.futures
import io
import logging
import multiprocessing
import multiprocessing.pool
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from daskbatch import Batch

SECONDS = 60


def to_descriptor() -> None:
    print("before", flush=True)
    subprocess.run(["echo", "hi"], stdout=sys.stdout, check=True)
    print("between")
    sys.stdout.flush()
    subprocess.run(["echo", "there"], stdout=sys.stdout.buffer, check=True)
    print("after")


def in_bytes() -> None:
    for wrong in (b"bytes", bytearray(b"bytes"), 5, None):
        with pytest.raises(TypeError, match="must be str"):
            sys.stdout.write(wrong)  # type: ignore[arg-type]
    try:
        sys.stdout.buffer.write("text")  # type: ignore[arg-type]
    except TypeError:
        print("text")
    sys.stdout.flush()
    sys.stdout.buffer.write(memoryview(b"bytes\n"))
    sys.stdout.buffer.flush()


def by_wrappers() -> None:
    assert sys.stdout.line_buffering in (True, False)  # type: ignore[union-attr]
    assert (sys.stdout.name, sys.stderr.name) == ("<stdout>", "<stderr>")
    assert (sys.stdout.mode, sys.stdout.newlines) == ("w", None)
    assert not sys.stdout.isatty()
    wrapper = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
    wrapper.write("wrapped é\n")
    wrapper.flush()
    wrapper.detach()
    codecs.getwriter("utf-8")(sys.stdout.buffer).write("codec é\n")
    sys.stdout.flush()
    print("plain")


def by_threads() -> None:
    logger = logging.getLogger("daskbatch-test-threads")
    logger.propagate = False
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)

    def nested() -> None:
        inner = threading.Thread(target=print, args=("nested",))
        inner.start()
        inner.join()

    def log() -> None:
        logger.warning("logged")

    for target in (nested, log):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    logger.removeHandler(handler)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(print, "executor").result()
    with multiprocessing.pool.ThreadPool(1) as pool:
        pool.apply(print, ("pool",))
    timer = threading.Timer(0.0, print, ("timer",))
    timer.start()
    timer.join()


def by_forks() -> None:
    sys.stdout.flush()
    process = multiprocessing.get_context("fork").Process(target=print, args=("forked",))
    process.daemon = False
    process.start()
    process.join()
    print("exit code", process.exitcode)


def by_os_fork() -> None:
    for error in (None, SystemExit(), SystemExit(3), SystemExit("why"), ValueError("v")):
        print("begin", flush=True)
        pid = os.fork()
        if pid == 0:
            print("child", flush=True)
            if error is not None:
                raise error
            sys.exit()
        _, status = os.waitpid(pid, 0)
        print("exit code", os.waitstatus_to_exitcode(status))


WRITERS: list[tuple[Callable[[], Any], str]] = [
    (to_descriptor, "before\nhi\nbetween\nthere\nafter"),
    (in_bytes, "text\nbytes"),
    (by_wrappers, "wrapped é\ncodec é\nplain"),
    (by_threads, "nested\nlogged\nexecutor\npool\ntimer"),
    (by_forks, "forked\nexit code 0"),
    (
        by_os_fork,
        "\n".join(f"begin\nchild\nexit code {code}" for code in (0, 0, 3, 1, 1)),
    ),
]


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize(
    ("writer", "text"), WRITERS, ids=lambda each: getattr(each, "__name__", "")
)
def test_is_the_output_of_the_task(
    batch: Batch, writer: Callable[[], Any], text: str, isolation: str
) -> None:
    make = batch.options(isolation=isolation)
    tasks = [batch.function(print, "one"), make.function(writer), batch.function(print, "two")]
    batch.compile(tasks).run(timeout=SECONDS)
    assert tasks[1].get() is None
    assert [task.stdout.get() for task in tasks] == ["one", text, "two"]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_what_a_forked_child_raises_is_written_to_stderr(batch: Batch, isolation: str) -> None:
    task = batch.options(isolation=isolation).function(by_os_fork)
    task.run(timeout=SECONDS)
    lines = task.stderr.get().splitlines()
    assert lines[0] == "why"
    assert lines[-1] == "ValueError: v"
    assert any("in by_os_fork" in line for line in lines)


def return_in_child() -> str:
    if os.fork() == 0:
        return "child"
    os.wait()
    return "parent"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_forked_child_that_returns_runs_no_other_task(
    batch: Batch, isolation: str, tmp_path: Any
) -> None:
    make = batch.options(isolation=isolation)

    def append() -> None:
        with open(tmp_path / "runs", "a") as file:
            file.write("run\n")

    program = batch.compile([make.function(return_in_child), make.function(append)])
    program.run(timeout=SECONDS)
    assert program.result.get() == ["parent", None]
    assert (tmp_path / "runs").read_text() == "run\n"


def replace_stdout() -> None:
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
    print("through a wrapper")


def test_a_wrapper_that_a_task_leaves_loses_no_output(batch: Batch) -> None:
    tasks = [batch.function(replace_stdout), batch.function(print, "next")]
    batch.compile(tasks).run(timeout=SECONDS)
    assert [task.stdout.get() for task in tasks] == ["through a wrapper", "next"]

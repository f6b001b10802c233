"""Programs that end while an executor has calls: the calls finish, and no process remains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import nbclient
import nbformat
import psutil
import pytest
from support.waiting import wait_until

from daskbatch import Batch

#: Names, in the environment, all that a program has started.
MARK = "DASKBATCH_TEST_EXIT"

#: What programs start with. A cluster of one worker, so that calls wait for each other.
BEGINNING = """\
import sys, threading, time
from pathlib import Path
from daskbatch import BatchPoolExecutor

here = Path.cwd()

def work(name, seconds=0.2):
    time.sleep(seconds)
    (here / name).touch()
    return name

def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.005)

def block():
    (here / "begun").touch()
    wait_for("never")

def say_when_waiting_at_exit():
    def look():
        while True:
            frame, names = sys._current_frames()[main], []
            while frame is not None:
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            if "_shutdown" in names and "wait" in names:
                print("waiting", flush=True)
                return
            time.sleep(0.005)
    main = threading.get_ident()
    threading.Thread(target=look, daemon=True).start()

"""


class Program:
    """Runs programs in a directory, and finds the processes and files that remain."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = uuid.uuid4().hex
        self.environment = {**os.environ, MARK: self.mark}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, text: str) -> subprocess.Popen[str]:
        script = self.directory / "program.py"
        script.write_text(BEGINNING + textwrap.dedent(text))
        program = subprocess.Popen(
            [sys.executable, script],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(program)
        return program

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        program = self.start(text)
        out, err = program.communicate(timeout=60)
        return subprocess.CompletedProcess([], program.returncode, out, err)

    def left(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def files(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()} - {"program.py"}

    def end(self) -> None:
        """Kill the remaining processes, and let calls on a shared cluster end."""
        (self.directory / "never").touch()
        for program in self.started:
            if program.poll() is None:
                program.kill()
            for stream in (program.stdout, program.stderr):
                assert stream is not None
                stream.close()
            program.wait()
        for process in self.left():
            with suppress(psutil.Error):
                process.kill()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    found = Program(tmp_path)
    try:
        yield found
        wait_until(lambda: not found.left(), "processes of the program still run")
    finally:
        found.end()


@pytest.fixture
def on_shared(program: Program, batch: Batch) -> Program:
    """Programs whose executors are on the cluster that the tests share."""
    program.environment["DASKBATCH_CLUSTER"] = batch.client.scheduler.address
    return program


def read_line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


# -- the end of a program -----------------------------------------------------------------


def test_pending_calls_are_finished_at_exit(program: Program) -> None:
    done = program.run("""
        pool = BatchPoolExecutor(max_workers=1)
        for name in ("a", "b", "c"):
            pool.submit(work, name)
        pool.map(work, ["d", "e"])
        print("end")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
    assert program.files() == set("abcde")


def test_those_of_all_executors_are(on_shared: Program) -> None:
    done = on_shared.run("""
        pools = [BatchPoolExecutor(max_workers=1) for _ in range(3)]
        for n, pool in enumerate(pools):
            pool.submit(work, f"{n}")
            pool.submit(work, f"{n} again")
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert on_shared.files() == {"0", "1", "2", "0 again", "1 again", "2 again"}


def test_shutdown_without_waiting_leaves_the_calls_to_be_finished(program: Program) -> None:
    done = program.run("""
        pool = BatchPoolExecutor(max_workers=1)
        futures = [pool.submit(work, name) for name in "ab"]
        pool.shutdown(wait=False)
        print(any(future.done() for future in futures))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
    assert program.files() == {"a", "b"}


def test_a_block_that_does_not_wait_leaves_them_too(on_shared: Program) -> None:
    done = on_shared.run("""
        with BatchPoolExecutor(max_workers=1, wait_on_exit=False) as pool:
            future = pool.submit(work, "a")
        print(future.done())
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
    assert on_shared.files() == {"a"}


def test_what_has_not_begun_can_be_cancelled_instead(on_shared: Program) -> None:
    done = on_shared.run("""
        pool = BatchPoolExecutor(max_workers=1)
        futures = [pool.submit(work, str(n)) for n in range(20)]
        pool.submit(int)
        while not futures[0].running():
            assert not futures[0].done()
        pool.shutdown(wait=False, cancel_futures=True)
        print(sum(future.cancelled() for future in futures) > 10)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert "0" in on_shared.files()
    assert len(on_shared.files()) < 10


def test_no_call_is_taken_once_the_interpreter_ends(on_shared: Program) -> None:
    done = on_shared.run("""
        import atexit
        pool = BatchPoolExecutor(max_workers=1)

        @atexit.register
        def late():
            for give in (lambda: pool.submit(work, "late"), lambda: pool.map(work, ["late"])):
                try:
                    give()
                except RuntimeError as error:
                    print(error)
    """)
    said = "cannot schedule new futures after interpreter shutdown\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said * 2, "")
    assert on_shared.files() == set()


def test_nor_of_a_thread_that_outlives_the_program(on_shared: Program) -> None:
    done = on_shared.run("""
        pool = BatchPoolExecutor(max_workers=1)

        def go_on():
            try:
                while True:
                    pool.submit(abs, -1).result()
            except RuntimeError as error:
                print(error)

        threading.Thread(target=go_on).start()
    """)
    # For an instant before, it may be for want of a thread that none is taken.
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("interpreter shutdown\n")


def test_no_executor_is_made_once_the_interpreter_ends(program: Program) -> None:
    done = program.run("""
        def make_late():
            threading.main_thread().join()
            try:
                BatchPoolExecutor(max_workers=1)
            except RuntimeError as error:
                print(error)

        threading.Thread(target=make_late).start()
    """)
    said = "cannot schedule new futures after interpreter shutdown\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_a_future_can_be_asked_while_the_program_ends(on_shared: Program) -> None:
    done = on_shared.run("""
        import atexit
        pool = BatchPoolExecutor(max_workers=1)
        future = pool.submit(work, "a")
        results = pool.map(pow, [2, 3], [2, 2])
        large = pool.submit(bytes, 1_000_000)
        atexit.register(lambda: print(future.result(0), *results, len(large.result(0))))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a 4 9 1000000\n", "")


@pytest.mark.parametrize(
    ("how", "code"), [("sys.exit(3)", 3), ("raise KeyError('end')", 1), ("1 / 0", 1)]
)
def test_however_the_program_ends(on_shared: Program, how: str, code: int) -> None:
    done = on_shared.run(f"""
        with BatchPoolExecutor(max_workers=1) as pool:
            pool.submit(work, "a")
            other = BatchPoolExecutor(max_workers=1)
            other.submit(work, "b")
            {how}
    """)
    assert done.returncode == code
    assert on_shared.files() == {"a", "b"}


def test_a_fork_that_ends_leaves_the_executor_to_its_creator(program: Program) -> None:
    done = program.run("""
        import os, warnings
        warnings.simplefilter("ignore")
        pool = BatchPoolExecutor(max_workers=1)
        future = pool.submit(work, "a")
        pid = os.fork()
        if not pid:
            try:
                pool.submit(work, "b")
            except RuntimeError as error:
                sys.exit(7)
            sys.exit(8)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), future.result(30), flush=True)
        print(pool.submit(abs, -1).result(30))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7 a\n1\n", "")


@pytest.mark.parametrize("how", ["", "cancel_futures=True"])
def test_a_fork_does_not_wait_for_calls_of_its_parent(program: Program, how: str) -> None:
    done = program.run(f"""
        import os, warnings
        warnings.simplefilter("ignore")
        pool = BatchPoolExecutor(max_workers=1)
        future = pool.submit(wait_for, "go")
        results = pool.map(abs, [-1, -2])
        pid = os.fork()
        if not pid:
            with pool:
                for use in future.result, future.exception:
                    try:
                        use()
                    except RuntimeError as error:
                        print(type(error).__name__, flush=True)
                code = 7 + future.cancel()
                results.close()
                pool.shutdown({how})
            sys.exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), future.done(), flush=True)
        (here / "go").touch()
        print(future.result(30), *results, pool.submit(abs, -3).result(30))
    """)
    said = ["LifecycleError", "LifecycleError", "7 False", "None 1 2 3"]
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, said, "")


# -- executors that are dropped -----------------------------------------------------------


def test_one_that_is_dropped_finishes_its_calls(program: Program) -> None:
    done = program.run("""
        import gc, psutil
        pool = BatchPoolExecutor(max_workers=1)
        kept = pool.submit(work, "kept")
        pool.submit(work, "dropped")
        results = pool.map(work, ["mapped"])
        del pool
        gc.collect()
        print(kept.result(30), *results)
        wait_for("dropped")
        # Its cluster ends, though the program goes on.
        deadline = time.monotonic() + 30
        while psutil.Process().children(recursive=True) and time.monotonic() < deadline:
            time.sleep(0.01)
        print(len(psutil.Process().children(recursive=True)))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "kept mapped\n0\n", "")
    assert program.files() == {"kept", "dropped", "mapped"}


def test_one_that_is_dropped_at_the_very_end_finishes_its_calls(program: Program) -> None:
    done = program.run("""
        BatchPoolExecutor(max_workers=1).submit(work, "a")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert program.files() == {"a"}


# -- asyncio ------------------------------------------------------------------------------


def test_a_program_of_asyncio_may_leave_calls_behind(program: Program) -> None:
    done = program.run("""
        import asyncio

        async def main():
            pool = BatchPoolExecutor(max_workers=1)
            loop = asyncio.get_running_loop()
            print(await loop.run_in_executor(pool, work, "a"))
            pool.submit(work, "b")
            await pool.async_submit(work, "c")

        asyncio.run(main())
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")
    assert program.files() == {"a", "b", "c"}


def test_what_was_awaited_when_the_loop_ended_is_cancelled(on_shared: Program) -> None:
    done = on_shared.run("""
        import asyncio

        async def ask():
            await pool.submit(block)

        async def main():
            task = asyncio.create_task(ask())
            await asyncio.to_thread(wait_for, "begun")
            return "left"

        pool = BatchPoolExecutor(max_workers=1)
        print(asyncio.run(main()))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


# -- notebooks ----------------------------------------------------------------------------


def test_a_notebook_s_kernel_finishes_them_too(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = str(tmp_path_factory.mktemp("jupyter"))
    for name in ("JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, elsewhere)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv(MARK, program.mark)
    first = "pool = BatchPoolExecutor(max_workers=1)\nfuture = pool.submit(work, 'a')"
    cells = [BEGINNING, first, first.replace("'a'", "'b'"), "print(await future)"]
    cells.append("last = [pool.submit(work, 'c'), pool.submit(lambda: work('d'))]")
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    nbclient.NotebookClient(
        notebook,
        timeout=60,
        kernel_name="python3",
        resources={"metadata": {"path": str(program.directory)}},
    ).execute()
    assert notebook.cells[3].outputs[0].text == "b\n"
    assert all(output.get("name") != "stderr" for cell in notebook.cells for output in cell.outputs)
    wait_until(lambda: not program.left(), "processes of the program still run")
    assert program.files() == {"a", "b", "c", "d"}


# -- signals ------------------------------------------------------------------------------

WAITING_AT_EXIT = """
pool = BatchPoolExecutor(max_workers=1)
pool.submit(block)
for name in ("a", "b", "c"):
    pool.submit(work, name)
wait_for("begun")
say_when_waiting_at_exit()
"""

WAITING_FOR_A_RESULT = """
pool = BatchPoolExecutor(max_workers=1)
future = pool.submit(block)
wait_for("begun")
print("waiting", flush=True)
try:
    future.result()
finally:
    future.cancel()
"""

IN_A_BLOCK = """
with BatchPoolExecutor(max_workers=1) as pool:
    pool.submit(block)
    pool.submit(work, "a")
    wait_for("begun")
    print("waiting", flush=True)
"""


@pytest.mark.parametrize("to_group", [False, True], ids=["to the process", "to its group"])
def test_ctrl_c_ends_the_wait_at_exit(program: Program, to_group: bool) -> None:
    running = program.start(WAITING_AT_EXIT)
    assert read_line(running.stdout) == "waiting"
    (os.killpg if to_group else os.kill)(running.pid, signal.SIGINT)
    running.wait(30)
    assert program.files() == {"begun"}


def test_ctrl_c_ends_it_on_a_cluster_that_goes_on(on_shared: Program, batch: Batch) -> None:
    running = on_shared.start(WAITING_AT_EXIT)
    assert read_line(running.stdout) == "waiting"
    os.kill(running.pid, signal.SIGINT)
    running.wait(30)
    # Nothing of it is left on the workers either: they have room for this.
    after = [batch.function(abs, -n) for n in range(4)]
    batch.compile(after).run(30)
    assert [task.get() for task in after] == [0, 1, 2, 3]
    assert on_shared.files() == {"begun"}


@pytest.mark.parametrize("text", [WAITING_FOR_A_RESULT, IN_A_BLOCK], ids=["result", "with"])
def test_ctrl_c_ends_other_waits(on_shared: Program, text: str) -> None:
    running = on_shared.start(text)
    assert read_line(running.stdout) == "waiting"
    for _ in range(5):
        # Once for the wait here, and once for that at exit, as with other executors.
        os.kill(running.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            running.wait(2)
            break
    assert running.returncode
    assert running.stderr is not None
    assert "KeyboardInterrupt" in running.stderr.read()
    assert on_shared.files() == {"begun"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_other_signals_end_it_and_leave_nothing(program: Program, number: int) -> None:
    running = program.start(WAITING_AT_EXIT)
    assert read_line(running.stdout) == "waiting"
    os.kill(running.pid, number)
    assert running.wait(30) == -number

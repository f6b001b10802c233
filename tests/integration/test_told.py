"""What went wrong is told: programs run as users run them, and all that they write is read.

Each program is a file, a notebook, or comes on the standard input.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

PROGRAM = """\
from daskbatch import Batch

def clean(path):
    if path in ("data/3.csv", "data/4.csv"):
        raise ValueError("bad line\\nin " + path)
    return path

def use(path):
    return path

with Batch(num_workers=1) as batch:
    cleaned = [batch.function(clean, f"data/{n}.csv") for n in range(5)]
    batch.compile([*cleaned, *(batch.function(use, task) for task in cleaned)]).run()
    print("all done")
"""

WARNED = """\
{place}: TasksFailedWarning: 2 tasks failed, and 2 tasks did not run because of that:
  'clean[3]' ('data/3.csv'): ValueError: bad line ...
  'clean[4]' ('data/4.csv'): ValueError: bad line ...
To handle failures: result.get() of each task, run(check=True), or failures of a compiled task.
"""


def run(
    directory: Path, program: str, *options: str, stdin: bool = False, code: int = 0
) -> tuple[str, str]:
    """Run a program as a file, or on the standard input; return its stdout and its stderr."""
    path = directory / "prögram 1.py"
    path.write_text(program, encoding="utf-8")
    with path.open() as file:
        done = subprocess.run(
            [sys.executable, *options, "-" if stdin else path.name],
            stdin=file if stdin else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=directory,
            timeout=100,
            check=False,
        )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


# -- failures that nobody has looked at -------------------------------------------------------


def test_a_file(tmp_path: Path) -> None:
    out, err = run(tmp_path, PROGRAM)
    assert out == "all done\n"
    place = f"{tmp_path}/prögram 1.py:11"
    assert err == WARNED.format(place=place) + "  with Batch(num_workers=1) as batch:\n"


def test_the_standard_input(tmp_path: Path) -> None:
    out, err = run(tmp_path, PROGRAM, stdin=True)
    assert out == "all done\n"
    assert err == WARNED.format(place="<stdin>:11")


STOPPED = """\
from daskbatch import Batch, TasksFailedWarning

def fail():
    raise ValueError

batch = Batch(num_workers=1)
try:
    with batch:
        batch.function(fail).run()
except TasksFailedWarning:
    print(batch.closed, batch._session.ended)
"""


def test_warnings_as_errors_end_the_batch_first(tmp_path: Path) -> None:
    assert run(tmp_path, STOPPED, "-W", "error") == ("True True\n", "")


RAISED = """\
from daskbatch import Batch

def fail():
    raise ValueError

try:
    with Batch(num_workers=1) as batch:
        batch.function(fail).run()
        raise KeyError("own")
except KeyError as error:
    print(repr(error))
"""


def test_a_block_that_raises_ends_with_its_own_exception(tmp_path: Path) -> None:
    assert run(tmp_path, RAISED) == ("KeyError('own')\n", "")


LOOKED = """\
from daskbatch import Batch, DependencyFailed, TasksFailed

def fail(n):
    raise ValueError(n)

with Batch(num_workers=1) as batch:
    def start():
        program = batch.compile([batch.function(fail, n) for n in range(2)])
        program.run()
        return program

    def caught(function, kind=ValueError):
        try:
            function()
        except kind:
            return
        raise SystemExit("nothing was raised")

    for task in start().tasks:
        caught(task.get)
    for task in start().tasks:
        caught(task.result.get)
    for task in start().tasks:
        assert isinstance(task.as_future().exception(), ValueError)
    for task in start().tasks:
        caught(task.as_future().result)
    assert len(start().failures) == 2
    assert start().info.state == "failed"
    assert [task.info.error for task in start().tasks] == ["ValueError: 0", "ValueError: 1"]
    caught(lambda: start().wait(check=True), TasksFailed)
    root = batch.function(fail, 0)
    needs = batch.function(str, root)
    batch.compile([root, needs]).run()
    caught(needs.get, DependencyFailed)
    cancelled = batch.function(fail, 0)
    cancelled.cancel()
"""


def test_what_was_looked_at_is_not_told(tmp_path: Path) -> None:
    assert run(tmp_path, LOOKED, "-W", "error") == ("", "")


UNLOOKED = """\
from daskbatch import Batch

def fail(n):
    raise ValueError(n)

batch = Batch(num_workers=1)
root = batch.function(fail, 0)
batch.compile([root, batch.function(str, root.result)]).run()
root.stdout.get(), root.state, root.why()
batch.fence()
batch.fence()
batch.function(fail, 7).run()
print("end")
"""


def test_a_fence_tells_once_and_the_end_of_the_program_the_rest(tmp_path: Path) -> None:
    _, err = run(tmp_path, UNLOOKED)
    first, second = err.split("TasksFailedWarning: ")[1:]
    assert first.startswith("1 task failed, and 1 task did not run because of that:\n  'fail' (0)")
    assert second.startswith("1 task failed:\n  'fail' (7): ValueError: 7\n")


# -- missing files ------------------------------------------------------------------------------

MISSING = """\
from pathlib import Path
from daskbatch import Batch

Path("data").mkdir()
Path("data/one.csv").write_text("1")

def nothing(path):
    pass

with Batch(num_workers=1) as batch:
    def task(path, read=(), write=()):
        return batch.function(nothing, path, reads=[batch.read(each) for each in read],
                              writes=[batch.write(each) for each in write])
    program = batch.compile([
        task("a", read=["data/on.csv"]),
        task("b", read=["data/*.csv"]),
        task("c", write=["out"]),
        task("d", write=["out"]),
        task("e", read=["out", "data", "data/one.csv"]),
        task("f", read=["ouT/x"], write=["made/x"]),
    ])
    program.run()
"""


def test_declarations_that_do_not_fit(tmp_path: Path) -> None:
    _, err = run(tmp_path, MISSING)
    here = str(tmp_path)
    said = err.replace(here, "<here>")
    missing = "which is not there, and which no task before it writes"
    assert said.split("<here>/prögram 1.py:14: ProgramWarning: ")[1].startswith(
        "4 declarations of the program 'nothing' may be wrong:\n"
        f"  'nothing[0]' reads <here>/data/on.csv, {missing}; did you mean <here>/data/one.csv?\n"
        f"  'nothing[1]' reads <here>/data/*.csv, {missing}; it is taken as the name of one file, "
        "and not as a pattern\n"
        "  'nothing[2]' writes <here>/out, and 'nothing[3]' writes it again before any task reads "
        "it\n"
        f"  'nothing[5]' reads <here>/ouT/x, {missing}"
    )
    assert (
        "<here>/prögram 1.py:10: MissingOutputWarning: 3 tasks declared to write what was not "
        "there when they had succeeded:\n"
        "  'nothing[2]': <here>/out\n"
        "  'nothing[3]': <here>/out\n"
        "  'nothing[5]': <here>/made/x\n"
    ) in said
    assert (
        "<here>/prögram 1.py:10: MissingInputWarning: 4 tasks declared to read what was not "
        "there when they began:\n"
    ) in said


HINT = """\
import traceback
from pathlib import Path
from daskbatch import Batch

def make(path):
    Path(path).write_text("1")

with Batch(num_workers=1) as batch:
    gone = batch.function(Path.read_text, Path("sub/x"))
    made = batch.function(make, "x", writes=batch.write("x"))
    late = batch.function(Path.read_text, Path("late"))
    cat = batch.process("cat", "d/y")
    writers = [batch.function(int, writes=batch.write(each)) for each in ("sub", "late", "d/y")]
    batch.compile([writers[0], writers[2], gone, made, late, cat, writers[1]], check=None).run()
    for task in (gone, late, cat):
        try:
            task.get()
        except Exception as error:
            print(type(error).__name__, *error.__notes__)
"""


def test_an_error_that_a_declaration_explains(tmp_path: Path) -> None:
    out, _ = run(tmp_path, HINT, "-W", "ignore")
    assert out.replace(str(tmp_path), "<here>").splitlines() == [
        "FileNotFoundError task 'int[0]' of the same program writes <here>/sub, and so all that is "
        "below it as <here>/sub/x, and task 'read_text[0]' does not declare to read it, so it "
        "need not wait: add reads=[batch.read('<here>/sub/x')]",
        "FileNotFoundError task 'int[2]', which comes later in the program, writes <here>/late: "
        "put it before task 'read_text[1]', and add reads=[batch.read('<here>/late')]",
        "ProcessFailed task 'int[1]' of the same program writes <here>/d/y, and task 'cat' does "
        "not declare to read it, so it need not wait: add reads=[batch.read('<here>/d/y')]",
    ]


# -- tracebacks ---------------------------------------------------------------------------------

TRACEBACK = """\
import traceback
from daskbatch import Batch

def inner(x):
    # what follows fails
    return 1 / x

async def outer(x):
    try:
        inner(x)
    except ZeroDivisionError as error:
        error.add_note("a note")
        raise ExceptionGroup("some", [error, KeyError("k")]) from None

with Batch(num_workers=1) as batch:
    for isolation in ("thread", "process"):
        task = batch.options(isolation=isolation, retries=1).function(outer, 0)
        task.run()
        try:
            task.get()
        except ExceptionGroup as error:
            print(error.__cause__)
            print("@@")
"""


@pytest.mark.parametrize("stdin", [False, True])
def test_tracebacks_show_the_users_frames_with_their_lines(tmp_path: Path, stdin: bool) -> None:
    out, err = run(tmp_path, TRACEBACK, stdin=stdin)
    assert err == ""
    for shown in out.split("@@\n")[:2]:
        heading, *lines = shown.splitlines()
        assert re.fullmatch(
            r"task 'outer' \(0\), \w+-\d+, on worker tcp://[\d.:]+, attempt 2:", heading
        )
        text = "\n".join(lines)
        assert "    inner(x)" in text
        assert "    return 1 / x" in text
        assert "a note" in text
        assert "KeyError: 'k'" in text
        files = {Path(name).name for name in re.findall(r'File "([^"]*)"', text)}
        assert files == {"<stdin>" if stdin else "prögram 1.py"}


def test_a_program_from_a_pipe_tells_lines_and_columns(tmp_path: Path) -> None:
    # Python cannot read it again: no source line can be shown.
    done = subprocess.run(
        [sys.executable, "-"],
        input=TRACEBACK,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.split("@@\n")
    assert len(shown) == 3
    for text in shown[:2]:
        assert re.search(
            r'File "<stdin>", line 6, in inner\n[ |]*\[column 12 to 16; Python cannot read a pipe '
            r"again to show the line\]\n",
            text,
        ), text


CELLS = [
    "from daskbatch import Batch\n"
    "import psutil\n"
    "def count():\n"
    "    return len([p for p in psutil.Process().children(recursive=True)\n"
    "                if p.status() != psutil.STATUS_ZOMBIE])",
    "batch = Batch(num_workers=1)\nbatch",
    "first = count()",
    "batch = Batch(num_workers=1)\nbatch",
    "import time\n"
    "end = time.monotonic() + 60\n"
    "while count() > first and time.monotonic() < end:\n"
    "    time.sleep(0.05)\n"
    "print(count() == first)",
    "def ratio(x):\n    # divides\n    return 1 / x\n\n"
    "program = batch.compile([batch.function(ratio, n) for n in range(2)])\nprogram.run()\n"
    "program.tasks[0].get()",
    "program.run()",
    "again = program.again()\nagain.run()\nprint([task.state for task in again.tasks])",
    "batch.fence()",
    "batch.close(); batch.join()",
    "shown = Batch(num_workers=1)\nshown.function(ratio, 0).run()\nshown",
    "shown = Batch(num_workers=1)\nshown.function(ratio, 0.0).run()",
    "shown = None",
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The cells of a notebook that was run, with their outputs."""
    directory = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(directory / "jupyter"))
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
        patch.setenv("IPYTHONDIR", str(directory / "jupyter"))
        nbclient.NotebookClient(
            notebook,
            timeout=100,
            kernel_name="python3",
            allow_errors=True,
            resources={"metadata": {"path": str(directory)}},
        ).execute()
    return notebook.cells


def shown(cell: Any) -> str:
    """Return all that a cell has shown, as text."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback)))
    return "".join(texts)


def test_a_batch_that_a_cell_has_replaced_ends(cells: Any) -> None:
    assert shown(cells[4]) == "True\n"


def test_a_notebook_shows_the_lines_of_its_functions(cells: Any) -> None:
    text = shown(cells[5])
    heading = r"TaskTraceback: task 'ratio\[0\]' \(0\), \S+, on worker \S+, attempt 1:\n"
    assert re.search(heading, text)
    assert "in ratio\n    return 1 / x\n" in text


def test_a_notebook_that_runs_a_program_twice_is_told_of_again(cells: Any) -> None:
    assert "again() returns a fresh copy of it, to be started" in shown(cells[6])
    assert shown(cells[7]) == "['failed', 'done']\n"


def test_a_notebook_tells_failures(cells: Any) -> None:
    text = shown(cells[8])
    assert "TasksFailedWarning: 1 task failed:\n  'ratio[0]' (0): ZeroDivisionError" in text


def test_a_notebook_tells_failures_in_a_batch_that_it_drops(cells: Any) -> None:
    # The first one was shown, and is kept by IPython; the second one is deleted.
    for cell, argument in ((cells[11], "0"), (cells[12], "0.0")):
        text = shown(cell)
        assert text.count("Warning") == 1
        said = f"TasksFailedWarning: 1 task failed:\n  'ratio' ({argument}): ZeroDivisionError"
        assert said in text
        assert text.endswith("\n  shown = Batch(num_workers=1)\n")


# -- Ctrl-C -------------------------------------------------------------------------------------

INTERRUPTED = """\
import os, signal, sys, threading, time
from pathlib import Path
from daskbatch import Batch

signal.signal(signal.SIGINT, signal.default_int_handler)

def wait(n):
    Path(f"began-{n}").touch()
    while True:
        time.sleep(0.01)

def press_ctrl_c():
    # Once the main thread waits in a lock of Python.
    main = threading.main_thread().ident
    while True:
        names, frame = [], sys._current_frames()[main]
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        if names[0] == "wait" and "wait_attentively" in names:
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.01)

batch = Batch(num_workers=1)
program = batch.compile([batch.function(wait, n) for n in range(3)], name="mine")
program.start()
while not Path("began-0").exists():
    time.sleep(0.01)
for n in range(2):
    threading.Thread(target=press_ctrl_c).start()
    try:
        program.wait()
    except KeyboardInterrupt as error:
        print(error)
program.wait()
print({task.state for task in program.tasks})
batch.terminate()
"""


def test_ctrl_c_ends_the_wait_and_a_second_one_the_tasks(tmp_path: Path) -> None:
    out, err = run(tmp_path, INTERRUPTED)
    assert out == (
        "the wait for 'mine' has ended, and 3 tasks go on while the Batch is open: "
        "program.cancel() stops them, and so does Ctrl-C in another wait for it\n"
        "3 tasks were stopped, by a second Ctrl-C in a wait for 'mine'\n"
        "{'cancelled'}\n"
    )
    assert err == ""


# -- a program that makes no progress -------------------------------------------------------------

STALLED = """\
import dask
from distributed import LocalCluster
from daskbatch import Batch

dask.config.set({"daskbatch.stall-timeout": "100ms", "daskbatch.unmet-timeout": "1h"})
with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
    with Batch(cluster.scheduler_address) as batch:
        task = batch.options(resources={"GPU": 2}).function(len, "four")
        task.start()
        try:
            task.wait(timeout=5)
        except TimeoutError:
            task.cancel()
"""


def test_a_program_that_waits_for_nothing_says_for_what(tmp_path: Path) -> None:
    _, err = run(tmp_path, STALLED)
    assert re.search(
        r"BatchWarning: no task has run for 0.1 s: 'len' \('four'\) asks for the resources "
        r"\{'GPU': 2.0\}; the largest worker has \{'GPU': 0\}\.",
        err,
    ), err

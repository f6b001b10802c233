"""Warnings come from the line of the user's code, once; and what new users get wrong is explained.

The programs run as users run them, and all that they write is read.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

LINES = """\
import contextlib, random, threading, warnings
from concurrent.futures import ThreadPoolExecutor
from daskbatch import Batch, BatchPoolExecutor

def fail(n):
    raise ValueError(n)

def helper(batch):
    batch.fence()  # helper

def told():
    told = [f"{each.category.__name__} {lines[each.lineno - 1].partition('# ')[2].strip()}"
            for each in found if each.filename == __file__]
    assert len(told) == len(found), [str(each) for each in found]
    found.clear()
    print(*told, sep=", ")

lines = open(__file__).readlines()
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("default")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Batch(num_workers=1))  # made
        first.function(fail, 1).run()
        helper(first)
        told()
        first.function(fail, 1).run()
        thread = threading.Thread(target=helper, args=(first,))
        thread.start(), thread.join()
        told()
        first.function(fail, 1).run()
        thread = threading.Thread(target=first.fence)
        thread.start(), thread.join()
        told()
        first.function(fail, 1).run()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(first.fence).result()
        told()
        for n in range(3):
            first.function(random.random)  # a loop
        told()
        with BatchPoolExecutor(cluster=first.client) as executor:
            for n in range(3):
                executor.submit(random.random).result()  # executor
            list(executor.map(random.gauss, range(3), range(3)))  # map
        told()
        def inner(batch):
            batch.function(fail, 9).run()  # in a task
        task = first.function(inner, first)
        task.run()
        print(*[line for line in task.stderr.get().splitlines() if "# " in line])
        first.function(fail, 1).run()
        stack.close()  # the stack's end
        told()
kept = Batch(num_workers=1)  # kept
kept.function(fail, 5).run()
kept.compile([kept.function(str, 1)], check=None).run()
"""

SAID = """\
TasksFailedWarning helper
TasksFailedWarning helper
TasksFailedWarning made
TasksFailedWarning made
BatchWarning a loop
BatchWarning executor, BatchWarning map
  batch.function(fail, 9).run()  # in a task
TasksFailedWarning the stack's end
"""


def run(directory: Path, program: str) -> tuple[str, str]:
    """Run a program as a file; return its stdout and its stderr."""
    path = directory / "prögram 1.py"
    path.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, path.name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=directory,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_warnings_name_the_line_of_the_users_code_once(tmp_path: Path) -> None:
    out, err = run(tmp_path, LINES)
    assert out == SAID
    number = next(n for n, line in enumerate(LINES.splitlines(), 1) if line.startswith("kept = "))
    assert err == (
        f"{tmp_path}/prögram 1.py:{number}: TasksFailedWarning: 1 task failed:\n"
        "  'fail' (5): ValueError: 5\n"
        "To handle failures: result.get() of each task, run(check=True), or failures of a compiled "
        "task.\n"
        "  kept = Batch(num_workers=1)  # kept\n"
    )


MISTAKES = """\
from pathlib import Path
from daskbatch import Batch

Path("data").mkdir()
Path("data/one.csv").write_text("1")

def count(path):
    return len(open(path).readlines())

def clean(n, *, where=""):
    if n == 3:
        raise Odd(n, where="here")
    return n

class Odd(Exception):
    def __init__(self, code, *, where):
        super().__init__(f"code {code} at {where}")
        self.code, self.where = code, where

def attempt(function):
    try:
        function()
    except Exception as error:
        print(type(error).__name__, error, *getattr(error, "__notes__", ()), sep=" | ")

with Batch(num_workers=1) as batch:
    typo = batch.function(count, "data/on.csv", reads=batch.read("data/on.csv"))
    typo.run()
    attempt(typo.get)
    undeclared = batch.compile([batch.function(count, "data/on.csv")])
    undeclared.run()
    attempt(undeclared.get)
    attempt(lambda: batch.function(count, "x", read=batch.read("x")))
    attempt(lambda: batch.function(count, "x", reads="x"))
    attempt(lambda: batch.function(count, "x", writes=["x", Path("y")]))
    tried = batch.options(retries=1)
    attempt(lambda: tried.function(count, "x", writes=[batch.write("x")]))
    attempt(lambda: tried.function(dict, a="x", writes=[batch.write("x")]))
    attempt(lambda: batch.process("ls", shell=True))
    attempt(lambda: batch.compile(typo, typo))
    attempt(lambda: batch.compile([count]))
    attempt(lambda: batch.function(count("data/one.csv")))
    same_name = [batch.function(clean, n, name="clean") for n in range(5)]
    program = batch.compile(same_name)
    program.run()
    print(*program.failures)
    attempt(same_name[3].get)
    attempt(program.run)
    attempt(lambda: batch.function(clean, 1).get())
    never = batch.function(str, 1, writes=batch.write("never"))
    never.run()
    for shell in ("cat data/one.csv", "catt"):
        attempt(lambda: batch.process(shell).run(check=True))
with Batch(num_workers=1, strict=True) as batch:
    attempt(lambda: batch.function(count, "x", reads=batch.read("data/on.csv")).run(check=True))
"""

EXPLAINED = """\
FileNotFoundError | [Errno 2] No such file or directory: 'data/on.csv' | data/on.csv is not there; \
did you mean data/one.csv?
FileNotFoundError | [Errno 2] No such file or directory: 'data/on.csv' | data/on.csv is not there; \
did you mean <here>/data/one.csv?
SpecError | read= is neither a parameter of the function nor of Batch.function: did you mean reads=?
SpecError | reads= is 'x': give reads=batch.read('x')
SpecError | writes= holds 'x': give batch.write('x')
SpecError | writes= is no parameter of the function; behind options() all keywords are the \
function's: write options(writes=…).function(…)
SpecError | there is an access among the arguments (write of <here>/x): write function(f, (a, b), \
[reads…], [writes…]), or function(f, a, b, reads=[…], writes=[…]); behind options(): \
options(reads=[…], writes=[…]).function(f, a, b)
TypeError | Batch.process() got an unexpected keyword argument 'shell'
GraphError | compile takes a list of tasks, not <Task 'count' failed>: put tasks into brackets, \
compile([...])
GraphError | compile takes tasks; <function count> is not a task: batch.function(...) makes a task \
of it
SpecError | cannot call 1: give a function first, then its arguments; for an executable use \
batch.process(...)
<Task 'clean[3]' failed>
Odd | code 3 at here
LifecycleError | the program 'clean' has been started already, and starts once: again() returns a \
fresh copy of it, to be started
LifecycleError | task 'clean' has not been started: call start() or run() of it first
ProcessFailed | task 'one.csv': cat data/one.csv ended with exit code 127: cat \
data/one.csv: No such file or directory; there is no shell: pass the arguments separately: \
process('cat', 'data/one.csv')
ProcessFailed | task 'catt': catt ended with exit code 127: catt: No such file or directory; it is \
in no directory of the worker's PATH
MissingInput | task 'count' declares to read <here>/data/on.csv, which was not there when it was \
to begin; did you mean <here>/data/one.csv?
"""


def test_the_mistakes_of_a_new_user_are_explained(tmp_path: Path) -> None:
    out, err = run(tmp_path, MISTAKES)
    said = re.sub(r" at 0x[0-9a-f]+>", ">", out.replace(str(tmp_path), "<here>"))
    assert said == EXPLAINED
    warned = err.replace(str(tmp_path), "<here>")
    assert (
        "MissingInputWarning: 1 task declared to read what was not there when it began:\n"
        "  'count': <here>/data/on.csv; did you mean <here>/data/one.csv?\n"
    ) in warned
    assert (
        "MissingOutputWarning: 1 task declared to write what was not there when it had succeeded:\n"
        "  'str': <here>/never\n"
    ) in warned
    assert "TasksFailedWarning" not in warned


DEBUGGED = """\
import concurrent.futures
from daskbatch import Batch, CompiledTask, Task

def inner(x):
    return 1 / x

def outer(x, *, y):
    return inner(x) + y

with Batch(num_workers=1) as batch:
    zero = batch.function(int, 0)
    task: Task = batch.function(outer, zero, y=3)
    program: CompiledTask = batch.compile([zero, task])
    program.run()
    try:
        concurrent.futures.wait([task])
    except AttributeError as error:
        print(error)
    try:
        task.debug()
    except ZeroDivisionError:
        print("raised again")
"""


def test_debug_in_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(DEBUGGED)
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "program.py"], stdin=end, stdout=end, stderr=end, cwd=tmp_path
    )
    os.close(end)
    written, answers = b"", [b"p x\n", b"up\n", b"p y\n", b"q\n"]
    # At the end of the process, Linux reports an error of the terminal.
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 4096):
            written += data
            while answers and written.count(b"(Pdb) ") > 4 - len(answers):
                os.write(terminal, answers.pop(0))
    os.close(terminal)
    assert process.wait(timeout=100) == 0, written
    lines = written.decode().replace("\r", "").splitlines()
    assert lines[0] == (
        "task 'outer' is not a future of concurrent.futures: give the functions of "
        "concurrent.futures task.as_future(), or use daskbatch.as_completed(tasks)"
    )
    assert lines[1:] == [
        f"> {tmp_path}/program.py(5)inner()",
        "-> return 1 / x",
        "(Pdb) p x",
        "0",
        "(Pdb) up",
        f"> {tmp_path}/program.py(8)outer()",
        "-> return inner(x) + y",
        "(Pdb) p y",
        "3",
        "(Pdb) q",
        "raised again",
    ]

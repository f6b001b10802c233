"""A template that is imported as a function: each call makes an ordinary task."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.paths import EXAMPLES

from daskbatch import (
    Batch,
    CommunicationDomain,
    CommunicationObject,
    SpecError,
    SubmitAfterCloseError,
    TaskTimeout,
    TemplateError,
)
from daskbatch.batch.compiled import CompiledTask
from daskbatch.batch.task import Task

Import = Callable[..., Callable[..., Task]]


@pytest.fixture(scope="module")
def by_hand(shared_batch: Batch) -> Iterator[Batch]:
    """A Batch on the shared cluster without background batching."""
    with Batch(shared_batch.client, background_batching=False) as batch:
        yield batch


@pytest.fixture
def batch(by_hand: Batch) -> Iterator[Batch]:
    yield by_hand
    by_hand.fence(timeout=60)


@pytest.fixture
def imported(batch: Batch, tmp_path: Path) -> Import:
    """Import a template that is given as a text."""

    def import_text(text: str, *args: Any, **kwargs: Any) -> Callable[..., Task]:
        path = tmp_path / "my.yml"
        path.write_text(text, encoding="utf-8")
        return batch.import_func(path, *args, **kwargs)

    return import_text


def edges(program: CompiledTask) -> set[tuple[int, int]]:
    return {(edge.before, edge.after) for edge in program.graph.edges()}


def results(batch: Batch, tasks: list[Task]) -> list[Any]:
    batch.compile(tasks).run(timeout=60)
    return [task.get() for task in tasks]


# -- functions ----------------------------------------------------------------------------

APPEND = """
import_args: [append, base_dir, name_of, path_of]
args: [i]
kwargs: {sep: separator}
type: function
executables:
  - target: append
    args: [base_dir, i]
    kwargs: {separator: separator}
reads:
  - files:
      - [base_dir, {name_of: [i, 0]}]
writes:
  - files:
      - {path_of: [base_dir, {name_of: [i, 1]}]}
name: append_task
"""


def append(base_dir: Path, i: int, *, separator: str) -> str:
    before = base_dir / f"file_{i}"
    text = f"{before.read_text()}{separator}{i}" if i else "0"
    (base_dir / f"file_{i + 1}").write_text(text)
    return text


def test_a_chain_through_files(batch: Batch, imported: Import, tmp_path: Path) -> None:
    link = imported(
        APPEND,
        append,
        tmp_path,
        lambda i, j: f"file_{i + j}",
        lambda directory, name: directory / name,
    )
    tasks = [link(i, sep=",") for i in range(20)]
    assert {task.state for task in tasks} == {"created"}
    assert {task.name for task in tasks} == {"append_task"}
    program = batch.compile(tasks)
    assert edges(program) == {(i, i + 1) for i in range(19)}
    program.run(timeout=60)
    assert tasks[-1].get() == ",".join(map(str, range(20)))


def test_files_of_templates_are_files_of_tasks(
    batch: Batch, imported: Import, tmp_path: Path
) -> None:
    # The original kept the two apart, and ordered nothing between them.
    text = """
import_args: [f, base_dir]
args: [name]
type: function
executables: [{target: f, args: [name]}]
writes: [{files: [[base_dir, name]]}]
"""
    write = imported(text, str, tmp_path)
    first, second = write("a/../b"), write(Path("c"))
    reads_both = batch.function(str, reads=batch.read(tmp_path, "b", "c"))
    reads_one = batch.function(str, reads=batch.read(tmp_path / "c"))
    reads_all = batch.function(str, reads=batch.read(tmp_path))
    program = batch.compile([first, second, reads_both, reads_one, reads_all])
    assert edges(program) == {(0, 2), (1, 2), (1, 3), (0, 4), (1, 4)}


def test_relative_paths_are_below_the_directory_of_the_batch(batch: Batch, tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text(
        "args: [f]\ntype: function\nexecutables: [{target: f}]\n"
        "reads: [{files: [in.txt, [sub, in.txt]]}]"
    )
    relative = os.path.relpath(path)
    make = batch.import_func(relative)
    assert relative in repr(make)
    writes = batch.function(str, writes=[batch.write("in.txt")])
    below = batch.function(str, writes=[batch.write(Path.cwd(), "sub/in.txt")])
    assert edges(batch.compile([writes, below, make(str)])) == {(0, 2), (1, 2)}


def test_the_directory_of_the_batch_is_that_in_which_it_was_made(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my.yml"
    path.write_text(
        "args: [f]\ntype: function\nexecutables: [{target: f, cwd: .}]\nreads: [{files: [in]}]"
    )
    made_in = os.getcwd()
    relative = os.path.relpath(path)
    monkeypatch.chdir(tmp_path)
    task = batch.import_func(relative)(os.getcwd)
    writes = batch.function(str, writes=batch.write(made_in, "in"))
    program = batch.compile([writes, task])
    assert edges(program) == {(0, 1)}
    program.run(timeout=60)
    assert task.get() == made_in
    # Workers elsewhere may be in any directory: they are told this one.
    assert os.path.isabs(task._record.options.cwd)
    assert os.path.samefile(task._record.options.cwd, made_in)


def test_objects_and_channels(batch: Batch, imported: Import) -> None:
    text = """
import_args: [f, next_key]
args: [store, i]
type: function
executables: [{target: f, args: [i]}]
reads:
  - {ddict: store, keys: [i]}
  - {ddict: store, keys: [fixed]}
writes:
  - {ddict: store, keys: [{next_key: [i]}]}
"""
    step = imported(text, str, lambda i: i + 1)
    store = CommunicationObject(CommunicationDomain(), "store")
    other = CommunicationObject(CommunicationDomain(), "other")
    tasks = [
        step(store, 0),
        step(store, 1),  # reads what 0 has written
        step(other, 2),
        batch.function(str, writes=[batch.write(store, "fixed")]),  # both have read that
        batch.function(str, reads=[batch.read(store, 1)]),
    ]
    # That 3 waits for 0 is said by 1, which it waits for, too.
    assert edges(batch.compile(tasks)) == {(0, 1), (1, 3), (0, 4)}


def test_a_whole_object(batch: Batch, imported: Import) -> None:
    text = "args: [f, x]\ntype: function\nexecutables: [{target: f}]\nreads: [{ddict: x}]"
    store = CommunicationObject(CommunicationDomain(), "store")
    writes = [batch.function(str, writes=batch.write(store, key)) for key in "ab"]
    assert edges(batch.compile([*writes, imported(text)(str, store)])) == {(0, 2), (1, 2)}


def test_what_no_task_can_access(imported: Import) -> None:
    text = "args: [x, key]\nimport_args: [f]\ntype: function\nexecutables: [{target: f}]\n"
    access = imported(text + "reads: [{ddict: x, keys: [key]}]", str)
    with pytest.raises(SpecError, match=r"my.yml:5: cannot read 5: give a path"):
        access(5, 1)
    store = CommunicationObject(CommunicationDomain(), "store")
    with pytest.raises(SpecError, match=r"my.yml:5: a channel of store must be hashable"):
        access(store, [])


def add(one: int, other: int = 0) -> int:
    return one + other


def test_tasks_are_arguments(batch: Batch, imported: Import) -> None:
    plus = imported(
        "import_args: [f]\nargs: [a, b]\ntype: function\n"
        "executables: [{target: f, args: [a], kwargs: {other: b}}]",
        add,
    )
    first = plus(1, 2)
    second = plus(first, 10)
    third = plus(second.result, first)
    assert results(batch, [first, second, third]) == [3, 13, 16]


def surroundings(variable: str) -> tuple[str, str | None]:
    return os.getcwd(), os.environ.get(variable)


def test_directory_and_environment(batch: Batch, imported: Import, tmp_path: Path) -> None:
    where = imported(
        "import_args: [f, place]\nargs: [text, env]\ntype: function\n"
        "executables: [{target: f, args: [MY_VARIABLE], cwd: place, env: {MY_VARIABLE: text}}]\n",
        surroundings,
        tmp_path,
    )
    assert results(batch, [where("a"), where("b")]) == [(str(tmp_path), "a"), (str(tmp_path), "b")]


def test_a_timeout_of_the_call(batch: Batch, imported: Import) -> None:
    wait = imported(
        "import_args: [f]\nargs: [seconds, limit]\ntype: function\n"
        "executables: [{target: f, args: [seconds]}]\ntimeout: {sec: limit}",
        time.sleep,
    )
    long, short = wait(60, 0.2), wait(0, 60)
    batch.compile([long, short]).run(timeout=60)
    with pytest.raises(TaskTimeout):
        long.get()
    assert short.get() is None


def test_functions_of_calls(batch: Batch, imported: Import) -> None:
    apply = imported(
        "args: [f, x]\ntype: function\nexecutables: [{target: f, args: [{f: [x]}]}]\nname: twice"
    )
    assert results(batch, [apply(abs, -1), apply(str, 5)]) == [1, "5"]


# -- executables --------------------------------------------------------------------------


def test_a_process(batch: Batch, imported: Import, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("c\na\nb\n")
    sort = imported(
        """
import_args: [place]
args: [source, target]
type: process
executables:
  - target: sort
    args: [-o, target, source]
    cwd: place
    env: {LC_ALL: C}
reads: [{files: [[place, source]]}]
writes: [{files: [[place, target]]}]
""",
        tmp_path,
    )
    task = sort("words", "sorted")
    read = batch.function((tmp_path / "sorted").read_text, reads=batch.read(tmp_path, "sorted"))
    assert task.name == "sort"
    assert results(batch, [task, read]) == [0, "a\nb\nc\n"]


def test_a_job_of_one_executable(imported: Import, batch: Batch, tmp_path: Path) -> None:
    say = imported(
        """
import_args: [place]
args: [n, word]
type: job
executables:
  - target: sh
    args: [-c, 'echo $0 $DASKBATCH_RANK $EXTRA; pwd', word]
    num_procs: n
    cwd: place
    env: {EXTRA: more}
""",
        tmp_path,
    )
    task = say(2, "rank")
    assert results(batch, [task]) == [0]
    assert [task.stdout.rank(i) for i in range(2)] == [
        f"rank {i} more\n{tmp_path}" for i in range(2)
    ]


def test_a_job_of_several_executables(imported: Import, batch: Batch, tmp_path: Path) -> None:
    both = imported(
        """
import_args: [place]
args: [i]
type: job
executables:
  - {target: sh, args: [-c, 'echo a $DASKBATCH_RANK of $DASKBATCH_SIZE; pwd'], cwd: place}
  - {target: sh, args: [-c, 'echo b $0 $E', i], nprocs: 1, env: {E: e}}
writes: [{files: [[place, i]]}]
""",
        tmp_path,
    )
    task = both("file")
    assert task.name == "sh:sh"
    assert results(batch, [task]) == [[0, 0]]
    assert task.stdout.get() == f"a 0 of 2\n{tmp_path}\nb file e"


def test_a_job_of_several_has_no_function_among_them(imported: Import) -> None:
    job = imported("import_args: [f]\ntype: job\nexecutables: [{target: f}, {target: ls}]", len)
    with pytest.raises(SpecError, match="the target 'len' is a function: expected executables"):
        job()


def test_a_job_of_a_function(imported: Import, batch: Batch) -> None:
    job = imported(
        "import_args: [f]\nargs: [a]\ntype: job\n"
        "executables: [{target: f, args: [a, 2], nprocs: 2}]",
        pow,
    )
    assert results(batch, [job(5)]) == [[25, 25]]


# -- the function itself ------------------------------------------------------------------


def test_what_the_function_says_of_itself(imported: Import) -> None:
    function = imported(
        "import_args: [f]\nargs: [a, b]\nkwargs: {c: d}\ntype: function\n"
        "executables: [{target: f, args: [a, d]}]",
        add,
    )
    assert function.__name__ == function.__qualname__ == "add"
    assert "Make a task of type function" in (inspect.getdoc(function) or "")
    assert "my.yml" in (inspect.getdoc(function) or "")
    assert str(inspect.signature(function)) == "(a, b=<unused>, /, *, c)"
    assert repr(function).startswith("<add(a, b=<unused>, /, *, c), imported from ")
    inspect.signature(function).bind(1, c=2)
    with pytest.raises(TypeError):
        inspect.signature(function).bind(1)


def test_arguments_that_do_not_fit_make_no_task(imported: Import) -> None:
    function = imported(
        "import_args: [f]\nargs: [a]\ntype: function\nexecutables: [{target: f, args: [a]}]", add
    )
    for args, kwargs in (((), {}), ((1, 2), {}), ((1,), {"a": 2})):
        with pytest.raises(SpecError, match=r"add\(\) (lacks|takes)"):
            function(*args, **kwargs)


@pytest.mark.parametrize("wrong", [None, 5, b"x", ["a"]])
def test_what_is_no_file(batch: Batch, wrong: Any) -> None:
    with pytest.raises(SpecError, match="ptd_file= must be the path of a template"):
        batch.import_func(wrong)


def test_what_is_wrong_with_a_file_is_told_as_the_user_calls_it(
    batch: Batch, tmp_path: Path
) -> None:
    with pytest.raises(TemplateError, match="^none.yml: there is no such file"):
        batch.import_func("none.yml")
    path = tmp_path / "my.yml"
    path.write_text("type: function\nexecutable: []")
    with pytest.raises(TemplateError, match="did you mean 'executables'") as caught:
        batch.import_func(os.path.relpath(path))
    assert str(caught.value).startswith(f"{os.path.relpath(path)}:2: ")


def test_a_file_is_read_once(batch: Batch, imported: Import, tmp_path: Path) -> None:
    function = imported(
        "import_args: [f]\nargs: [a]\ntype: function\nexecutables: [{target: f, args: [a]}]", abs
    )
    (tmp_path / "my.yml").unlink()
    assert results(batch, [function(-1)]) == [1]


def test_threads_may_call_one_function_at_once(batch: Batch, imported: Import) -> None:
    inside = threading.Barrier(4, timeout=30)

    def meet(i: int) -> int:
        inside.wait()  # all threads are in the middle of a call
        return i * 2

    function = imported(
        "import_args: [f, meet]\nargs: [i]\nkwargs: {n: n}\ntype: function\n"
        "executables: [{target: f, args: [i, {meet: [{meet: [n]}]}]}]",
        add,
        meet,
    )
    made: dict[int, list[Task]] = {}

    def work(start: int) -> None:
        made[start] = [function(start + n, n=n) for n in range(50)]

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 4000, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = results(batch, [task for start in sorted(made) for task in made[start]])
    assert found == [start + n + 4 * n for start in range(0, 4000, 1000) for n in range(50)]


def test_nothing_is_made_once_the_batch_is_closed(batch: Batch, tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text("args: [f]\ntype: function\nexecutables: [{target: f}]")
    with Batch(batch.client) as other:
        make = other.import_func(path)
        make(print)
    with pytest.raises(SubmitAfterCloseError):
        make(print)


def test_a_function_that_is_dropped_lets_go_of_its_batch(batch: Batch, tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text("args: [f]\ntype: function\nexecutables: [{target: f}]")
    other = Batch(batch.client)
    make = other.import_func(path)
    there = weakref.ref(other._context)
    gc.disable()
    try:
        del other
        assert there() is not None
        del make
        assert there() is None
    finally:
        gc.enable()


# -- the example --------------------------------------------------------------------------


def test_the_commented_template_runs() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "use_template.py"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == "[3, 1, 1]\ntext-0.txt: the 3\ntext-1.txt: the 1\ntext-2.txt: the 1\n"

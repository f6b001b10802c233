"""A strict Batch: tasks that access what they do not declare fail, in threads and in children."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.programs import Step, act, make_root, make_tasks, random_program, result_of

from daskbatch import (
    Batch,
    DDict,
    MissingInput,
    MissingOutput,
    ProgramWarning,
    Queue,
    UndeclaredAccess,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("strict ü")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


@pytest.fixture(scope="module")
def strict(shared_batch: Batch, directory: Path) -> Iterator[Batch]:
    """A strict Batch whose directory is one of the tests."""
    with Batch(shared_batch.client, strict=True) as batch:
        yield batch


@pytest.fixture(params=["thread", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def here(directory: Path, request: pytest.FixtureRequest) -> Path:
    """A directory below that of the Batch, with a file ``in``."""
    path = directory / f"of {abs(hash(request.node.name))}"
    path.mkdir()
    (path / "in").write_text("text")
    return path


def outcome(
    batch: Batch, isolation: str, function: Callable[..., Any], *args: Any, **of: Any
) -> Any:
    task = batch.options(isolation=isolation, **of).function(function, *args)
    batch.compile([task], check=None).run(timeout=60)
    return task.get()


# -- what is refused ----------------------------------------------------------------------------


def swallow(path: Path) -> str:
    try:
        return path.read_text()
    except Exception:
        return "swallowed"


def in_a_thread(path: Path) -> None:
    thread = threading.Thread(target=swallow, args=(path,))
    thread.start()
    thread.join()


def in_a_pool(path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(swallow, path).result()


async def in_a_coroutine(path: Path) -> str:
    return swallow(path)


def by_descriptor(path: Path) -> None:
    os.close(os.open(os.fsencode(path), os.O_RDONLY))


def in_its_directory(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        swallow(Path(path.name))
    finally:
        os.chdir(before)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


def leave(path: Path) -> None:
    path.with_name("left").write_text("x")


def leave_directory(path: Path) -> None:
    path.with_name("directory").mkdir()


def rename(path: Path) -> None:
    path.rename(path.with_name("other"))


def link(path: Path) -> None:
    path.with_name("link").symlink_to(path)


def replace(path: Path) -> None:
    temporary = path.with_name("temporary")
    temporary.write_text("x")
    temporary.replace(path)


@pytest.mark.parametrize(
    ("function", "name", "mode"),
    [
        (Path.read_text, "in", "read"),
        (swallow, "in", "read"),
        (in_a_thread, "in", "read"),
        (in_a_pool, "in", "read"),
        (in_a_coroutine, "in", "read"),
        (by_descriptor, "in", "read"),
        (append, "in", "write"),
        (Path.unlink, "in", "write"),
        (rename, "in", "write"),
        (replace, "in", "write"),
        (leave, "left", "write"),
        (leave_directory, "directory", "write"),
        (link, "link", "write"),
        (os.link, "in", "read"),
        (shutil.copyfile, "in", "read"),
    ],
)
def test_undeclared(
    strict: Batch, isolation: str, here: Path, function: Any, name: str, mode: str
) -> None:
    with pytest.raises(UndeclaredAccess, match="and does not declare that: add ") as caught:
        more = [here / "copy"] if function in (os.link, shutil.copyfile) else []
        outcome(strict, isolation, function, here / "in", *more)
    error = caught.value
    assert (error.path, error.mode) == (str(here / name), mode)
    assert error.task == strict.function(function).name


def test_a_tree_is_not_removed(strict: Batch, isolation: str, here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "file").write_text("x")
    with pytest.raises(UndeclaredAccess):
        outcome(strict, isolation, remove_tree, here / "sub")
    assert (here / "sub" / "file").exists()


def test_relative_paths(strict: Batch, here: Path) -> None:
    with pytest.raises(UndeclaredAccess):
        outcome(strict, "process", in_its_directory, here / "in")


def test_a_read_is_no_write(strict: Batch, isolation: str, here: Path) -> None:
    with pytest.raises(UndeclaredAccess, match="has written"):
        outcome(strict, isolation, append, here / "in", reads=strict.read(here / "in"))


def test_paths_elsewhere_that_the_program_declares(
    strict: Batch, isolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The temporary directory, in which `tmp_path` is, does not count: the test has another one.
    path = Path.home() / f"daskbatch-{os.getpid()}-{tmp_path.name}"
    path.write_text("x")
    try:
        declares = strict.function(path.read_text, reads=strict.read(path))
        does_not = strict.options(isolation=isolation).function(swallow, path)
        strict.compile([declares, does_not]).run(timeout=60)
        assert declares.get() == "x"
        with pytest.raises(UndeclaredAccess):
            does_not.get()
        assert outcome(strict, isolation, swallow, path) == "x"
    finally:
        path.unlink()


# -- what is allowed ----------------------------------------------------------------------------


def write_read_and_replace(path: Path) -> str:
    path.write_text("x")
    assert path.read_text() == "x"
    temporary = path.with_name("temporary")
    temporary.write_text("y")
    temporary.replace(path)
    return path.read_text()


def make_in_directories(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def scratch(path: Path) -> None:
    directory = path.with_name("scratch")
    directory.mkdir()
    (directory / "a").write_text("x")
    assert (directory / "a").read_text() == "x"
    (directory / "a").unlink()
    directory.rmdir()


def scratch_tree(path: Path) -> None:
    directory = path.with_name("tree")
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a" / "b" / "in").write_text("x")
    shutil.rmtree(directory)


def remove_tree(path: Path) -> None:
    shutil.rmtree(path)


def import_and_format(path: Path) -> str:
    import traceback

    module = path.with_name("beside.py")
    sys.path.insert(0, str(path.parent))
    try:
        import beside  # type: ignore[import-not-found]

        try:
            beside.fail()
        except ValueError:
            return traceback.format_exc()
    finally:
        sys.path.remove(str(module.parent))
        sys.modules.pop("beside", None)
    return ""


def of_the_system(path: Path) -> int:
    import json
    import tempfile

    json.dumps({})
    with tempfile.TemporaryFile() as file, sqlite3.connect(":memory:"):
        return len(os.urandom(1)) + file.write(b"x") + Path("/dev/zero").open("rb").closed


def test_allowed(strict: Batch, isolation: str, here: Path) -> None:
    out, deep = here / "out", here / "a" / "b" / "c"
    read = {"reads": strict.read(here / "in")}
    assert outcome(strict, isolation, Path.read_text, here / "in", **read) == "text"
    whole = {"reads": strict.read(here)}
    assert outcome(strict, isolation, Path.read_text, here / "in", **whole) == "text"
    writes = {"writes": strict.write(out)}
    assert outcome(strict, isolation, write_read_and_replace, out, **writes) == "y"
    outcome(strict, isolation, make_in_directories, deep, writes=strict.write(deep))
    outcome(strict, isolation, scratch, here / "in")
    outcome(strict, isolation, scratch_tree, here / "in")
    outcome(strict, isolation, of_the_system, here / "in")
    (here / "beside.py").write_text("def fail():\n    raise ValueError\n")
    assert "    raise ValueError\n" in outcome(strict, isolation, import_and_format, here / "in")
    removed = {"removes": strict.write(out)}
    outcome(strict, isolation, Path.unlink, out, **removed)


def test_executables_are_not_watched(strict: Batch, here: Path) -> None:
    task = strict.process("cat", here / "in")
    task.run(timeout=60)
    assert task.stdout.get() == "text"


# -- missing files ------------------------------------------------------------------------------


def test_missing_files_are_errors(strict: Batch, isolation: str, here: Path) -> None:
    with pytest.raises(MissingInput, match="which was not there when it was to begin"):
        outcome(strict, isolation, len, "", reads=strict.read(here / "no"))
    with pytest.raises(MissingOutput, match=r"options\(removes="):
        outcome(strict, isolation, len, "", writes=strict.write(here / "no"))
    process = strict.process("true", writes=strict.write(here / "no"))
    process.run(timeout=60)
    with pytest.raises(MissingOutput):
        process.get()


# -- dictionaries and queues -----------------------------


def get_key(d: DDict, key: Any) -> Any:
    try:
        return d[key]
    except UndeclaredAccess:
        return "swallowed"


def put_item(queue: Queue) -> None:
    queue.put(1)


def test_keys(strict: Batch, isolation: str) -> None:
    d, queue = strict.ddict(), strict.queue()
    d.update({"a": 1, 1: 2})
    assert outcome(strict, isolation, get_key, d, "a", reads=strict.read(d, "a", "b")) == 1
    assert outcome(strict, isolation, get_key, d, 1.0, reads=strict.read(d, 1)) == 2
    assert outcome(strict, isolation, get_key, d, "a", reads=strict.read(d)) == 1
    assert outcome(strict, isolation, get_key, d, "a", writes=strict.write(d, "a")) == 1
    assert outcome(strict, isolation, len, d, reads=strict.read(d)) == 2
    outcome(strict, isolation, put_item, queue, writes=strict.write(queue))
    for function, args, of in (
        (get_key, (d, "a"), {"reads": strict.read(d, "b")}),
        (get_key, (d, "a"), {}),
        (d.update, ({"a": 1},), {"reads": strict.read(d)}),
        (len, (d,), {"reads": strict.read(d, "a")}),
    ):
        with pytest.raises(UndeclaredAccess):
            outcome(strict, isolation, function, *args, **of)
    # A queue matters if a task of the program declares it.
    outcome(strict, isolation, put_item, queue)
    declares = strict.function(put_item, queue, writes=strict.write(queue))
    does_not = strict.options(isolation=isolation).function(put_item, queue)
    strict.compile([declares, does_not]).run(timeout=60)
    assert declares.state == "done"
    with pytest.raises(UndeclaredAccess):
        does_not.get()


# -- no false alarms ------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_random_programs(strict: Batch, directory: Path, seed: int) -> None:
    """Programs that access what they declare give no alarm; each undeclared read gives one."""
    dice = random.Random(seed)
    root = make_root(directory / f"root {seed}")
    for name in ("a", "b", "sub/c", "sub/d", "sub/deep/e", "sub/deep/f g ü"):
        (root / name).write_text("x")
    steps = [
        step._replace(fails=False) if hasattr(step, "_replace") else step
        for step in random_program(dice, 30)
    ]
    steps = [step for step in steps if not step.fails]
    numbers = {step.number: position for position, step in enumerate(steps)}
    steps = [
        Step(
            numbers[step.number],
            step.reads,
            step.writes,
            step.appends,
            tuple(numbers[each] for each in step.arguments if each in numbers),
        )
        for step in steps
    ]
    tasks = make_tasks(strict, root, steps)
    liars = [
        strict.function(act, str(root), Step(100 + n, reads=("sub/c",)), name="liar")
        for n in range(2)
    ]
    strict.compile([*tasks, *liars], check=None).run(timeout=100)
    for task in tasks:
        assert result_of(task)
    for task in liars:
        with pytest.raises(UndeclaredAccess):
            task.get()


def test_a_check_as_error(strict: Batch, here: Path) -> None:
    task = strict.function(len, "", reads=strict.read(here / "no"))
    with pytest.raises(ValueError, match="which is not there"):
        strict.compile([task], check="error")
    with pytest.warns(ProgramWarning, match="which is not there"):
        strict.compile([task])
    assert task.name == "len"
    with pytest.raises(ValueError, match='must be "warn", "error" or None'):
        strict.compile([strict.function(len, "")], check="maybe")

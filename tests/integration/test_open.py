"""`Batch.open` waits for the tasks that access the file, and for no others, and opens it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daskbatch import Batch, BatchPoolExecutor, SpecError
from daskbatch.batch.task import Task

STEP = """
import_args: [f]
args: [path, text, gate, reads, writes]
type: function
executables: [{target: f, args: [path, text, gate]}]
reads: [{files: [reads]}]
writes: [{files: [writes]}]
"""

Step = Callable[..., Task]


def step(path: Path, text: str, gate: Path | None) -> str:
    """Append to a file once the gate exists; return what the file contained before."""
    while gate is not None and not gate.exists():
        threading.Event().wait(0.005)
    before = path.read_text() if path.exists() else ""
    if text:
        with path.open("a") as file:
            file.write(text)
    return before


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that tasks wait for; the fixture makes it at the end, so that no task hangs."""
    gate = tmp_path / "gate"
    yield gate
    gate.touch()


@pytest.fixture
def write(batch: Batch, tmp_path: Path) -> Step:
    """Make a task in the background that appends to a file."""
    (tmp_path / "step.yml").write_text(STEP)
    made = batch.import_func(tmp_path / "step.yml", step)

    def write(path: Path, text: str, gate: Path | None = None, writes: Path | None = None) -> Task:
        return made(path, text, gate, "/nowhere/at/all", writes or path)

    return write


@pytest.fixture
def read(batch: Batch, tmp_path: Path) -> Step:
    """Make a task in the background that reads a file."""
    (tmp_path / "step.yml").write_text(STEP)
    made = batch.import_func(tmp_path / "step.yml", step)

    def read(path: Path, gate: Path | None = None) -> Task:
        return made(path, "", gate, path, tmp_path / "nothing")

    return read


def opens(batch: Batch, path: Path, mode: str) -> threading.Thread:
    """Open a file in another thread."""

    def work() -> None:
        batch.open(path, mode).close()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


# -- which tasks are waited for ----------------------------------------------------------------


@pytest.mark.parametrize("path", ["str", "Path", "relative", "not normal"])
def test_what_is_queued_has_been_written(
    batch: Batch, write: Step, tmp_path: Path, path: str
) -> None:
    file = tmp_path / "a.txt"
    write(file, "one ")
    write(file, "two")
    given: Any = {
        "str": str(file),
        "Path": file,
        "relative": os.path.relpath(file),
        "not normal": f"{tmp_path}//x/../a.txt",
    }[path]
    (tmp_path / "x").mkdir()
    with batch.open(given) as opened:
        assert opened.read() == "one two"


def test_relative_paths_are_below_the_directory_of_the_batch(
    batch: Batch, write: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    relative = os.path.relpath(file)
    write(file, "text")
    monkeypatch.chdir(tmp_path)
    with batch.open(relative) as opened:
        assert opened.read() == "text"


def test_a_started_task_is_waited_for(batch: Batch, tmp_path: Path, gate: Path) -> None:
    file = tmp_path / "a.txt"
    task = batch.function(step, file, "text", gate, writes=[batch.write(file)])
    task.start()
    thread = opens(batch, file, "r")
    gate.touch()
    thread.join(timeout=60)
    assert task.state == "done"


def test_a_task_that_was_only_made_is_not_waited_for(batch: Batch, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    task = batch.function(step, file, "text", None, writes=[batch.write(file)])
    with pytest.raises(FileNotFoundError):
        batch.open(file)
    assert task.state == "created"


def test_others_are_not_waited_for_but_are_started(
    batch: Batch, write: Step, tmp_path: Path, gate: Path
) -> None:
    slow = write(tmp_path / "slow.txt", "text", gate)
    write(tmp_path / "fast.txt", "text")
    with batch.open(tmp_path / "fast.txt") as opened:
        assert opened.read() == "text"
    assert slow.state in ("waiting", "running")


def test_nothing_is_started_for_a_file_that_no_task_touches(
    batch: Batch, write: Step, tmp_path: Path
) -> None:
    task = write(tmp_path / "a.txt", "text")
    (tmp_path / "b.txt").touch()
    (tmp_path / "a.txt.bak").touch()
    batch.open(tmp_path / "b.txt").close()
    batch.open(tmp_path / "a.txt.bak").close()
    assert task.state == "queued"


@pytest.mark.parametrize("mode", ["r", "rb", "rt"])
def test_to_read_a_reader_is_not_waited_for(
    batch: Batch, read: Step, tmp_path: Path, gate: Path, mode: str
) -> None:
    (tmp_path / "a.txt").write_text("text")
    reader = read(tmp_path / "a.txt", gate)
    with batch.open(tmp_path / "a.txt", mode) as opened:
        assert opened.read() in ("text", b"text")
    # Nobody was in the way, so nothing was started either.
    assert reader.state == "queued"
    reader.start()
    batch.open(tmp_path / "a.txt", mode).close()
    assert reader.state in ("waiting", "running")


@pytest.mark.parametrize("mode", ["w", "a", "r+", "wb", "ab", "rb+", "w+", "a+b"])
def test_to_write_a_reader_is_waited_for(
    batch: Batch, read: Step, tmp_path: Path, gate: Path, mode: str
) -> None:
    (tmp_path / "a.txt").write_text("text")
    reader = read(tmp_path / "a.txt", gate)
    thread = opens(batch, tmp_path / "a.txt", mode)
    while reader.state == "queued":
        threading.Event().wait(0.001)
    assert thread.is_alive()
    gate.touch()
    thread.join(timeout=60)
    assert reader.state == "done"
    assert reader.get() == "text"


def test_to_make_a_file_its_writers_are_waited_for(
    batch: Batch, write: Step, tmp_path: Path
) -> None:
    write(tmp_path / "a.txt", "text")
    with pytest.raises(FileExistsError):
        batch.open(tmp_path / "a.txt", "x")


def test_a_file_below_a_directory_that_is_written_whole(
    batch: Batch, write: Step, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    task = write(tmp_path / "d" / "a.txt", "text", writes=tmp_path / "d")
    with batch.open(tmp_path / "d" / "a.txt") as opened:
        assert opened.read() == "text"
    assert task.state == "done"


def test_after_a_failed_writer_there_is_what_it_has_left(
    batch: Batch, write: Step, tmp_path: Path
) -> None:
    failed = write(tmp_path / "none" / "a.txt", "text")
    with pytest.raises(FileNotFoundError):
        batch.open(tmp_path / "none" / "a.txt")
    assert failed.state == "failed"
    (tmp_path / "none").mkdir()
    with batch.open(tmp_path / "none" / "a.txt", "w") as opened:
        opened.write("mine")
    with batch.open(tmp_path / "none" / "a.txt") as opened:
        assert opened.read() == "mine"


def test_a_cancelled_writer_is_not_waited_for(batch: Batch, write: Step, tmp_path: Path) -> None:
    task = write(tmp_path / "a.txt", "text", tmp_path / "never")
    assert task.cancel()
    with pytest.raises(FileNotFoundError):
        batch.open(tmp_path / "a.txt")


def test_calls_that_an_executor_has_not_handed_over_are_waited_for(
    batch: Batch, tmp_path: Path, gate: Path
) -> None:
    file = tmp_path / "a.txt"
    with BatchPoolExecutor(cluster=batch.client, max_workers=1) as executor:
        executor.submit(step, tmp_path / "other.txt", "", gate)
        executor.options(writes=[batch.write(file)]).submit(step, file, "text", None)
        opened: list[str] = []

        def read_it() -> None:
            with executor.batch.open(file) as there:
                opened.append(there.read())

        thread = threading.Thread(target=read_it)
        thread.start()
        thread.join(timeout=0.1)
        assert thread.is_alive()
        gate.touch()
        thread.join(timeout=60)
        assert opened == ["text"]


def test_it_can_be_opened_when_the_batch_has_ended(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "step.yml").write_text(STEP)
    with Batch(batch.client) as other:
        other.import_func(tmp_path / "step.yml", step)(
            tmp_path / "a.txt", "text", None, tmp_path / "r", tmp_path / "a.txt"
        )
    with other.open(tmp_path / "a.txt") as opened:
        assert opened.read() == "text"


# -- what it is opened as -----------------------------------------------------------------


def test_text_and_bytes(batch: Batch, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with batch.open(file, "w", encoding="latin-1", newline="\r\n") as opened:
        opened.write("grün\n")
    assert file.read_bytes() == "grün\r\n".encode("latin-1")
    with batch.open(file, "rb") as opened:
        assert opened.read() == b"gr\xfcn\r\n"
    with batch.open(file, "r", -1, "latin-1") as opened:
        assert list(opened) == ["grün\n"]
    with batch.open(file, "r+b", buffering=0) as opened:
        opened.write(b"G")
    with batch.open(file, mode="ab") as opened:
        opened.write(b"end")
    assert file.read_bytes() == b"Gr\xfcn\r\nend"
    opened = batch.open(path=file, encoding="latin-1")  # without `with`
    assert opened.read() == "Grün\nend"
    opened.close()


def test_what_cannot_be_opened(batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        batch.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        batch.open(tmp_path / "none")
    with pytest.raises(ValueError, match="invalid mode"):
        batch.open(tmp_path / "none", "q")
    with pytest.raises(TypeError):
        batch.open(tmp_path / "none", 5)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        batch.open("")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        batch.open(f"{tmp_path}/file/")


def test_the_system_says_what_is_above_a_link(batch: Batch, tmp_path: Path) -> None:
    """As for the built-in `open`, and for a working directory."""
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "sub")
    with batch.open(f"{tmp_path}/link/../file", "w") as file:
        file.write("there")
    assert (tmp_path / "real" / "file").read_text() == "there"
    with batch.open(f"{tmp_path}/link/../file") as file:
        assert file.read() == "there"
    task = batch.process("cat", "file", cwd=f"{tmp_path}/link/..")
    task.run(timeout=30)
    assert task.stdout.get() == "there"


@pytest.mark.parametrize("wrong", [0, b"a.txt", None, ["a.txt"]])
def test_what_is_no_path(batch: Batch, wrong: Any) -> None:
    with pytest.raises(SpecError, match="path"):
        batch.open(wrong)

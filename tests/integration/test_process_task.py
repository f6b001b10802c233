"""Tasks that run an executable, made by `Batch.process`."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from daskbatch import Batch, SpecError


def run(batch: Batch, *arguments: object, **options: object) -> str:
    task = batch.process(*arguments, **options)  # type: ignore[arg-type]
    task.run(timeout=60)
    assert task.get() == 0
    return str(task.stdout.get())


def test_arguments_become_text(batch: Batch, tmp_path: Path) -> None:
    number = batch.function(int, "7")
    echo = batch.process("echo", "-n", tmp_path, 1.5, number, "two words", "*", "$HOME")
    batch.compile([number, echo]).run(timeout=60)
    assert echo.stdout.get() == f"{tmp_path} 1.5 7 two words * $HOME"


def test_the_directory(batch: Batch, tmp_path: Path) -> None:
    assert run(batch, "pwd") == os.getcwd()
    assert run(batch, "pwd", cwd=tmp_path) == str(tmp_path)
    relative = os.path.relpath(tmp_path)
    assert run(batch, "pwd", cwd=relative) == str(tmp_path)


def test_a_directory_that_is_not_there(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, kind, how in (
        ("nowhere", FileNotFoundError, "does not exist"),
        ("file", NotADirectoryError, "is not a directory"),
    ):
        path = str(tmp_path / name)
        for task in (
            batch.process("pwd", cwd=path, name="list it"),
            batch.options(cwd=path, name="list it").function(os.getcwd),
        ):
            task.run(timeout=60)
            with pytest.raises(kind) as caught:
                task.get()
            number, host = caught.value.errno, socket.gethostname()
            said = f"[Errno {number}] task 'list it': its cwd on the host {host} {how}: {path!r}"
            assert (str(caught.value), caught.value.filename) == (said, path)


def test_an_input_that_is_not_there(batch: Batch, tmp_path: Path) -> None:
    task = batch.process("cat", stdin=tmp_path / "none", name="list it")
    task.run(timeout=60)
    with pytest.raises(FileNotFoundError, match="task 'list it': its stdin does not exist: "):
        task.get()


def test_the_environment_is_added_to(batch: Batch) -> None:
    assert (
        run(batch, "sh", "-c", "echo $MINE $HOME", env={"MINE": "x"}) == f"x {os.environ['HOME']}"
    )


def test_what_it_reads(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("from a file")
    assert run(batch, "cat") == ""
    assert run(batch, "cat", stdin="a text") == "a text"
    assert run(batch, "cat", stdin=b"bytes") == "bytes"
    assert run(batch, "cat", stdin=tmp_path / "a file") == "from a file"


def test_options(batch: Batch, tmp_path: Path) -> None:
    task = batch.options(name="mine", cwd=tmp_path, env={"A": "b"}).process(
        "sh", "-c", "pwd; echo $A; exit 2", check=False
    )
    task.run(timeout=60)
    assert (task.name, task.get()) == ("mine", 2)
    assert task.stdout.get() == f"{tmp_path}\nb"


def test_wired_by_files_alone(batch: Batch, tmp_path: Path) -> None:
    make = batch.process(
        "sh",
        "-c",
        "sleep 0.1; printf '3\\n1\\n2\\n' > unsorted",
        cwd=tmp_path,
        writes=[batch.write(tmp_path, "unsorted")],
    )
    sort = batch.process(
        "sort",
        "-o",
        "sorted",
        "unsorted",
        cwd=tmp_path,
        reads=[batch.read(tmp_path, "unsorted")],
        writes=[batch.write(tmp_path, "sorted")],
    )
    read = batch.function((tmp_path / "sorted").read_text, reads=[batch.read(tmp_path / "sorted")])
    batch.compile([make, sort, read]).run(timeout=60)
    assert read.get() == "1\n2\n3\n"


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((len, "abc"), {}, "cannot run <built-in function len>: give an executable"),
        (("",), {}, "cannot run ''"),
        (("env",), {"env": {"A": 1}}, "env= must map str to str; 'A': 1 is wrong"),
        (("env",), {"timeout": -1}, "timeout= must be a positive number of seconds"),
        (("env",), {"reads": ["file"]}, "give batch.read('file')"),
    ],
)
def test_wrong_descriptions(
    batch: Batch, arguments: tuple[object, ...], options: dict[str, object], said: str
) -> None:
    with pytest.raises(SpecError) as caught:
        batch.process(*arguments, **options)  # type: ignore[arg-type]
    assert said in str(caught.value)

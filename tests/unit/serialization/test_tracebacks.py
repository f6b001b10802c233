"""Tracebacks show the user's frames, with the source lines that travel with functions."""

from __future__ import annotations

import asyncio
import linecache
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from daskbatch.serialization import pickling
from daskbatch.serialization.by_value import dumps
from daskbatch.serialization.exceptions import TaskTraceback, pack_error, unpack_error
from daskbatch.serialization.tracebacks import user_traceback

SOURCE = """\
def outer(x):
    def inner(y):
        return 1 / y
    return inner(x)

async def awaits(x):
    return outer(x)
"""


def caught(function: Callable[..., Any], *args: Any) -> BaseException:
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def sent(name: str, source: str = SOURCE, function: str = "outer") -> Callable[..., Any]:
    """Return a function of a program as it arrives in another process."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    lines = source.splitlines(keepends=True)
    linecache.cache[name] = (len(source), None, lines, name)
    try:
        exec(compile(source, name, "exec"), namespace)
        data = dumps(namespace[function], 5)
    finally:
        del linecache.cache[name]
    made: Callable[..., Any] = pickling.loads(data)
    return made


def test_the_lines_of_a_function_travel_with_it() -> None:
    text = user_traceback(error := caught(sent("<cell 1>"), 0), error.__traceback__)
    assert '  File "<cell 1>", line 4, in outer\n    return inner(x)\n' in text
    assert '  File "<cell 1>", line 3, in inner\n    return 1 / y\n' in text
    assert linecache.getlines("<cell 1>") == []


def test_two_programs_of_one_name() -> None:
    one = sent("<stdin>")
    other = sent("<stdin>", SOURCE.replace("1 / y", "2 / y"))
    for function, line in ((one, "1 / y"), (other, "2 / y"), (one, "1 / y")):
        error = caught(function, 0)
        assert f"    return {line}\n" in user_traceback(error, error.__traceback__)


def test_a_function_travels_on_with_its_lines() -> None:
    twice = pickling.loads(dumps(sent("<far>"), 5))
    error = caught(twice, 0)
    assert "    return 1 / y\n" in user_traceback(error, error.__traceback__)


def test_many_threads() -> None:
    functions = [sent("<stdin>", SOURCE.replace("1 / y", f"{n} / y")) for n in range(1, 9)]
    wrong: list[str] = []

    def run(number: int) -> None:
        for _ in range(50):
            error = caught(functions[number - 1], 0)
            text = user_traceback(error, error.__traceback__)
            if f"    return {number} / y\n" not in text:
                wrong.append(text)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_frames_of_ours_and_of_asyncio_are_left_out() -> None:
    function = sent("<cell>", function="awaits")
    error = caught(lambda: pickling.within(None).__enter__() or asyncio.run(function(0)))
    assert error.__traceback__ is not None
    text = user_traceback(error, error.__traceback__.tb_next.tb_next)  # type: ignore[union-attr]
    assert "asyncio" not in text
    assert text.count("  File ") == 3


def test_an_error_of_ours_alone_has_no_frames() -> None:
    error = caught(pickling.pack, threading.Lock())
    text = user_traceback(error, error.__traceback__.tb_next)  # type: ignore[union-attr]
    assert "Traceback" not in text.rpartition("\n\n")[2]
    assert text.rstrip().endswith("cannot pickle '_thread.lock' object")


def test_notes_groups_and_causes_stay() -> None:
    def fail() -> None:
        try:
            sent("<cell>")(0)
        except ZeroDivisionError as error:
            error.add_note("a note")
            raise ExceptionGroup("both", [error, KeyError("k")]) from OSError("cause")

    text = user_traceback(error := caught(fail), error.__traceback__)
    for part in ("a note", "both (2 sub-exceptions)", "KeyError: 'k'", "OSError: cause"):
        assert part in text
    assert "    return 1 / y\n" in text


def test_the_heading_says_what_and_where() -> None:
    data = pack_error(caught(sent("<cell>"), 0), "'f'", 0, "on worker w, attempt 2")
    error = unpack_error(data, "task 'f'")
    assert type(error.__cause__) is TaskTraceback
    assert str(error.__cause__).startswith(
        "task 'f', on worker w, attempt 2:\nTraceback (most recent call last):\n"
    )


@pytest.mark.parametrize("command", ["-c", "-"])
def test_a_program_without_a_file(command: str, tmp_path: Any) -> None:
    program = (
        "from daskbatch.serialization.by_value import dumps\n"
        "import pickle\n"
        "def fail(x):\n"
        "    return 1 / x\n"
        "print(dumps(fail, 5).hex())\n"
    )
    path = tmp_path / "program"
    path.write_text(program)
    with path.open() as file:
        arguments = [command, program] if command == "-c" else [command]
        done = subprocess.run(
            [sys.executable, *arguments], stdin=file, capture_output=True, text=True, check=True
        )
    error = caught(pickling.loads(bytes.fromhex(done.stdout)), 0)
    assert "    return 1 / x\n" in user_traceback(error, error.__traceback__)

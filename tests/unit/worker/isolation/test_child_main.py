"""The state of a child process that members find, what they change there, and their output."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.payloads import Call, call, spec

from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.worker.entry import run_block
from daskbatch.worker.execution.block import Limits
from daskbatch.worker.execution.executable import ADDED_VARIABLE
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.isolation.child_pool import get_child_pool

DONE, FAILED, SKIPPED, CANCELLED, DEFERRED = Status


@pytest.fixture(autouse=True, scope="module")
def no_child_left() -> Iterator[None]:
    yield
    get_child_pool().close()


def run(*calls: Call, **changes: Any) -> BlockResult:
    return run_block(pickling.dumps(spec(*calls, isolated=True, **changes)))


def values(result: BlockResult) -> list[Any]:
    assert set(result.statuses) == {DONE}, [
        unpack_error(value) for value in result.values if value and b"daskbatch" in value
    ]
    return [pickling.loads(value or b"") for value in result.values]


# -- starting -----------------------------------------------------------------------------


def test_a_child_does_not_wait_for_dask() -> None:
    look = (
        "import sys, daskbatch.worker.isolation.child_main; "
        "print([name for name in ('dask', 'distributed', 'numpy', 'asyncio') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def describe() -> dict[str, Any]:
    files = []
    for each in os.listdir("/proc/self/fd"):
        # One is the descriptor with which this list is read. And libffi opens its own file.
        with contextlib.suppress(FileNotFoundError):
            if "/libffi.so" not in os.readlink(f"/proc/self/fd/{each}"):
                files.append(each)
    return {
        "path": sys.path,
        "flags": tuple(sys.flags),
        "session": os.getsid(0) == os.getpid(),
        "input": sys.stdin.read(),
        "open": len(files),
        "threads": threading.active_count(),
        "warnings": sys.warnoptions,
    }


def test_it_is_like_its_worker_and_has_a_session_and_files_of_its_own() -> None:
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)
    # The next child is started while this file is open.
    get_child_pool().close()
    (found,) = values(run(call(describe)))
    os.close(kept)
    assert found["path"] == sys.path
    assert found["flags"] == tuple(sys.flags)
    assert found["warnings"] == sys.warnoptions
    assert found["session"]
    assert found["input"] == ""
    assert found["threads"] == 1
    # Standard streams, socket, pipe, copies of two streams, the directory; the claims twice.
    assert found["open"] <= 10


def test_what_only_workers_should_have_is_not_in_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MINE", "2")
    monkeypatch.setenv(ADDED_VARIABLE, "OMP_NUM_THREADS")
    get_child_pool().close()
    names = ["OMP_NUM_THREADS", ADDED_VARIABLE, "MINE"]
    assert values(run(*[call(os.getenv, name) for name in names])) == [None, None, "2"]


def test_a_change_of_the_path_gets_there_too(tmp_path: Path) -> None:
    run(call(len, ""))
    (tmp_path / "added_later.py").write_text("value = 7")
    sys.path.append(str(tmp_path))
    try:
        assert values(run(call(import_value)))[0] == 7
    finally:
        sys.path.remove(str(tmp_path))


def import_value() -> int:
    import added_later  # type: ignore[import-not-found]

    value: int = added_later.value
    return value


# -- directory, environment, streams --------------------------------------------------------


def where() -> tuple[str, str | None, str | None]:
    return os.getcwd(), os.environ.get("ONE"), os.environ.get("PATH")


def move(path: Path) -> tuple[str, str | None, str | None]:
    found = where()
    os.chdir(path)
    os.environ["ONE"] = "changed"
    del os.environ["PATH"]
    return found


@pytest.mark.parametrize("ends", [None, "raises", "exits"])
def test_directory_and_environment_are_those_of_one_member(
    tmp_path: Path, ends: str | None
) -> None:
    home = (os.getcwd(), None, os.environ["PATH"])
    given = Limits(cwd=str(tmp_path), env=(("ONE", "1"),))
    result = values(
        run(
            *[call(where), call(where), call(where), call(move, Path("/")), call(where)],
            limits={1: given, 3: given},
        )
    )
    assert result[0] == result[2] == result[4] == home
    assert result[1] == result[3] == (str(tmp_path), "1", home[2])
    assert values(run(call(move, tmp_path), call(where))) == [home, home]


def test_a_directory_that_is_not_there_is_said() -> None:
    result = run(call(where), call(where), limits={0: Limits(cwd="/no/such/place")})
    assert list(result.statuses) == [FAILED, DONE]
    failed = unpack_error(result.values[0] or b"")
    assert isinstance(failed, FileNotFoundError)
    assert "/no/such/place" in str(failed)


def spoil(how: str) -> None:
    print("before")
    if how == "close":
        sys.stdout.close()
    elif how == "replace":
        sys.stdout = None  # type: ignore[assignment]
    elif how == "close the file":
        sys.stdout.flush()
        os.close(1)
    else:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


@pytest.mark.parametrize("how", ["close", "replace", "close the file", "redirect"])
def test_the_streams_of_a_member_are_as_new(how: str) -> None:
    result = run(call(spoil, how), call(print, "after"))
    assert list(result.statuses) == [DONE, DONE]
    assert result.outputs == {0: ("before", ""), 1: ("after", "")}


# -- output -------------------------------------------------------------------------------


def write_in_every_way() -> None:
    print("print")
    sys.stdout.flush()
    os.write(1, b"file\n")
    os.system("echo system")
    subprocess.run(["sh", "-c", "echo process; echo error >&2"], check=True)
    libc = ctypes.CDLL(None)
    libc.printf(b"printf\n")
    threads = [threading.Thread(target=print, args=("thread",))]
    for thread in threads:
        thread.start()
        thread.join()
    logging.getLogger("daskbatch.tests").warning("logged")
    sys.stdout.write("no newline")


def test_whatever_writes_is_captured() -> None:
    result = run(call(print, "a"), call(write_in_every_way), call(len, ""), call(print, "b"))
    assert result.outputs[0] == ("a", "")
    lines = ["print", "file", "system", "process", "printf", "thread"]
    assert result.outputs[1] == ("\n".join([*lines, "no newline"]), "error\nlogged")
    assert 2 not in result.outputs
    assert result.outputs[3] == ("b", "")


def write_without_newlines() -> None:
    ctypes.CDLL(None).printf(b"printf")
    sys.stderr.write("error")


def test_what_is_left_in_buffers_is_the_members_own() -> None:
    result = run(call(write_without_newlines), call(print, "b"))
    assert result.outputs == {0: ("printf", "error"), 1: ("b", "")}


def write_oddities() -> None:
    print("ä😀")
    print("\udc80", file=sys.stderr)
    os.write(1, b"\xff")


def test_output_that_is_no_text_is_text() -> None:
    assert run(call(write_oddities)).outputs == {0: ("ä😀\n\ufffd", "\\udc80")}


def test_the_output_is_limited_per_member() -> None:
    calls = [call(print, "x" * 900), call(print, "a" + "y" * 5_000_000 + "z"), call(print, "b")]
    result = run(*calls, output_limit=1000, share_limit=1 << 30)
    assert result.outputs[0] == ("x" * 900, "")
    out = result.outputs[1][0]
    assert out.startswith("ayyy")
    assert out.endswith("yyyz")
    assert f"{5_000_003 - 1000} bytes dropped" in out
    assert result.outputs[2] == ("b", "")


# -- processes that members fork ------------------------------------------------------------


def fork(go_on: bool) -> int:
    pid = os.fork()
    if pid == 0:
        if not go_on:
            os._exit(7)
        return -1
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_a_forked_process_does_not_go_on_with_the_block() -> None:
    result = values(run(call(fork, False), call(fork, True), call(os.getpid), call(os.getpid)))
    assert result[:2] == [7, 1]
    assert result[2] == result[3]

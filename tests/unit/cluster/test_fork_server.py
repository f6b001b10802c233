"""The fork server of multiprocessing is a copy of the process, with its program's arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from daskbatch.cluster.fork_server import program_in

PROGRAM = "from multiprocessing.forkserver import main; main(4, 5, [])"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["python", "-c", PROGRAM], (PROGRAM, ["-c"]), id="until 3.13"),
        pytest.param(
            ["python", "-Wignore", "-B", "-c", PROGRAM, "a script.py", "-c", "-x"],
            (PROGRAM, ["-c", "a script.py", "-c", "-x"]),
            id="from 3.14 on",
        ),
    ],
)
def test_the_program_is_found(arguments: list[str], expected: tuple[str, list[str]]) -> None:
    assert program_in(arguments) == expected


SCRIPT = """
import multiprocessing, sys
from multiprocessing import forkserver
from pathlib import Path
from daskbatch.cluster.fork_server import start_fork_server

def look(queue):
    queue.put(sys.argv)

def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()

if __name__ == "__main__":
    start_fork_server([])
    server = forkserver._forkserver._forkserver_pid
    context = multiprocessing.get_context("forkserver")
    queue = context.SimpleQueue()
    process = context.Process(target=look, args=(queue,))
    process.start()
    assert queue.get() == sys.argv, sys.argv
    process.join()
    assert process.exitcode == 0
    assert forkserver._forkserver._forkserver_pid == server  # it was not started anew
    assert command_line(server) == command_line("self")
"""


def test_it_is_a_copy_whatever_the_arguments_of_the_script(tmp_path: Path) -> None:
    script = tmp_path / "a script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-Wignore", script, "-c", "1 +", "ümlaut", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stderr == ""
    assert done.returncode == 0

"""Starts a process whose stdout and stderr this process reads.

Any thread may call the function.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Any

from daskbatch.worker.processes import initial_state


def start_captured(
    command: Sequence[str],
    cwd: str,
    env: Mapping[Any, Any],
    stdin: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, with unbuffered pipes for its output.

    Parameters
    ----------
    command : sequence of str
        The executable and its arguments.
    cwd : str
        Its working directory.
    env : mapping
        Its whole environment, as text or bytes.
    stdin : binary file or int
        Its standard input; by default it is empty.

    Raises
    ------
    OSError
        It cannot be started.
    """
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Not what a task in a thread may have set.
        umask=initial_state.umask(),
        bufsize=0,
    )

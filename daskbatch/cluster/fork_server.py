"""Starts multiprocessing's fork server as a copy of this process, which has imported Dask.

As a new program it would import Dask once more: a third of the processor time in which a cluster
starts.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker, util
from typing import Any, NoReturn

_util: Any = util
_spawn = _util.spawnv_passfds


def start_fork_server(preload: Sequence[str]) -> None:
    """Start the fork server of this process; if that cannot be a copy, as a new program.

    Parameters
    ----------
    preload : sequence of str
        The modules that it imports. What this process has imported, it has already.
    """
    forkserver.set_forkserver_preload(list(preload))
    if threading.active_count() > 1:  # what other threads hold would be held in the copy for ever
        forkserver.ensure_running()
        return
    resource_tracker.ensure_running()  # a program of its own
    try:
        _util.spawnv_passfds = _fork
        forkserver.ensure_running()
    finally:
        _util.spawnv_passfds = _spawn


def _fork(path: str, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """Run the program of the fork server in a copy, and not in a new Python; return its pid."""
    # What exists now stays: collections in the copies would only make pages their own.
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        _run(*program_in(arguments), descriptors)
    gc.unfreeze()
    return pid


def program_in(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the program and its `sys.argv` in the command line of a Python.

    Before Python 3.14 the program was the last argument.

    Examples
    --------
    >>> program_in(["python", "-B", "-c", "import sys; print(sys.argv)", "script.py", "-c"])
    ('import sys; print(sys.argv)', ['-c', 'script.py', '-c'])
    """
    position = arguments.index("-c")
    return arguments[position + 1], ["-c", *arguments[position + 2 :]]


def _run(program: str, argv: list[str], descriptors: Sequence[int]) -> NoReturn:
    try:
        _close_others(descriptors)
        sys.argv = argv
        # As in a new program. The fork server's object is in use just now, with its lock held.
        _util.spawnv_passfds = _spawn
        forkserver._forkserver.__init__()  # type: ignore[misc]
        resource_tracker._resource_tracker.__init__()  # type: ignore[misc]
        exec(program, {"__name__": "__main__"})
    except SystemExit:  # all processes that could use it have ended
        pass
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _close_others(descriptors: Sequence[int]) -> None:
    """Close all descriptors but the standard ones and these, as a new program would."""
    lowest = 3
    for descriptor in [*sorted(descriptors), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(lowest, descriptor)
        lowest = descriptor + 1

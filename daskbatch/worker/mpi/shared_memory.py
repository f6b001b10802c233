"""Removes files that MPI processes have left behind because they were killed.

MPI libraries make files in /dev/shm for the ranks of a host, and the launcher of Open MPI makes a
directory among the temporary files, its *session directory*. They remove them when the program
ends in good order. Any number of threads and processes may call `remove_unused`. The reaper and the
supervisors of ranks, which run without other packages, use this module, too; so it imports little.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading

from daskbatch.forking import make_lock

#: Where shared memory is.
_DIRECTORY = "/dev/shm"

#: How the names of the files begin that MPICH, Open MPI, Intel MPI and their libraries for
#: communication (UCX, PSM2) make.
_PREFIXES = (
    *("mpich_", "vader_segment.", "sm_segment.", "ucx_shm_posix_", "psm2_shm."),
    *("Intel_MPI_", "shm-col-space-", "mpifxmem_"),
)

#: The name of the directory that holds the session directories of a user on a host, and the name
#: of one of them, which says the process that has made it: ``ompi.node1.1000/pid.4711``.
_SESSIONS, _SESSION = "ompi.{host}.{user}", re.compile(r"pid\.(\d+)")

#: How long `remove_unused_later` waits for further calls.
_DELAY_SECONDS = 1.0

_lock = make_lock()
#: The earliest time of the calls that wait for the other thread; None if there are none.
_pending_since: float | None = None

#: The clock of a file system may be behind by this time.
_CLOCK_SECONDS = 1.0


def remove_unused(since: float) -> list[str]:
    """Remove the files of MPI libraries and launchers that no process uses.

    Parameters
    ----------
    since : float
        Only files that have changed since then; seconds since the epoch.

    Returns
    -------
    list of str
        The names of the files in shared memory that were removed.
    """
    _remove_sessions(since - _CLOCK_SECONDS)
    found = _find(since - _CLOCK_SECONDS)
    if not found:
        return []
    # A process that has made one of these files has done so before this search. It keeps the file
    # open until it has mapped it, so it is found in the first place or in the second one.
    for pid in [each for each in os.listdir("/proc") if each.isdecimal()]:
        found -= _opened(pid, found)
        if found:
            found -= _mapped(pid, found)
    for name in found:
        # Another process may have removed it meanwhile.
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(_DIRECTORY, name))
    return sorted(found)


def _remove_sessions(since: float) -> None:
    """Remove the session directories whose processes have ended.

    The directory that holds them stays: another launcher may be about to make its own one there.
    """
    places = {os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")} | {"/tmp"}
    holder = _SESSIONS.format(host=socket.gethostname(), user=os.geteuid())
    for place in filter(None, places):
        try:
            with os.scandir(os.path.join(place, holder)) as entries:
                ended = [each.path for each in entries if _has_ended(each, since)]
        except OSError:
            continue  # Open MPI has not run here, or has removed the directory meanwhile
        for path in ended:
            import shutil  # not at the top: few jobs leave a directory

            shutil.rmtree(path, ignore_errors=True)


def _has_ended(session: os.DirEntry[str], since: float) -> bool:
    """Return whether a session directory has changed since then, and its process has ended."""
    match = _SESSION.fullmatch(session.name)
    if match is None or session.stat(follow_symlinks=False).st_mtime < since:
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it belongs to another user
    return False


def remove_unused_later(since: float) -> None:
    """Have another thread call `remove_unused` soon, once for all calls until then."""
    global _pending_since
    timer = None
    with _lock:
        if _pending_since is None:
            timer = threading.Timer(_DELAY_SECONDS, _remove_pending)
        _pending_since = since if _pending_since is None else min(since, _pending_since)
    if timer is not None:
        timer.daemon = True
        timer.start()


def _remove_pending() -> None:
    global _pending_since
    with _lock:
        since, _pending_since = _pending_since, None
    if since is not None:
        remove_unused(since)


def _find(since: float) -> set[str]:
    """Return the names of the files of this user that an MPI library has made."""
    found = set()
    try:
        with os.scandir(_DIRECTORY) as entries:
            for entry in entries:
                if entry.name.startswith(_PREFIXES):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_uid == os.geteuid() and status.st_mtime >= since:
                        found.add(entry.name)
    except OSError:
        pass  # not Linux, or a file was removed meanwhile
    return found


def _opened(pid: str, names: set[str]) -> set[str]:
    directory = f"/proc/{pid}/fd"
    used = set()
    try:
        for fd in os.listdir(directory):
            try:
                target = os.readlink(f"{directory}/{fd}")
            except OSError:
                continue  # it was closed meanwhile
            head, _, name = target.rpartition("/")
            if head == _DIRECTORY and name in names:
                used.add(name)
    except OSError:
        pass  # it has ended, or belongs to another user
    return used


def _mapped(pid: str, names: set[str]) -> set[str]:
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
            maps = file.read()
    except OSError:
        return set()  # it has ended, or belongs to another user
    return {name for name in names if f"{_DIRECTORY}/{name}\n" in maps}

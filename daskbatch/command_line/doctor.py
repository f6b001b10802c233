"""The command ``doctor``: checks versions, launchers, directories, and a round trip to a cluster.

Each check yields `Finding` records. The checks of this machine need no cluster, and take a second.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import dask.config

from daskbatch import config
from daskbatch._version import __version__
from daskbatch.batch.batch import Batch
from daskbatch.errors import BatchError, ProcessFailed
from daskbatch.report.pages.units import bytes_text, seconds_text
from daskbatch.timeouts import Deadline
from daskbatch.worker.mpi.launcher import find_launcher

#: What daskbatch needs, and what its extras bring.
_REQUIRED = ("dask", "distributed", "cloudpickle", "numpy", "psutil", "pyyaml", "zict", "jinja2")
_OPTIONAL = {
    "bokeh": "Dask's dashboard and the page /daskbatch (extra dashboard)",
    "pillow": "graphs as PNG (extra dashboard)",
    "mpi4py": "jobs of Python functions (extra mpi)",
    "yappi": "CPU profiles (extra profiling)",
    "tqdm": "progress bars",
}

#: Less free space than this is worth a warning.
_MIN_FREE_BYTES = 1 << 30

#: How long the cluster may take for a task.
_ROUND_TRIP_TIMEOUT_SECONDS = 120.0

#: How long a direct connection with a worker may take, and at which interval a call is made
#: meanwhile; and how many calls are timed then.
_DIRECT_TIMEOUT_SECONDS = 10.0
_RETRY_INTERVAL_SECONDS = 0.02
_MEASURED_CALLS = 20

#: How many tasks are run to measure what a task costs.
_MEASURED_TASKS = 100


class Level(Enum):
    """How bad a finding is."""

    GOOD = "ok"
    NOTE = "note"
    BAD = "FAULT"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Parameters
    ----------
    level : Level
        How bad it is.
    subject, text : str
        What was checked, and what was found.
    """

    level: Level
    subject: str
    text: str


def add_parser(commands: Any) -> None:
    """Add the command to those of the command line."""
    parser = commands.add_parser(
        "doctor",
        help="check this installation and a cluster",
        description="Checks versions, MPI launchers and directories, and runs tasks on a cluster: "
        "the given one, that of DASKBATCH_CLUSTER or of the setting daskbatch.cluster, or one that "
        "is started on this machine. The exit code is 1 if it finds a fault.",
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="the address of a scheduler")
    parser.add_argument("--no-cluster", action="store_true", help="check this machine only")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print what the checks find; return 0, or 1 if one has found a fault."""
    checks: list[Iterable[Finding]] = [
        check_versions(),
        check_launcher(),
        check_programs(),
        check_directories(),
    ]
    if not options.no_cluster:
        checks.append(check_cluster(options.cluster))
    faults = 0
    for check in checks:
        for finding in check:
            faults += finding.level is Level.BAD
            print(f"{finding.level.value:>5}  {finding.subject}: {finding.text}", flush=True)
    print(f"{faults} fault{'s' * (faults != 1)} found" if faults else "no faults found")
    return int(faults > 0)


def check_versions() -> Iterator[Finding]:
    """Check that what daskbatch needs is installed."""
    python = f"{platform.python_version()} at {sys.executable} on {platform.platform()}"
    yield Finding(Level.GOOD, "Python", python)
    yield Finding(Level.GOOD, "daskbatch", f"{__version__} in {Path(config.__file__).parent}")
    for name in _REQUIRED:
        version = _version(name)
        if version is None:
            yield Finding(Level.BAD, name, "is not installed, and daskbatch needs it")
        else:
            yield Finding(Level.GOOD, name, version)
    if _version("dask") != _version("distributed"):
        yield Finding(Level.BAD, "dask", "dask and distributed must be of the same version")
    for name, purpose in _OPTIONAL.items():
        version = _version(name)
        if version is None:
            yield Finding(Level.NOTE, name, f"is not installed; it is for {purpose}")
        else:
            yield Finding(Level.GOOD, name, version)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_launcher() -> Iterator[Finding]:
    """Check which MPI launcher parallel jobs would use on this machine."""
    try:
        launcher = find_launcher(config.get("mpi-launcher"))
    except ProcessFailed as error:
        text = str(error).partition("\n")[0]
        yield Finding(Level.NOTE, "MPI launcher", f"{text} (only parallel jobs need it)")
        return
    words = " ".join(launcher.words)
    yield Finding(Level.GOOD, "MPI launcher", f"{launcher.kind.value}: {words}")


def check_programs() -> Iterator[Finding]:
    """Check for programs that are not from PyPI."""
    dot = shutil.which("dot")
    text = dot or "is not installed; it is for graphs as PDF and the like"
    yield Finding(Level.GOOD if dot else Level.NOTE, "Graphviz", text)


def check_directories() -> Iterator[Finding]:
    """Check that the directories that workers use can be written, and have space."""
    spilled = dask.config.get("temporary-directory", default=None) or tempfile.gettempdir()
    directories = {
        "working directory": os.getcwd(),
        "temporary directory": tempfile.gettempdir(),
        "Dask's directory for workers": str(spilled),
        "shared memory": "/dev/shm",
    }
    for subject, directory in directories.items():
        if subject == "shared memory" and not os.path.isdir(directory):
            continue
        try:
            with tempfile.TemporaryFile(dir=directory):
                free = shutil.disk_usage(directory).free
        except OSError as error:
            level = Level.NOTE if subject == "working directory" else Level.BAD
            yield Finding(level, subject, f"{directory} cannot be written: {error.strerror}")
            continue
        level = Level.NOTE if free < _MIN_FREE_BYTES else Level.GOOD
        yield Finding(level, subject, f"{directory}, {bytes_text(free)} free")
    settings = [str(path) for path in map(Path, dask.config.paths) if path.exists()]
    yield Finding(Level.GOOD, "settings of Dask", ", ".join(settings) or "none on this machine")


def check_cluster(address: str | None) -> Iterator[Finding]:
    """Run tasks on a cluster.

    Parameters
    ----------
    address : str, optional
        The address of a scheduler; by default the cluster that ``Batch()`` uses.
    """
    configured = address or os.environ.get("DASKBATCH_CLUSTER") or config.get("cluster")
    subject = f"cluster {configured}" if configured else "cluster on this machine"
    begin = perf_counter()
    try:
        with Batch(address) as batch:
            started = seconds_text(perf_counter() - begin)
            yield Finding(Level.GOOD, subject, f"{batch.num_workers} slots after {started}")
            yield from _round_trip(batch, subject)
            yield check_direct_connections(batch)
            link = batch.dashboard_link or "none (the extra dashboard brings it)"
            yield Finding(Level.GOOD, "dashboard", link)
    except (BatchError, OSError) as error:
        yield Finding(Level.BAD, subject, f"{type(error).__name__}: {error}")


def check_direct_connections(batch: Batch) -> Finding:
    """Check whether this client can send short tasks to workers directly.

    It tries that from the second call of a function on.
    """
    subject = "direct connections"
    deadline = Deadline(_DIRECT_TIMEOUT_SECONDS)
    times: list[float] = []
    failure = ""
    while len(times) < _MEASURED_CALLS and not deadline.passed and not failure:
        is_connected, _ = batch._session.direct_connection()
        begin = perf_counter()
        try:
            batch.function(abs, -1).run(deadline.remaining(), check=True)
        except TimeoutError:
            break
        if is_connected:
            times.append(perf_counter() - begin)
        is_connected, failure = batch._session.direct_connection()
        if not is_connected and not failure:
            sleep(_RETRY_INTERVAL_SECONDS)
    if len(times) == _MEASURED_CALLS:
        took = seconds_text(median(times))
        return Finding(Level.GOOD, subject, f"workers can be reached; a single task takes {took}")
    reason = f" ({failure})" if failure else ""
    return Finding(
        Level.NOTE,
        subject,
        f"this client cannot reach the workers{reason}: short tasks that wait for each other go by "
        "way of the scheduler, which takes longer; if there is a firewall, let one port through "
        "and set daskbatch.port",
    )


def _round_trip(batch: Batch, subject: str) -> Iterator[Finding]:
    begin = perf_counter()
    try:
        first = batch.function(platform.python_version)
        first.run(_ROUND_TRIP_TIMEOUT_SECONDS, check=True)
        python = str(first.get())
        took = seconds_text(perf_counter() - begin)
        yield Finding(Level.GOOD, subject, f"a task and its result took {took}")
        begin = perf_counter()
        many = batch.compile([batch.function(abs, number) for number in range(_MEASURED_TASKS)])
        many.run(_ROUND_TRIP_TIMEOUT_SECONDS, check=True)
    except TimeoutError:
        text = f"no task was over after {_ROUND_TRIP_TIMEOUT_SECONDS:g} s: is there a worker?"
        yield Finding(Level.BAD, subject, text)
        batch.terminate()
        return
    took = seconds_text((perf_counter() - begin) / _MEASURED_TASKS)
    yield Finding(Level.GOOD, subject, f"{_MEASURED_TASKS} short tasks took {took} each")
    if python != platform.python_version():
        here = platform.python_version()
        yield Finding(Level.BAD, subject, f"workers run Python {python}, and this is {here}")

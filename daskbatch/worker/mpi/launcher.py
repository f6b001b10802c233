"""Finds the MPI launcher of this machine, and composes its command line.

`find_launcher` looks at the environment and at files, and runs ``mpiexec --version`` once for each
file; all else is pure. Any number of threads may call the functions. No launcher, and a wrong
setting, raise `ProcessFailed`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from daskbatch.errors import ProcessFailed
from daskbatch.worker.mpi.rank_variables import without_rank_variables

#: The setting under which the launcher is found by `find_launcher` itself.
AUTO = "auto"

#: How long a launcher may take to say its version, and SLURM to say the names of nodes.
_ANSWER_TIMEOUT_SECONDS = 20.0

#: The names that a launcher of MPI may have, in the order in which they are tried.
_NAMES = ("mpiexec", "mpirun", "mpiexec.hydra", "mpiexec.openmpi")

#: What a command line of the user may contain.
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PLACEHOLDERS = ("num_procs", "hosts", "hostfile")

#: The exit code of a shell for a command that it does not find.
_NOT_FOUND = 127

#: The name of the file that lists the hosts, in the directory of the job.
_HOSTFILE = "hosts"


class Kind(Enum):
    """Whose launcher it is; that decides about its options."""

    MPICH = "MPICH"
    OPEN_MPI = "Open MPI"
    INTEL = "Intel MPI"
    SRUN = "srun"
    #: A command line of the user.
    CUSTOM = "custom"


class Part(NamedTuple):
    """The ranks of a job that run the same command.

    Parameters
    ----------
    num_procs : int
        The number of ranks.
    command : sequence of str
        The executable and its arguments.
    cwd : str, optional
        The working directory; None for that of the launcher.
    env : mapping
        Variables that are added to the environment.
    """

    num_procs: int
    command: Sequence[str]
    cwd: str | None = None
    env: Mapping[str, str] = {}


#: The hosts of a job in the order of the ranks, each with its number of ranks; as in `Allocation`.
Hosts = Sequence[tuple[str, int]]


class Launcher(NamedTuple):
    """A launcher of MPI.

    Parameters
    ----------
    kind : Kind
        Whose launcher it is.
    words : tuple of str
        The path of the launcher; for `Kind.CUSTOM`, the words of the command line.
    """

    kind: Kind
    words: tuple[str, ...]

    @property
    def offers_port(self) -> bool:
        """Whether ranks that are not its children can connect to it, by a TCP port."""
        if self.kind is not Kind.MPICH:
            return False
        with contextlib.suppress(OSError):
            return _has_port_option(self.words[0], os.stat(self.words[0]).st_mtime_ns)
        return False

    @property
    def reads_hostfile(self) -> bool:
        """Whether `command` may write the list of hosts into the directory of the job."""
        return self.kind is Kind.INTEL or any("{hostfile}" in word for word in self.words)

    def command(
        self,
        parts: Sequence[Part],
        hosts: Hosts,
        directory: str,
        variables: Sequence[str] = (),
        by_port: bool = False,
    ) -> list[str]:
        """Return the command line that starts a job.

        Writes the file with the list of hosts, if the launcher reads one. The directory and the
        environment of a part are not set by the command line, since launchers differ in this: the
        programs of the ranks set them.

        Parameters
        ----------
        parts : sequence of Part
            What the ranks run, in the order of the ranks.
        hosts : sequence of (str, int)
            The hosts in the order of the ranks, each with its number of ranks. One host is that
            of this process.
        directory : str
            A directory of the job on this host, for the list of hosts; not used if
            `reads_hostfile` is false.
        variables : sequence of str
            The names of variables in the environment of the launcher that all ranks must receive,
            on other hosts too.
        by_port : bool
            Whether the ranks connect to the launcher by a TCP port; only if `offers_port` is true.

        Examples
        --------
        >>> launcher = Launcher(Kind.MPICH, ("mpiexec",))
        >>> " ".join(launcher.command([Part(2, ["./a"]), Part(1, ["./b"])], [("here", 3)], "/tmp"))
        'mpiexec -launcher fork -hosts localhost -n 2 ./a : -n 1 ./b'
        """
        job = _Job(list(parts), list(hosts), directory, variables, by_port)
        return _COMPOSERS[self.kind](self.words, job)


def find_launcher(configured: str = AUTO, for_python: bool = False) -> Launcher:
    """Return the launcher that the setting ``daskbatch.mpi-launcher`` names.

    Parameters
    ----------
    configured : str
        ``auto``: `srun` inside of an allocation of SLURM, else the first launcher of MPICH, Open
        MPI or Intel MPI on the PATH or beside the interpreter. Or a command line, which may contain
        ``{num_procs}``, ``{hosts}`` and ``{hostfile}``.
    for_python : bool
        Whether it starts the interpreter of this process. Then a launcher beside the interpreter
        is preferred to one on the PATH: if an environment has an MPI, its mpi4py uses that one.

    Raises
    ------
    ProcessFailed
        No launcher is found, or the setting is wrong.
    """
    if configured != AUTO:
        return Launcher(Kind.CUSTOM, _split(configured))
    if os.environ.get("SLURM_JOB_ID") and (srun := shutil.which("srun")):
        return Launcher(Kind.SRUN, (srun,))
    others = []
    for path in _candidates(for_python):
        with contextlib.suppress(OSError):
            kind, answer = _identify(path, os.stat(path).st_mtime_ns)
            if kind is not None:
                return Launcher(kind, (path,))
            others.append(f"{path} says {answer!r}")
    found = f"; found, but not known: {'; '.join(others)}" if others else ""
    raise _unusable(
        "there is no MPI launcher on this worker's PATH or beside its Python: install one, for "
        "example with pip install 'daskbatch[mpi]' or from the packages mpich or openmpi-bin of "
        "the system, or set daskbatch.mpi-launcher to a command line such as "
        f"'/opt/mpi/bin/mpiexec -n {{num_procs}}'{found}"
    )


def _unusable(what: str) -> ProcessFailed:
    return ProcessFailed(what, returncode=_NOT_FOUND, command=[])


def _candidates(for_python: bool) -> Iterator[str]:
    """Yield the files that may be launchers, those on the PATH and those beside Python."""
    paths = [os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)]
    if for_python:
        paths.reverse()
    seen = set()
    for path in paths:
        for name in _NAMES:
            found = shutil.which(name, path=path)
            if found and (found := os.path.abspath(found)) not in seen:
                seen.add(found)
                yield found


@lru_cache(maxsize=64)
def _identify(path: str, modified: int) -> tuple[Kind | None, str]:
    """Ask a launcher for its version; None if it is not a known one, with what it answered."""
    answer = _ask(path, "--version")
    return kind_of_version(answer), answer.strip().partition("\n")[0]


@lru_cache(maxsize=64)
def _has_port_option(path: str, modified: int) -> bool:
    """Ask a launcher of MPICH whether it has the option for a port."""
    return "-pmi-port " in _ask(path, "-help")


def _ask(path: str, option: str) -> str:
    """Return what a launcher answers to an option, or why it does not answer."""
    try:
        return subprocess.run(
            [path, option],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=clean_environment(os.environ),
            timeout=_ANSWER_TIMEOUT_SECONDS,
            check=False,
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def kind_of_version(answer: str) -> Kind | None:
    """Return whose launcher answers this to ``--version``; None if that is unknown.

    Examples
    --------
    >>> kind_of_version("mpiexec (OpenRTE) 4.1.4").value
    'Open MPI'
    """
    if "Intel(R) MPI" in answer:
        return Kind.INTEL
    if "HYDRA" in answer:
        return Kind.MPICH
    if any(name in answer for name in ("Open MPI", "OpenRTE", "PRRTE", "prterun")):
        return Kind.OPEN_MPI
    return None


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that another launcher has set for its ranks."""
    encoded = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
    clean = without_rank_variables(encoded)
    return {os.fsdecode(name): os.fsdecode(value) for name, value in clean.items()}


# -- command lines ------------------------------------------------------------------------


class _Job(NamedTuple):
    """What a command line is composed for; see `Launcher.command`."""

    parts: Sequence[Part]
    hosts: Hosts
    directory: str
    variables: Sequence[str]
    by_port: bool


def _joined(parts: Sequence[Part], options: Sequence[str] = ("-n", "{}")) -> list[str]:
    """Return the parts as MPI launchers take them: the number of ranks, the command, and ``:``."""
    words: list[str] = []
    for part in parts:
        words += [":"] * bool(words) + [word.format(part.num_procs) for word in options]
        words += part.command
    return words


def _mpich(words: tuple[str, ...], job: _Job) -> list[str]:
    # MPICH passes its whole environment on. `fork` needs no ssh; without it, MPICH would also
    # look whether it runs in an allocation of SLURM or PBS, and use its hosts.
    where = ["-launcher", "fork", "-hosts", "localhost"]
    if len(job.hosts) > 1:
        # By its address: the name of this host may mean something else on others.
        where = ["-hosts", _text(job.hosts), "-localhost", job.hosts[0][0]]
    port = ["-pmi-port"] if job.by_port else []
    return [*words, *port, *where, *_joined(job.parts)]


def _intel(words: tuple[str, ...], job: _Job) -> list[str]:
    where = ["-bootstrap", "fork", "-hosts", "localhost"]
    if len(job.hosts) > 1:
        where = ["-machinefile", _write_hosts(job.hosts, job.directory)]
    return [*words, *where, *_joined(job.parts)]


def _open_mpi(words: tuple[str, ...], job: _Job) -> list[str]:
    # Each host has as many slots as ranks. Without `--bind-to none` the first ranks of all jobs
    # of a host would share its first cores.
    counted = [("localhost", job.hosts[0][1])] if len(job.hosts) == 1 else job.hosts
    options = ["--host", _text(counted), "--map-by", "slot", "--bind-to", "none"]
    if len(job.hosts) == 1:
        # Without this it would start daemons by SLURM or PBS if it runs in an allocation.
        options += ["--mca", "plm", "isolated"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-run-as-root")
    exported = [word for name in job.variables for word in ("-x", name)]
    return [*words, *options, *_joined(job.parts, (*exported, "-n", "{}"))]


def _srun(words: tuple[str, ...], job: _Job) -> list[str]:
    # `--overlap`: the step of the Dask worker holds the CPUs already.
    options = ["--overlap", "--kill-on-bad-exit=1", "--input=none", "--cpu-bind=none"]
    nodes = slurm_nodes([host for host, _ in job.hosts])
    options += [f"--nodes={len(nodes)}", "--distribution=arbitrary"]
    begin = 0
    ranks = [node for node, (_, count) in zip(nodes, job.hosts, strict=True) for _ in range(count)]
    parts = job.parts
    if all(part.command == parts[0].command for part in parts):
        # srun needs a heterogeneous step for several parts. One part does the same here.
        parts = [Part(sum(part.num_procs for part in parts), parts[0].command)]
    line: list[str] = []
    for part in parts:
        part_ranks = ranks[begin : begin + part.num_procs]
        begin += part.num_procs
        line += [":"] if line else [*words]
        line += [*options[:-2], f"--nodes={len(set(part_ranks))}", options[-1]]
        line += [f"--nodelist={','.join(part_ranks)}", f"--ntasks={part.num_procs}", *part.command]
    return line


def _custom(words: tuple[str, ...], job: _Job) -> list[str]:
    values = {"hosts": _text(job.hosts)}
    if any("{hostfile}" in word for word in words):
        values["hostfile"] = _write_hosts(job.hosts, job.directory)
    count = next(i for i, word in enumerate(words) if "{num_procs}" in word)
    # The parts behind the first one repeat the option with the number of ranks, and no other one:
    # most options hold for the whole job.
    first = count - 1 if words[count] == "{num_procs}" and words[count - 1][:1] == "-" else count
    line: list[str] = []
    for part in job.parts:
        values["num_procs"] = str(part.num_procs)
        options = [":", *words[first : count + 1]] if line else words
        line += [_PLACEHOLDER.sub(lambda match: values[match[1]], word) for word in options]
        line += part.command
    return line


_COMPOSERS = {
    Kind.MPICH: _mpich,
    Kind.OPEN_MPI: _open_mpi,
    Kind.INTEL: _intel,
    Kind.SRUN: _srun,
    Kind.CUSTOM: _custom,
}


def _text(hosts: Hosts) -> str:
    return ",".join(f"{host}:{count}" for host, count in hosts)


def _write_hosts(hosts: Hosts, directory: str) -> str:
    path = os.path.join(directory, _HOSTFILE)
    Path(path).write_text("".join(f"{host}:{count}\n" for host, count in hosts))
    return path


def _split(configured: str) -> tuple[str, ...]:
    """Return the words of a command line that the user has set."""
    setting = f"the setting daskbatch.mpi-launcher is {configured!r}"
    try:
        words = tuple(shlex.split(configured)) if isinstance(configured, str) else ()
    except ValueError as error:
        raise _unusable(f"{setting}: {error}") from None
    names = [match[1] for word in words for match in _PLACEHOLDER.finditer(word)]
    unknown = [name for name in names if name not in _PLACEHOLDERS]
    if unknown:
        allowed = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
        raise _unusable(f"{setting}: {{{unknown[0]}}} is not a placeholder: expected {allowed}")
    if "num_procs" not in names:
        raise _unusable(
            f"{setting}: expected 'auto', or a command line with {{num_procs}}, such as "
            "'mpiexec -n {num_procs}'"
        )
    return words


# -- SLURM --------------------------------------------------------------------------------


def slurm_nodes(hosts: Sequence[str]) -> list[str]:
    """Return the names that SLURM has for hosts; a host without one stays as it is.

    Dask knows hosts by their addresses, and `srun` takes names of nodes only.
    """
    if len(hosts) == 1 and (node := os.environ.get("SLURMD_NODENAME")):
        return [node]
    names: dict[str, str] = {}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_ANSWER_TIMEOUT_SECONDS,
            check=True,
        ).stdout.decode()
        for name in listed.split():
            names[name] = name
            with contextlib.suppress(OSError):
                for address in socket.gethostbyname_ex(name)[2]:
                    names[address] = name
    return [names.get(host, host) for host in hosts]

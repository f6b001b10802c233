"""A SLURM of several virtual nodes on this machine, for tests that submit jobs.

One that answers already is used as it is. Otherwise one is started, which needs root, and Debian's
packages `slurm-wlm` and `munge`; it is stopped at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import wait_until

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.%n.log
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=2 RealMemory=8000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=500
"""

_PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "munge")


def missing() -> str:
    """Return why there is no SLURM for tests here; empty if there is one."""
    if _answers():
        return ""
    if os.geteuid() != 0:
        return "no SLURM answers, and only root can start one"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"no SLURM answers, and there is no {', '.join(absent)}" if absent else ""


def _answers() -> bool:
    if shutil.which("sinfo") is None:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        command = ["sinfo", "--noheader", "--format=%T"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        return found.returncode == 0 and "idle" in found.stdout
    return False


@contextlib.contextmanager
def slurm(home: Path) -> Iterator[None]:
    """Have a SLURM of two nodes; skips the test with the reason where there can be none."""
    if why := missing():
        pytest.skip(why)
    if _answers():
        yield
        return
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        (home / "state").mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        text = _CONFIGURATION.format(host=host, home=home, ports=_free_ports(4))
        (home / "slurm.conf").write_text(text, "utf-8")
        patch.setenv("SLURM_CONF", str(home / "slurm.conf"))
        _start_munge(stack)
        stack.callback(_end_all, home)
        subprocess.run(["slurmctld", "-c"], check=True, timeout=60)
        for node in ("n1", "n2"):
            (home / f"spool.{node}").mkdir()
            subprocess.run(["slurmd", "-N", node], check=True, timeout=60)
        wait_until(_answers, "SLURM does not answer")
        yield


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in sockets]


def _start_munge(stack: contextlib.ExitStack) -> None:
    """Start munge, which SLURM needs, unless it runs."""
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
        return
    directories = [Path(name) for name in ("/etc/munge", "/run/munge", "/var/log/munge")]
    for each in (*directories, Path("/var/lib/munge")):
        each.mkdir(parents=True, exist_ok=True)
        shutil.chown(each, "munge")
    key = Path("/etc/munge/munge.key")
    if not key.exists():
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        shutil.chown(key, "munge")
    Path("/run/munge").chmod(0o755)
    subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True, timeout=60)
    stack.callback(_end, Path("/run/munge/munged.pid"))


def _end_all(home: Path) -> None:
    for path in (*home.glob("slurmd.*.pid"), home / "slurmctld.pid"):
        _end(path)


def _end(path: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(path.read_text()), signal.SIGTERM)

"""The launcher that is found, and its command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daskbatch.errors import ProcessFailed
from daskbatch.worker.mpi import launcher as launcher_module
from daskbatch.worker.mpi.launcher import Kind, Launcher, Part, find_launcher, kind_of_version
from daskbatch.worker.mpi.rank_variables import without_rank_variables

ONE = [("127.0.0.1", 3)]
TWO = [("10.0.0.1", 2), ("10.0.0.2", 1)]
PARTS = [Part(2, ["./a", "x y"]), Part(1, ["./b"])]


def line(kind: Kind, hosts: list[tuple[str, int]], parts: list[Part] = PARTS, **more: str) -> str:
    words = ("srun",) if kind is Kind.SRUN else ("mpiexec",)
    return " ".join(Launcher(kind, words).command(parts, hosts, **{"directory": "", **more}))


@pytest.fixture(autouse=True)
def no_root_and_no_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    launcher_module._identify.cache_clear()
    yield
    launcher_module._identify.cache_clear()


# -- command lines --------------------------------------------------------------------------


def test_mpich() -> None:
    assert line(Kind.MPICH, ONE) == (
        "mpiexec -launcher fork -hosts localhost -n 2 ./a x y : -n 1 ./b"
    )
    assert line(Kind.MPICH, TWO, PARTS[:1]) == (
        "mpiexec -hosts 10.0.0.1:2,10.0.0.2:1 -localhost 10.0.0.1 -n 2 ./a x y"
    )


def test_open_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Launcher(Kind.OPEN_MPI, ("mpiexec",))
    assert " ".join(launcher.command(PARTS, ONE, "", ("A", "B"))) == (
        "mpiexec --host localhost:3 --map-by slot --bind-to none --mca plm isolated "
        "-x A -x B -n 2 ./a x y : -x A -x B -n 1 ./b"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert " ".join(launcher.command(PARTS[:1], TWO, "", ())) == (
        "mpiexec --host 10.0.0.1:2,10.0.0.2:1 --map-by slot --bind-to none --allow-run-as-root "
        "-n 2 ./a x y"
    )


def test_intel(tmp_path: Path) -> None:
    assert line(Kind.INTEL, ONE) == (
        "mpiexec -bootstrap fork -hosts localhost -n 2 ./a x y : -n 1 ./b"
    )
    assert line(Kind.INTEL, TWO, directory=str(tmp_path)) == (
        f"mpiexec -machinefile {tmp_path}/hosts -n 2 ./a x y : -n 1 ./b"
    )
    assert (tmp_path / "hosts").read_text() == "10.0.0.1:2\n10.0.0.2:1\n"


def test_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    always = "srun --overlap --kill-on-bad-exit=1 --input=none --cpu-bind=none"
    assert line(Kind.SRUN, TWO) == (
        f"{always} --nodes=1 --distribution=arbitrary --nodelist=10.0.0.1,10.0.0.1 --ntasks=2 "
        "./a x y : --overlap --kill-on-bad-exit=1 --input=none --cpu-bind=none --nodes=1 "
        "--distribution=arbitrary --nodelist=10.0.0.2 --ntasks=1 ./b"
    )
    # Equal commands are one part: srun would need a heterogeneous step for several.
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    assert line(Kind.SRUN, ONE, [Part(2, ["./a"]), Part(1, ["./a"])]) == (
        f"{always} --nodes=1 --distribution=arbitrary --nodelist=node7,node7,node7 --ntasks=3 ./a"
    )


def test_the_names_that_slurm_has_for_hosts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$3" = "n[1-2]" ] && printf "n1\\nlocalhost\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    hosts = [("127.0.0.1", 1), ("n1", 1), ("10.255.0.9", 1)]
    assert "--nodelist=localhost,n1,10.255.0.9 " in line(Kind.SRUN, hosts, [Part(3, ["./a"])])


def test_a_command_line_of_the_user(tmp_path: Path) -> None:
    setting = "'/opt/my mpi/run' --at {hosts} -f {hostfile} -n {num_procs} --quiet"
    launcher = find_launcher(setting)
    assert launcher.reads_hostfile
    assert launcher.command(PARTS, TWO, str(tmp_path)) == [
        *("/opt/my mpi/run", "--at", "10.0.0.1:2,10.0.0.2:1", "-f", f"{tmp_path}/hosts"),
        *("-n", "2", "--quiet", "./a", "x y", ":", "-n", "1", "./b"),
    ]
    assert (tmp_path / "hosts").read_text() == "10.0.0.1:2\n10.0.0.2:1\n"
    joined = find_launcher("run --ntasks={num_procs}").command(PARTS, TWO, "")
    assert joined == ["run", "--ntasks=2", "./a", "x y", ":", "--ntasks=1", "./b"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("mpiexec -n 2", "expected 'auto', or a command line with {num_procs}"),
        ("mpiexec -n {num_procs} {host}", "{host} is not a placeholder: expected {num_procs}"),
        ("mpiexec {num_procs} '", "No closing quotation"),
        (7, "expected 'auto'"),
        ("", "expected 'auto'"),
        ({"a": 1}, "expected 'auto'"),
    ],
)
def test_a_wrong_setting(setting: object, said: str) -> None:
    with pytest.raises(ProcessFailed) as caught:
        find_launcher(setting)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert repr(setting) in str(caught.value)
    assert caught.value.returncode == 127


# -- finding a launcher ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("HYDRA build details:\n    Version: 5.0.2", Kind.MPICH),
        ("mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org", Kind.OPEN_MPI),
        ("mpiexec (Open MPI) 5.0.3", Kind.OPEN_MPI),
        ("mpirun (PRRTE) 3.0.1", Kind.OPEN_MPI),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11", Kind.INTEL),
        ("Usage: something else", None),
    ],
)
def test_whose_launcher_it_is(answer: str, kind: Kind | None) -> None:
    assert kind_of_version(answer) is kind


def make_launcher(path: Path, answer: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && echo '{answer}'\n")
    path.chmod(0o755)
    return str(path)


def test_the_order_in_which_launchers_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/one:{tmp_path}/two")
    monkeypatch.setattr(sys, "executable", f"{tmp_path}/beside/python")
    with pytest.raises(ProcessFailed, match="there is no MPI launcher on this worker's PATH"):
        find_launcher()
    beside = make_launcher(tmp_path / "beside" / "mpiexec", "HYDRA build details:")
    assert find_launcher() == (Kind.MPICH, (beside,))
    # A launcher that is not known is left out.
    other = make_launcher(tmp_path / "one" / "mpiexec", "my own launcher")
    assert find_launcher() == (Kind.MPICH, (beside,))
    on_path = make_launcher(tmp_path / "two" / "mpirun", "mpirun (Open MPI) 5.0.3")
    assert find_launcher() == (Kind.OPEN_MPI, (on_path,))
    # Programs of this Python use the MPI of its environment.
    assert find_launcher(for_python=True) == (Kind.MPICH, (beside,))
    os.unlink(on_path)
    os.unlink(beside)
    with pytest.raises(ProcessFailed, match="my own launcher") as caught:
        find_launcher()
    assert other in str(caught.value)
    # srun, inside of an allocation alone.
    srun = make_launcher(tmp_path / "two" / "srun", "")
    with pytest.raises(ProcessFailed):
        find_launcher()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert find_launcher() == (Kind.SRUN, (srun,))


# -- environments ---------------------------------------------------------------------------


def test_the_variables_of_a_rank_are_removed() -> None:
    settings = {
        b"OMPI_MCA_btl": b"self",
        b"I_MPI_FABRICS": b"shm",
        b"HYDRA_LAUNCHER": b"ssh",
        b"SLURM_JOB_ID": b"7",
        b"SLURM_JOB_NODELIST": b"n1",
        b"HOME": b"/",
    }
    # They are the user's settings, unless this process is a rank.
    assert without_rank_variables(settings) == settings
    of_rank = {b"PMI_RANK": b"0", b"PMI_FD": b"9", b"MPI_LOCALRANKID": b"0", b"PRTE_X": b"0"}
    found = without_rank_variables({**settings, **of_rank})
    assert found == {b"SLURM_JOB_ID": b"7", b"SLURM_JOB_NODELIST": b"n1", b"HOME": b"/"}
    of_step = {b"SLURM_PROCID": b"0", b"SLURM_STEP_ID": b"1", b"SLURM_LOCALID": b"0"}
    assert without_rank_variables({**settings, **of_step}) == settings

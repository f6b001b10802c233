"""Removes from an environment the variables that an MPI launcher sets for the ranks it starts.

If a worker is itself a rank, or runs in a step of SLURM, a program that inherits these variables
takes itself for that rank. Pure; any number of threads may call the functions.
"""

from __future__ import annotations

from collections.abc import Mapping

#: How the variables begin that the launchers of MPICH, Open MPI and Intel MPI set for a rank.
_PREFIXES = (b"PMI", b"HYD", b"OMPI_", b"PRTE_", b"MPI_LOCAL", b"MPIR_", b"I_MPI_")

#: A process that has one of these is a rank. Without them, the others are the user's settings.
_RANK_VARIABLES = (b"PMI_RANK", b"PMI_FD", b"PMIX_RANK", b"OMPI_COMM_WORLD_RANK")

#: What SLURM sets for a task of a step. What it sets for the allocation stays: `srun` needs it.
_STEP_PREFIXES = (b"SLURM_STEP", b"SLURM_CPU_BIND", b"SLURM_MEM_BIND", b"SLURM_SRUN_COMM")
_STEP_VARIABLES = (
    *(b"SLURM_PROCID", b"SLURM_LOCALID", b"SLURM_NODEID", b"SLURM_TASK_PID", b"SLURM_GTIDS"),
    *(b"SLURM_LAUNCH_NODE_IPADDR", b"SLURM_DISTRIBUTION"),
)


def without_rank_variables(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return an environment without the variables of a rank or of a step.

    Examples
    --------
    >>> without_rank_variables({b"PMI_RANK": b"0", b"PMI_SIZE": b"2", b"HOME": b"/"})
    {b'HOME': b'/'}
    >>> without_rank_variables({b"OMPI_MCA_btl": b"self", b"SLURM_JOB_ID": b"7"})
    {b'OMPI_MCA_btl': b'self', b'SLURM_JOB_ID': b'7'}
    """
    clean = dict(environ)
    if any(name in clean for name in _RANK_VARIABLES):
        clean = {name: value for name, value in clean.items() if not name.startswith(_PREFIXES)}
    if b"SLURM_PROCID" in clean:
        for name in list(clean):
            if name in _STEP_VARIABLES or name.startswith(_STEP_PREFIXES):
                del clean[name]
    return clean

"""Says why a cluster has no worker for tasks, and where to look for the reason.

Any thread may call the functions, except for that of Dask's event loop; they never raise. They ask
the scheduler, and may run `squeue`, for some seconds.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Collection, Mapping
from typing import Any

from distributed import Client

from daskbatch.cluster.growth.orders import are_workers_on_order
from daskbatch.cluster.versions.software import UnfitWorker, own_software

#: How long SLURM may take to say what has become of jobs.
_QUEUE_TIMEOUT_SECONDS = 5.0

#: How many workers or jobs a message names.
_MAX_NAMED = 5


def describe_missing(client: Client, unfit: Collection[UnfitWorker] = ()) -> str:
    """Return why a cluster has no worker that can run tasks, as far as that is known.

    Parameters
    ----------
    client : distributed.Client
        The connection to the cluster.
    unfit : collection of UnfitWorker
        The workers that have joined, and that have other software.
    """
    parts = [str(each) for each in list(unfit)[:_MAX_NAMED]]
    if len(unfit) > _MAX_NAMED:
        parts.append(f"and {len(unfit) - _MAX_NAMED} more")
    if unfit:
        parts.append(f"tasks need {own_software()}")
    parts += _describe_cluster(getattr(client, "cluster", None))
    return "; ".join(
        ["the cluster has none that can run it" if unfit else "the cluster has none", *parts]
    )


def find_unfit(client: Client) -> list[UnfitWorker]:
    """Return the workers of a cluster that have other software."""
    with contextlib.suppress(Exception):  # the scheduler does not answer, or has no plugin of ours
        found = client.sync(client.scheduler.daskbatch_unfit, waits=False)
        return [UnfitWorker(*each) for each in found]
    return []


def is_hopeless(client: Client, unfit: Collection[UnfitWorker]) -> bool:
    """Return whether a cluster without a fit worker has unfit ones, and none on order.

    A cluster that has no worker at all may get some, and tasks wait.
    """
    return bool(unfit) and not are_workers_on_order(client)


def _describe_cluster(cluster: Any) -> list[str]:
    """Return what a cluster object says about the workers that it has asked for."""
    try:
        wanted, here = len(cluster.plan), len(cluster.observed)
        if wanted <= here:
            return []
        parts = [f"{wanted - here} of {wanted} that were asked for have not joined"]
        jobs = {str(each.job_id): each for each in cluster.workers.values() if each.job_id}
        if jobs:
            parts.append(describe_jobs(list(jobs), _slurm_states(list(jobs))))
            directory = getattr(next(iter(jobs.values())), "log_directory", None)
            where = f"in {directory}" if directory else "by the queueing system, if it keeps it"
            parts.append(f"the output of the jobs is {where}")
        return parts
    except Exception:  # any class may stand for a cluster
        return []


def describe_jobs(jobs: Collection[str], states: Mapping[str, str] | None) -> str:
    """Return what has become of jobs, in words.

    Parameters
    ----------
    jobs : collection of str
        The numbers of the jobs.
    states : mapping, optional
        The state of each job that is in the queue; None if that is unknown.

    Examples
    --------
    >>> describe_jobs(["7", "8"], {"7": "PENDING"})
    'job 7 is PENDING, job 8 has ended, and its worker is not there'
    >>> describe_jobs(["7"], None)
    'the jobs are 7: ask the queueing system for their states'
    """
    named = list(jobs)[:_MAX_NAMED]
    more = [f"and {len(jobs) - len(named)} more"] * (len(jobs) > len(named))
    if states is None:
        return (
            f"the jobs are {', '.join([*named, *more])}: ask the queueing system for their states"
        )
    found = [
        f"job {job} is {states[job]}"
        if job in states
        else f"job {job} has ended, and its worker is not there"
        for job in named
    ]
    return ", ".join([*found, *more])


def _slurm_states(jobs: Collection[str]) -> dict[str, str] | None:
    """Ask SLURM for the states of jobs; None if it cannot be asked."""
    squeue = shutil.which("squeue")
    if squeue is None:
        return None
    # All jobs of the user: `squeue` may refuse a list that names a job which it has forgotten.
    command = [squeue, "--me", "--noheader", "--format=%A %T"]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=_QUEUE_TIMEOUT_SECONDS, check=False
    )
    if answer.returncode != 0:
        return None
    lines = (line.split() for line in answer.stdout.splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2 and words[0] in jobs}

"""Plugins run only beside the same software; what is said of other software, and of no workers."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import NannyPlugin

import daskbatch
from daskbatch.cluster.growth.missing_workers import describe_missing
from daskbatch.cluster.nanny_plugin import BatchNannyPlugin
from daskbatch.cluster.scheduler_plugin import BatchSchedulerPlugin
from daskbatch.cluster.versions.guarded_plugins import (
    GuardedNannyPlugin,
    GuardedSchedulerPlugin,
    GuardedWorkerPlugin,
)
from daskbatch.cluster.versions.software import (
    Software,
    UnfitWorker,
    difference,
    own_software,
    warning,
)
from daskbatch.worker.plugin import BatchWorkerPlugin

GUARDED = {
    GuardedNannyPlugin: BatchNannyPlugin,
    GuardedSchedulerPlugin: BatchSchedulerPlugin,
    GuardedWorkerPlugin: BatchWorkerPlugin,
}


@pytest.mark.parametrize("guarded", GUARDED)
def test_a_plugin_becomes_itself_beside_the_same_software(guarded: Any) -> None:
    found = pickle.loads(pickle.dumps(guarded()))
    assert type(found) is GUARDED[guarded]
    assert (found.name, found.idempotent) == (guarded.name, guarded.idempotent)


def test_a_pickled_plugin_has_nothing_of_daskbatch_but_names() -> None:
    text = pickle.dumps(GuardedWorkerPlugin())
    assert pickle.loads(text.replace(b"daskbatch.worker.plugin", b"daskbatch.worker.plugin"))
    assert b"cdaskbatch" not in text
    assert text.count(b"BatchWorkerPlugin") == 1


def test_beside_other_software_a_worker_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(GuardedWorkerPlugin())
    monkeypatch.setattr(daskbatch, "__version__", "99.0")
    sent: list[dict[str, Any]] = []
    handlers: dict[str, Any] = {}
    pickle.loads(pickled).setup(SimpleNamespace(batched_send=sent.append, stream_handlers=handlers))
    # What the scheduler sends to all workers must not end this one.
    handlers["daskbatch-revoke"](op="daskbatch-revoke", topic="t")
    (message,) = sent
    assert message.pop("host")
    python = own_software().python
    assert message == {"op": "daskbatch-unfit", "python": python, "daskbatch": "99.0"}


def test_beside_other_software_a_nanny_does_nothing_and_a_scheduler_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nanny, scheduler = pickle.dumps(GuardedNannyPlugin()), pickle.dumps(GuardedSchedulerPlugin())
    monkeypatch.setattr(daskbatch, "__version__", "99.0")
    assert type(pickle.loads(nanny)) is NannyPlugin
    with pytest.raises(ImportError, match=r"the scheduler on \S+ has Python \S+ and daskbatch 99"):
        pickle.loads(scheduler)


def test_a_message_names_hosts_and_versions() -> None:
    workers = [UnfitWorker(f"tcp://{n}", f"n{n}", "3.99", "0.1.0") for n in range(7)]
    text = difference("tcp://here", workers)
    assert str(own_software()) in text
    assert "the worker tcp://4 on n4 has Python 3.99 and daskbatch 0.1.0; and 2 more." in text
    assert "install daskbatch" not in warning(workers[0])
    without = UnfitWorker("tcp://9", "n9", "3.11", "")
    assert "Python 3.11 and no daskbatch; it gets no tasks" in warning(without)
    assert "install daskbatch in the environment" in warning(without)
    assert without.software == Software("3.11", "")


def client_of(*jobs: str, here: int = 0) -> Any:
    workers = {
        number: SimpleNamespace(job_id=job, log_directory="/scratch/logs")
        for number, job in enumerate(jobs)
    }
    cluster = SimpleNamespace(plan=set(workers), observed=set(range(here)), workers=workers)
    return SimpleNamespace(cluster=cluster)


def test_jobs_that_ended_in_the_queue_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "squeue"
    program.write_text("#!/bin/sh\necho 17 PENDING\necho 99 RUNNING\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    text = describe_missing(client_of("17", "18"))
    assert text == (
        "the cluster has none; 2 of 2 that were asked for have not joined; "
        "job 17 is PENDING, job 18 has ended, and its worker is not there; "
        "the output of the jobs is in /scratch/logs"
    )
    program.write_text("#!/bin/sh\nexit 1\n")
    assert "the jobs are 17, 18: ask the queueing system" in describe_missing(client_of("17", "18"))


def test_what_is_unknown_of_a_cluster_is_not_said() -> None:
    for client in (SimpleNamespace(), SimpleNamespace(cluster=object()), client_of("1", here=1)):
        assert describe_missing(client) == "the cluster has none"
    unfit = UnfitWorker("tcp://9", "n9", "3.99", "")
    assert describe_missing(SimpleNamespace(), [unfit]) == (
        "the cluster has none that can run it; "
        f"the worker tcp://9 on n9 has Python 3.99 and no daskbatch; tasks need {own_software()}"
    )

"""Helpers of tests of gangs: what waits on the scheduler, and tasks that wait for files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from distributed import Client
from support.waiting import wait_until

from daskbatch import Batch
from daskbatch.batch.task import Task

#: A task that waits for a file gives up after this time. Seconds.
TIMEOUT_SECONDS = 60.0


def gangs(batch: Batch) -> list[dict[str, Any]]:
    client: Client = batch.client
    return list(client.sync(client.scheduler.daskbatch_gangs))


def no_slot_is_held(batch: Batch) -> None:
    """Wait until no gang and no holder remains."""

    def remaining(dask_scheduler: Any) -> list[str]:
        return [str(key) for key in dask_scheduler.tasks if "daskbatch_slot" in str(key)]

    wait_until(lambda: not gangs(batch) and not batch.client.run_on_scheduler(remaining))


def wait_for(path: Path, say: Path | None = None) -> str:
    """Wait until a file is there; say so before, by another file."""
    if say is not None:
        say.touch()
    end = time.monotonic() + TIMEOUT_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(str(path))
        time.sleep(0.005)
    return path.name


def start(task: Task) -> Task:
    task.start()
    return task

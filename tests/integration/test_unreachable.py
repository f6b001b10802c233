"""What one process of a worker has found out about a server, the others know, too."""

from __future__ import annotations

from support.cluster_info import workers_of

from daskbatch import Batch
from daskbatch.worker import unreachable
from daskbatch.worker.handshake import ServerAddress

SERVER = ServerAddress("192.0.2.1", 1, b"secret", False)


def find() -> bool:
    before = unreachable.is_unreachable(SERVER)
    unreachable.add_unreachable(SERVER)
    return before


def look() -> bool:
    return unreachable.is_unreachable(SERVER)


def forget() -> None:
    unreachable.forget_unreachable(SERVER)


def test_processes_of_a_worker_know_the_same(batch: Batch) -> None:
    worker, other = list(workers_of(batch.client))[:2]
    fresh = batch.options(isolation="fresh", workers=worker)
    inside = batch.options(isolation="thread", workers=worker)
    found, first, second = fresh.function(find), inside.function(look), fresh.function(look)
    elsewhere = batch.options(isolation="fresh", workers=other).function(look)
    forgotten = inside.function(forget)
    for task in (found, first, second, elsewhere, forgotten):
        task.run(60)
    assert [each.get() for each in (found, first, second, elsewhere)] == [False, True, True, False]

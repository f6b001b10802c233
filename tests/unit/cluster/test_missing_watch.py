"""Tasks that wait for the first worker: the reason is said, and once for each reason."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import dask
import pytest

from daskbatch.cluster.growth import missing_watch
from daskbatch.cluster.growth.missing_watch import MissingWorkersWatch
from daskbatch.cluster.versions.software import UnfitWorker

UNFIT = UnfitWorker("tcp://9", "n9", "3.99", "0.1")


class Watched:
    """A watch of a cluster that the test describes, and the calls that it has asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits = True
        self.reason = "the cluster has none"
        self.unfit: list[UnfitWorker] = []
        self.refused: list[str] = []
        self.calls: queue.Queue[tuple[float, Callable[[], None]]] = queue.Queue()
        monkeypatch.setattr(missing_watch, "describe_missing", lambda client, unfit: self.reason)
        monkeypatch.setattr(missing_watch, "find_unfit", lambda client: self.unfit)
        client: Any = SimpleNamespace(status="running")
        self.watch = MissingWorkersWatch(
            *(client, "tasks wait", lambda: self.waits),
            *(lambda *call: self.calls.put(call), self.refused.append),
        )

    def look(self, **changes: Any) -> float:
        """Change the cluster once the last look is over, and have the watch look again.

        Returns
        -------
        float
            After how many seconds it wanted that.
        """
        seconds, call = self.calls.get(timeout=60)
        for name, value in changes.items():
            setattr(self, name, value)
        call()
        return seconds


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_each_reason_is_said_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "daskbatch"):
        watched.watch.start()
        watched.watch.start()
        for reason in ("job 7 is PENDING", "job 7 is PENDING", "job 7 has ended"):
            assert watched.look(reason=reason) > 1
        _, call = watched.calls.get(timeout=60)
        said = [record.getMessage() for record in caplog.records]
        begin = "tasks wait for a worker: job 7"
        assert said == [f"{begin} is PENDING", f"{begin} has ended"]
        # A worker has joined: nothing more is said, and nothing is looked at.
        watched.waits = False
        call()
        assert watched.calls.empty()
        # It leaves again.
        watched.waits = True
        watched.watch.start()
        watched.look()
        watched.calls.get(timeout=60)
    assert len(caplog.records) == 3
    assert watched.refused == []


def test_unfit_workers_are_waited_for_until_the_timeout(watched: Watched) -> None:
    with dask.config.set({"daskbatch.unmet-timeout": "0s"}):
        watched.watch.start()
        watched.look()
        watched.look(unfit=[UNFIT])
        assert watched.look() == 0
        watched.calls.get(timeout=60)
    assert watched.refused == ["has no worker: the cluster has none"]


def test_unfit_workers_are_waited_for_without_an_end(watched: Watched) -> None:
    watched.unfit = [UNFIT]
    with dask.config.set({"daskbatch.unmet-timeout": None}):
        watched.watch.start()
        assert [watched.look() > 1 for _ in range(4)] == [True] * 4
        watched.calls.get(timeout=60)
    assert watched.refused == []

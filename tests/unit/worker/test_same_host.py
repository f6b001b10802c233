"""A worker that is asked for a value which is just arriving waits for it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from daskbatch.memory.host import host_id
from daskbatch.worker import same_host


class _Worker:
    """What `send_references` needs of a worker: one that is receiving the value of `key`."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {"get_data": self._send_values}
        self.data: dict[str, int] = {}
        self.state = SimpleNamespace(tasks={"key": SimpleNamespace(state="flight")})

    def rpc(self, address: str) -> Any:
        async def daskbatch_host() -> str:
            return host_id()

        return SimpleNamespace(daskbatch_host=daskbatch_host)

    async def _send_values(self, comm: Any, keys: list[str], **kwargs: Any) -> dict[str, int]:
        return {key: self.data[key] for key in keys if key in self.data}

    def receive(self, key: str, value: int) -> None:
        self.data[key] = value
        self.state.tasks[key].state = "memory"


def _asked(worker: _Worker) -> asyncio.Task[dict[str, int]]:
    """Return a request of another worker of this host, which has begun."""
    same_host.send_references(worker)  # type: ignore[arg-type]
    handler = worker.handlers["get_data"]
    return asyncio.ensure_future(handler(None, ["key"], who="tcp://127.0.0.1:1"))


pytestmark = pytest.mark.skipif(not host_id(), reason="memory cannot be mapped here")


def test_a_value_that_arrives_is_sent() -> None:
    async def run() -> None:
        worker = _Worker()
        answer = _asked(worker)
        for _ in range(20):  # turns of the event loop
            await asyncio.sleep(0)
        assert not answer.done()
        worker.receive("key", 7)
        assert await answer == {"key": 7}

    asyncio.run(run())


def test_a_value_that_does_not_arrive_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(same_host, "_ARRIVAL_SECONDS", 0.02)

    async def run() -> None:
        assert await _asked(_Worker()) == {}

    asyncio.run(run())

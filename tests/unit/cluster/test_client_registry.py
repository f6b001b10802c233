"""The registry says which clients a Batch has, and which connections are silent for too long."""

from __future__ import annotations

import asyncio

import pytest

from daskbatch.cluster.client_registry import ClientRegistry, RegisteredClient


def register(
    registry: ClientRegistry, topic: str, is_creator: bool = False, connection: str = ""
) -> RegisteredClient | None:
    return registry.register(topic, "batch", connection or topic, "process 1 on here", is_creator)


def test_a_batch_exists_from_its_creator_to_its_end() -> None:
    registry = ClientRegistry()
    assert register(registry, "early") is None
    creator, other = register(registry, "creator", is_creator=True), register(registry, "other")
    assert creator is not None
    assert other is not None
    assert (creator.number, other.number) == (0, 1)
    assert registry.of_batch("batch") == [creator, other]
    assert registry.end_batch("batch") == {"other"}
    assert register(registry, "late") is None
    assert registry.end_batch("batch") == set()


def test_a_batch_of_which_the_last_client_is_removed_is_empty() -> None:
    registry = ClientRegistry()
    creator = register(registry, "creator", is_creator=True)
    assert not registry.is_empty("batch")
    assert registry.remove("creator") is creator
    assert registry.is_empty("batch")
    assert registry.remove("creator") is None


def test_waiting_ends_when_the_last_other_client_is_removed() -> None:
    async def wait() -> tuple[list[RegisteredClient], list[RegisteredClient]]:
        registry = ClientRegistry()
        register(registry, "creator", is_creator=True)
        register(registry, "other")
        at_once = await registry.wait_until_alone("creator", 0)
        waiting = asyncio.create_task(registry.wait_until_alone("creator", 60))
        await asyncio.sleep(0)
        registry.remove("other")
        return at_once, await asyncio.wait_for(waiting, 30)

    at_once, at_the_end = asyncio.run(wait())
    assert [client.topic for client in at_once] == ["other"]
    assert at_the_end == []


def test_silent_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("daskbatch.cluster.client_registry.monotonic", lambda: now[0])
    registry = ClientRegistry()
    assert registry.seconds_to_next_silence() is None
    registry.record_heartbeat("one", 5.0)
    registry.record_heartbeat("other", 20.0)
    assert registry.seconds_to_next_silence() == 5.0
    now[0] += 6.0
    assert registry.silent_connections() == ["one"]
    registry.record_heartbeat("one", 5.0)
    assert registry.silent_connections() == []
    registry.disconnected("one")
    registry.disconnected("other")
    assert registry.seconds_to_next_silence() is None

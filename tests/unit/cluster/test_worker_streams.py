"""Messages to workers that do not wait for Dask's next batch."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from distributed.batched import BatchedSend

from daskbatch.cluster.worker_streams import send_at_once

#: A test that waits for the end of this interval hangs.
_INTERVAL_SECONDS = 1000


class FakeComm:
    """Notes what is written."""

    def __init__(self) -> None:
        self.written: asyncio.Queue[Any] = asyncio.Queue()

    async def write(self, payload: Any, **_: Any) -> int:
        await self.written.put(payload)
        return 1

    def closed(self) -> bool:
        return False


def test_messages_are_sent_at_once_after_others() -> None:
    async def run() -> None:
        comm, stream = FakeComm(), BatchedSend(interval=f"{_INTERVAL_SECONDS} s")
        stream.start(comm)
        scheduler: Any = SimpleNamespace(
            stream_comms={"w": stream}, worker_send=lambda address, message: stream.send(message)
        )
        for number in range(3):
            scheduler.worker_send("w", {"op": "before", "number": number})
            send_at_once(scheduler, "w", {"op": "now", "number": number})
            sent = await asyncio.wait_for(comm.written.get(), 60)
            assert [each["op"] for each in sent] == ["before", "now"]
        send_at_once(scheduler, "left", *[])  # a worker that has left
        stream.please_stop = True
        stream.waker.set()
        await stream.stopped.wait()

    asyncio.run(run())

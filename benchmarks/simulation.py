"""Simulates a cluster of thousands of slots: what each part does for a task, and where that ends.

The plan and the dispatcher are the real ones, and the client's time is measured while they work.
The cluster is a model, in virtual time: messages take a latency, the scheduler needs some time for
each event of a key (it is submitted, it is over) and serves one after another, and slots run
blocks. No Dask runs.

The grain at which a part is busy all the time is its time for a task times the number of slots.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import pickle
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from daskbatch.describe.spec import function_call
from daskbatch.dispatch.backend import Members, RevokeCallback
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.lower import Lowered, Setting
from daskbatch.dispatch.task_record import SubmittedBlock, TaskRecord
from daskbatch.plan.hazards import ARG
from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import OutcomeReport
from daskbatch.worker.execution.outcome import BlockResult, Status

#: The model: seconds for a message, of the scheduler for an event of a key, and of a worker for a
#: member.
LATENCY_SECONDS = 0.0002
BATCHING_SECONDS = 0.005
KEY_SECONDS = 0.0004
MEMBER_SECONDS = 0.000015

_VALUE = pickling.dumps(1)


class Figures(NamedTuple):
    """The result of a simulation: per task unless it says otherwise."""

    client: float
    scheduler: float
    keys: float
    sent: float
    received: float
    efficiency: float


class SimulatedBackend:
    """A `Backend` in virtual time.

    Parameters
    ----------
    slots : int
        The slots of the cluster.
    seconds : float
        How long each task takes.
    """

    def __init__(self, slots: int, seconds: float) -> None:
        self.slots = slots
        self.shares_memory = False
        self.dispatcher: Dispatcher
        self.client_seconds = self.scheduler_seconds = 0.0
        self.keys = self.sent = self.received = 0
        self.end = 0.0
        self._seconds = seconds
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._free = slots
        self._ready: deque[tuple[SubmittedBlock, int]] = deque()
        self._missing: dict[Any, int] = {}
        self._behind: dict[Any, list[Any]] = {}
        self._blocks: dict[Any, tuple[SubmittedBlock, int]] = {}
        self._done: set[Any] = set()
        self._client_free = self._scheduler_free = 0.0

    # -- the client -------------------------------------------------------------------------

    def call(self, now: float, function: Callable[..., None], *arguments: Any) -> None:
        """Have the client do something, and measure how long that really takes."""
        self._client_free = max(self._client_free, now)
        began = time.process_time()
        function(*arguments)
        took = time.process_time() - began
        self.client_seconds += took
        self._client_free += took

    def submit(self, lowered: Lowered, again: bool) -> Mapping[str, Any]:
        graph = dict(lowered.graph)
        # What travels: a pickle of the graph. Its size is that of what the tasks hold.
        self.sent += sum(
            len(each) for node in graph.values() for each in node.args if isinstance(each, bytes)
        )
        self._at(
            self._client_free + BATCHING_SECONDS, lambda now: self._arrive(now, graph, lowered)
        )
        return {}

    def require_alive(self) -> None:
        pass

    def revoke(
        self, members: Members, status: Status, then: RevokeCallback, begun: bool = True
    ) -> None:
        then({}, {})

    def has_cancelled(self, block: SubmittedBlock) -> bool:
        return False

    def release(self, block: SubmittedBlock) -> None:
        pass

    def forget(self, blocks: Sequence[int]) -> None:
        pass

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self._at(self._client_free + seconds, lambda now: self.call(now, function))

    # -- the scheduler ----------------------------------------------------------------------

    def _serve(self, now: float, keys: int) -> float:
        self.keys += keys
        self.scheduler_seconds += keys * KEY_SECONDS
        self._scheduler_free = max(self._scheduler_free, now) + keys * KEY_SECONDS
        return self._scheduler_free

    def _arrive(self, now: float, graph: dict[Any, Any], lowered: Lowered) -> None:
        now = self._serve(now, len(graph))
        for key, block in lowered.blocks.items():
            self._blocks[key] = block, len(block.records)
        for key, node in graph.items():
            waits = [each for each in node.dependencies if each not in self._done]
            self._missing[key] = len(waits)
            for each in waits:
                self._behind.setdefault(each, []).append(key)
        for key in graph:
            if not self._missing[key]:
                self._release(now, key)
        self._start(now)

    def _release(self, now: float, key: Any) -> None:
        if key in self._blocks:
            self._ready.append(self._blocks[key])
        else:
            self._finish(now, key)  # a token

    def _finish(self, now: float, key: Any) -> None:
        self._done.add(key)
        for each in self._behind.pop(key, ()):
            self._missing[each] -= 1
            if not self._missing[each]:
                self._release(now, each)

    def _start(self, now: float) -> None:
        while self._free and self._ready:
            self._free -= 1
            block, count = self._ready.popleft()
            took = count * (self._seconds + MEMBER_SECONDS)
            begin = now + LATENCY_SECONDS + BATCHING_SECONDS
            self._at(begin + took, lambda now, b=block, n=count: self._over(now, b, n))

    def _over(self, now: float, block: SubmittedBlock, count: int) -> None:
        self._free += 1
        self.end = now
        report = OutcomeReport(
            block.number,
            0,
            bytes(count),
            [_VALUE] * count,
            array("f", [self._seconds] * count).tobytes(),
            {},
        )
        data = pickle.dumps(report, 5)
        self.received += len(data)
        arrived = self._serve(now + LATENCY_SECONDS, 1)
        self._finish(arrived, block.key)
        self._start(arrived)
        self._at(arrived, lambda now: self._report(now, block, data))

    def _report(self, now: float, block: SubmittedBlock, data: bytes) -> None:
        self.call(now, self.dispatcher.report, data)
        self.call(now, self.dispatcher.key_finished, block)

    # -- virtual time -----------------------------------------------------------------------

    def _at(self, when: float, function: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), function))

    def run(self) -> None:
        while self._events:
            when, _, function = heapq.heappop(self._events)
            function(when)


def no_entry(payload: bytes, *inputs: Any) -> BlockResult:
    raise NotImplementedError


def task(*inputs: int) -> int:
    return sum(inputs)


def make_records(count: int, width: int) -> list[TaskRecord]:
    """Return independent tasks if `width` is 0, else a stencil of this width."""
    call = function_call(task, (), {})
    records = [TaskRecord("client", number, "task", call) for number in range(count)]
    if width:
        for number, record in enumerate(records):
            step, x = divmod(number, width)
            if step:
                first = (step - 1) * width
                some = records[first + max(0, x - 1) : first + min(width, x + 2)]
                record.waits = tuple((each, ARG) for each in some)
    return records


def simulate(slots: int, seconds: float, count: int, width: int) -> Figures:
    backend = SimulatedBackend(slots, seconds)
    setting = Setting("topic", no_entry, 0.2, 1 << 20, 1 << 16, 1 << 20)
    dispatcher = backend.dispatcher = Dispatcher(backend, setting)  # type: ignore[arg-type]
    # Tasks of this function have run before.
    first = make_records(1, 0)
    backend.call(0.0, dispatcher.submit, first, "first")
    backend.run()
    records = make_records(count, width)
    began = backend.end
    for attribute in ("client_seconds", "scheduler_seconds", "keys", "sent", "received"):
        setattr(backend, attribute, 0)
    backend.call(began, dispatcher.submit, records, "program")
    backend.run()
    assert all(record.over for record in records)
    makespan = backend.end - began
    return Figures(
        backend.client_seconds / count,
        backend.scheduler_seconds / count,
        backend.keys / count,
        backend.sent / count,
        backend.received / count,
        count * seconds / (makespan * min(slots, width or count)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=10_000)
    parser.add_argument("--tasks", type=int, default=200_000)
    arguments = parser.parse_args()
    slots, count = arguments.slots, arguments.tasks
    print(f"{count} tasks on {slots} slots, in virtual time")
    print(
        f"{'graph':<10}{'task':>9}{'client':>11}{'scheduler':>11}{'events':>8}{'sent':>8}"
        f"{'received':>10}{'efficiency':>12}   ends below"
    )
    for name, width in (("flat", 0), ("stencil", slots)):
        for seconds in (0.001, 0.01, 0.1, 1.0, 10.0):
            found = simulate(slots, seconds, count, width)
            part = "client" if found.client > found.scheduler else "scheduler"
            limit = max(found.client, found.scheduler) * slots
            print(
                f"{name:<10}{seconds * 1e3:>6.0f} ms{found.client * 1e6:>8.1f} us"
                f"{found.scheduler * 1e6:>8.1f} us{found.keys:>8.3f}{found.sent:>6.0f} B"
                f"{found.received:>8.0f} B{found.efficiency:>12.1%}   "
                f"{limit * 1e3:.0f} ms ({part})",
                flush=True,
            )


if __name__ == "__main__":
    main()

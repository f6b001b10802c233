"""An open block runs what it receives, and says exactly what it will not run."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.waiting import wait_for_file, wait_until

from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import (
    LOCAL,
    BlockMember,
    BlockSpec,
    ClosedReport,
    OutcomeReport,
)
from daskbatch.worker.execution.block import Link as Inputs
from daskbatch.worker.execution.journal import Journal, JournaledBlock, read_journals
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.isolation.isolated_run import IsolatedRun
from daskbatch.worker.open_blocks import frame_link
from daskbatch.worker.open_blocks.frame_link import FrameLink, LinkClosed
from daskbatch.worker.open_blocks.isolated_open_run import IsolatedOpenRun
from daskbatch.worker.open_blocks.messages import (
    END,
    NewMembers,
    OpenMember,
    decode_report,
    encode_members,
)
from daskbatch.worker.open_blocks.open_run import OpenRun

TIMEOUT = 30.0


@dataclass
class Watch:
    wanted: bool = False
    connected: bool = True

    def is_wanted(self) -> bool:
        return self.wanted

    def is_connected(self) -> bool:
        return self.connected


@dataclass
class Client:
    """The client's end, and the thread that runs the block."""

    run: OpenRun
    link: FrameLink
    watch: Watch
    other_end: FrameLink
    statuses: dict[int, int] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    #: When each has ended; 0 for those that have not begun.
    ended: dict[int, float] = field(default_factory=dict)
    received: int | None = None
    _functions: int = 0

    def send(self, function: Callable[..., Any], *calls: tuple[Any, ...]) -> None:
        data = [pickling.dumps((args, {})) for args in calls]
        self.send_packed(function, [OpenMember(self._functions, each, "task") for each in data])

    def send_packed(self, function: Callable[..., Any], members: Sequence[OpenMember]) -> None:
        self._functions += 1
        new = NewMembers([pickling.dumps(function)], members)
        self.link.send(encode_members(new))

    def apply(self, report: object) -> None:
        if isinstance(report, ClosedReport):
            self.received = report.received
        elif isinstance(report, OutcomeReport):
            assert len(array("f", report.durations)) == len(report.statuses)
            assert report.measures is not None
            ended = array("d", report.measures.ended)
            for member, status in enumerate(report.statuses, report.start):
                self.statuses[member] = status
                self.ended[member] = ended[member - report.start]
                value = report.values[member - report.start]
                if status == Status.DONE and value is not None:
                    self.values[member] = pickle.loads(value)

    def wait(self, over: Callable[[], bool]) -> None:
        while not over():
            self.link.wait(TIMEOUT)
            for frame in self.link.receive():
                self.apply(decode_report(frame))

    def wait_closed(self) -> None:
        self.wait(lambda: self.received is not None)


def make_spec(**changes: Any) -> BlockSpec:
    spec = BlockSpec(
        block=1,
        topic="topic",
        functions=(),
        calls=(),
        labels=(),
        links={},
        limits={},
        isolated=False,
        journaled=True,
        budget=0.2,
        share_limit=1 << 20,
        inline_limit=1 << 16,
        output_limit=1 << 16,
        open=True,
    )
    return spec._replace(**changes)


#: Starts an open block, with changes of its spec.
Start = Callable[..., Client]


@contextmanager
def starting(kind: type[OpenRun]) -> Iterator[Start]:
    made: list[tuple[Client, threading.Thread]] = []

    def start(journal: Journal | None = None, **changes: Any) -> Client:
        isolated = kind is IsolatedOpenRun
        run, watch = kind(make_spec(isolated=isolated, **changes), ()), Watch()
        ours, theirs = socket.socketpair()
        run.watch, run.journal = watch, journal
        other_end = FrameLink(theirs)
        assert run.attach(other_end)
        thread = threading.Thread(target=run)
        client = Client(run, FrameLink(ours), watch, other_end)
        made.append((client, thread))
        thread.start()
        return client

    yield start
    for client, thread in made:
        client.link.close()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@pytest.fixture(params=[OpenRun, IsolatedOpenRun])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    with starting(request.param) as start:
        yield start


@pytest.fixture
def start_isolated() -> Iterator[Start]:
    with starting(IsolatedOpenRun) as start:
        yield start


def add(one: int, other: int) -> int:
    return one + other


def test_members_run_as_they_arrive(start: Start) -> None:
    client = start()
    client.send(add, (1, 2), (3, 4))
    client.wait(lambda: len(client.values) == 2)
    client.send(add, (5, 6))
    client.wait(lambda: len(client.values) == 3)
    assert client.values == {0: 3, 1: 7, 2: 11}
    client.link.send(END)
    client.wait_closed()
    assert client.received == 3


def test_a_member_takes_the_value_of_one_before_it(start: Start) -> None:
    client = start()
    first = OpenMember(0, pickling.dumps(((1, 2), {})), "first")
    call, references, _ = pickling.pack(((_Reference(), 10), {}))
    assert list(references) == ["the first"]
    inputs = Inputs(needs=((LOCAL, 0),), values=(BlockMember((LOCAL, 0), "result"),))
    client.send_packed(add, [first, OpenMember(0, call, "second", inputs)])
    client.wait(lambda: len(client.values) == 2)
    assert client.values == {0: 3, 1: 13}


class _Reference:
    def __reduce__(self) -> Any:
        return pickling.reference("the first")


def test_it_ends_at_once_if_it_is_idle_and_its_slot_is_wanted(
    start: Start,
) -> None:
    client = start()
    client.send(add, (1, 2))
    client.wait(lambda: len(client.values) == 1)
    client.watch.wanted = True
    client.wait_closed()
    assert client.received == 1


def test_it_ends_after_its_time_only_if_its_slot_is_wanted(start: Start, tmp_path: Path) -> None:
    client = start(budget=0.0)
    client.send(add, *((number, 0) for number in range(50)))
    client.wait(lambda: len(client.values) == 50)
    gate = tmp_path / "gate"
    client.send(wait_for_file, *([(gate,)] * 3))
    wait_until(lambda: client.run.running >= 50)
    client.watch.wanted = True
    gate.touch()
    client.wait_closed()
    assert client.received == 53
    client.wait(lambda: len(client.statuses) == 53)
    assert client.statuses[50] == Status.DONE
    assert client.statuses[52] == Status.DEFERRED


def test_a_member_that_runs_for_long_gives_back_those_behind_it(
    start: Start, tmp_path: Path
) -> None:
    client = start(budget=0.0)
    gate = tmp_path / "gate"
    client.send(wait_for_file, *([(gate,)] * 2))
    while client.received is None:
        client.run.tick()  # as the worker's event loop does
        client.run.deliver()
        client.link.wait(0.01)
        for frame in client.link.receive():
            client.apply(decode_report(frame))
    assert client.received == 2
    # What arrives now is not received, and never runs.
    client.send(add, (1, 1))
    gate.touch()
    client.wait(lambda: len(client.statuses) == 2)
    assert client.statuses[1] == Status.DEFERRED
    assert len(client.run.spec.calls) == 2


def test_a_member_that_runs_for_long_and_has_none_behind_it_keeps_the_block_open(
    start: Start, tmp_path: Path
) -> None:
    client = start(budget=0.0)
    gate = tmp_path / "gate"
    client.send(wait_for_file, (gate,))
    wait_until(lambda: client.run.running == 0)
    for _ in range(10):
        client.run.tick()
    assert client.run.deliver()
    gate.touch()
    client.wait(lambda: client.statuses == {0: Status.DONE})
    client.send(add, (1, 2))
    client.wait(lambda: client.values.get(1) == 3)
    assert client.received is None


def test_a_closed_block_whose_last_member_runs_for_long_is_not_silent(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    gate = tmp_path / "gate"
    client.send(wait_for_file, (gate,))
    wait_until(lambda: client.run.running == 0)
    client.link.send(END)
    while client.received is None:
        client.run.tick()
        client.run.deliver()
        client.link.wait(0.01)
        for frame in client.link.receive():
            client.apply(decode_report(frame))
    monkeypatch.setattr(frame_link, "PING_INTERVAL_SECONDS", 0.0)
    here, there = client.link.heard, client.other_end.heard
    client.link.send(b"")
    client.run.tick()
    assert client.other_end.heard > there
    client.link.wait(TIMEOUT)
    assert client.link.receive() == []
    assert client.link.heard > here
    gate.touch()
    client.wait(lambda: client.statuses == {0: Status.DONE})


def test_nothing_begins_on_a_worker_that_has_lost_its_scheduler(
    start: Start,
) -> None:
    client = start()
    client.watch.connected = False
    client.wait_closed()
    client.send(add, (1, 2))
    with pytest.raises(LinkClosed):
        client.wait(lambda: False)
    assert client.received == 0
    assert not client.statuses


def test_outcomes_are_reported_again_after_the_connection_was_lost(
    start: Start, tmp_path: Path
) -> None:
    client = start()
    client.send(add, (1, 2))
    client.wait(lambda: len(client.values) == 1)
    gate = tmp_path / "gate"
    client.send(wait_for_file, (gate,))
    wait_until(lambda: client.run.running == 1)
    client.link.close()
    while client.run.deliver():
        client.run.tick()
    gate.touch()
    found: set[int] = set()
    while found != {0, 1}:
        for report in client.run.reports():
            if isinstance(report, OutcomeReport):
                found |= set(range(report.start, report.start + len(report.statuses)))


def test_a_revoked_member_does_not_run(start: Start) -> None:
    client = start()
    assert client.run.revoke([1], Status.CANCELLED) == []
    client.send(add, (1, 1), (2, 2), (3, 3))
    client.wait(lambda: len(client.statuses) == 3)
    assert client.statuses == {0: Status.DONE, 1: Status.CANCELLED, 2: Status.DONE}


def test_a_second_connection_is_refused(start: Start) -> None:
    client = start()
    one, other = socket.socketpair()
    assert not client.run.attach(FrameLink(one))
    one.close()
    other.close()


def test_a_block_that_has_received_no_member_is_not_lost() -> None:
    """A lost result would have the client wait for the report of a death."""
    run = OpenRun(make_spec(), ())
    ours, theirs = socket.socketpair()
    run.watch = Watch()
    assert run.attach(FrameLink(theirs))
    client = FrameLink(ours)
    client.send(END)
    result = pickle.loads(pickle.dumps(run()))
    client.close()
    assert result.empty
    assert not result.lost


# -- what is known if the worker is killed ----------------------------------------------


def make_journal(directory: Path) -> Journal:
    journal = Journal(directory / "0", 1 << 16)
    journal.begin("topic", 1)
    return journal


def journaled(directory: Path) -> JournaledBlock:
    (block,) = read_journals(directory)
    return block


def test_the_journal_knows_what_runs_and_what_is_over(start: Start, tmp_path: Path) -> None:
    client = start(make_journal(tmp_path))
    gate = tmp_path / "gate"
    client.send(add, (1, 2))
    client.send(wait_for_file, (gate,))
    wait_until(lambda: journaled(tmp_path).running == 1)
    assert client.run.revoke([2], Status.CANCELLED) == []
    client.send(add, (3, 4), (5, 6))
    gate.touch()
    client.wait(lambda: len(client.statuses) == 4)
    entries = journaled(tmp_path).entries
    assert {member: entry[1] for member, entry in entries.items()} == client.statuses
    assert client.statuses[2] == Status.CANCELLED
    assert pickle.loads(entries[3][2] or b"") == 11


@pytest.fixture
def stopped_child(start_isolated: Start, tmp_path: Path) -> Iterator[tuple[Client, int]]:
    """A block with one member that is over; its child does not begin another one."""
    client = start_isolated(make_journal(tmp_path))
    client.send(os.getpid, ())
    client.wait(lambda: 0 in client.values)
    child = client.values[0]
    assert child != os.getpid()
    os.kill(child, signal.SIGSTOP)
    try:
        yield client, child
    finally:
        os.kill(child, signal.SIGCONT)


def request_one_more(client: Client) -> None:
    """Send a member, and wait until its child is asked to run it."""
    client.send(add, (1, 2))
    wait_until(lambda: client.run._inner is not None and client.run._inner[1]._child is not None)


def test_a_worker_that_leaves_gives_back_what_a_child_has_not_begun(
    stopped_child: tuple[Client, int],
) -> None:
    client, child = stopped_child
    request_one_more(client)
    assert not client.run.interrupt()
    os.kill(child, signal.SIGCONT)
    client.wait(lambda: client.statuses.get(1) == Status.DEFERRED)
    assert client.run.interrupted is None
    assert client.ended[1] == 0


def test_a_member_that_is_interrupted_since_the_worker_leaves_has_no_outcome(
    start_isolated: Start, tmp_path: Path
) -> None:
    client = start_isolated(make_journal(tmp_path))
    client.send(wait_for_file, (tmp_path / "gate",))
    wait_until(lambda: journaled(tmp_path).running == 0)
    assert client.run.interrupt()
    wait_until(lambda: len(client.run.log.statuses) == 1)
    assert client.run.interrupted == 0
    assert not journaled(tmp_path).entries


def test_a_member_that_its_child_has_not_begun_does_not_count_as_begun(
    stopped_child: tuple[Client, int], tmp_path: Path
) -> None:
    client, child = stopped_child
    request_one_more(client)
    assert journaled(tmp_path).running == 0
    os.kill(child, signal.SIGCONT)
    client.wait(lambda: client.values.get(1) == 3)
    assert journaled(tmp_path).running == 1


def test_what_was_cancelled_before_its_child_has_begun_it_has_not_begun(
    stopped_child: tuple[Client, int],
) -> None:
    client, child = stopped_child
    request_one_more(client)
    assert client.run.stop([1]) == []
    os.kill(child, signal.SIGCONT)
    client.wait(lambda: client.statuses.get(1) == Status.CANCELLED)
    assert client.ended[0] > 0
    assert client.ended[1] == 0


def test_an_isolated_member_is_over_when_its_child_says_so(
    start_isolated: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its worker may be busy, and learn that later; or never, if it is killed."""
    noticed, take = threading.Event(), IsolatedRun.take_notices

    def take_late(run: IsolatedRun) -> Any:
        assert noticed.wait(TIMEOUT)
        return take(run)

    monkeypatch.setattr(IsolatedRun, "take_notices", take_late)
    client = start_isolated(make_journal(tmp_path))
    client.send(add, (1, 2))
    wait_until(lambda: 0 in journaled(tmp_path).entries)
    assert not client.run.log.statuses
    now = time.time()
    noticed.set()
    client.wait(lambda: client.values.get(0) == 3)
    assert 0 < client.ended[0] <= now

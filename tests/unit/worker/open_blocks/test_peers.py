"""Open blocks send each other outcomes: a member runs as soon as what it waits for is over."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.waiting import wait_for_file, wait_until
from unit.worker.open_blocks.test_open_run import TIMEOUT, Client, Watch, make_spec

from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import BlockMember, Link, SilentPeerReport
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.handshake import ServerAddress
from daskbatch.worker.open_blocks import open_run
from daskbatch.worker.open_blocks.frame_link import FrameLink
from daskbatch.worker.open_blocks.isolated_open_run import IsolatedOpenRun
from daskbatch.worker.open_blocks.messages import (
    NewMembers,
    OpenMember,
    PeerBlock,
    decode_report,
    encode_members,
)
from daskbatch.worker.open_blocks.open_run import OpenRun


class Network:
    """Connects runs by the numbers of their blocks, as the servers of their workers do."""

    def __init__(self) -> None:
        self.runs: dict[int, OpenRun] = {}
        self.links: list[FrameLink] = []
        self.is_cut = False

    def connect(self, address: ServerAddress) -> socket.socket:
        if self.is_cut:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._accept, args=[theirs], daemon=True).start()
        return ours

    def _accept(self, sock: socket.socket) -> None:
        link = FrameLink(sock)
        self.links.append(link)
        while not (frames := link.receive()):
            link.wait(1.0)
        _, block, number = pickle.loads(frames[0])
        link.unread(frames[1:])
        if not self.runs[block].attach_peer(number, link):
            link.close()


class NetworkWatch(Watch):
    """The worker of a block, with a network."""

    network: Network

    def connect(self, address: ServerAddress) -> socket.socket:
        return self.network.connect(address)


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture(params=[OpenRun, IsolatedOpenRun])
def pair(
    request: pytest.FixtureRequest, network: Network, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Client, Client]]:
    """Two blocks, with the numbers 1 and 2, which do not end while they have no members."""
    monkeypatch.setattr(open_run, "_IDLE_SECONDS", TIMEOUT)
    clients, threads = [], []
    for number in (1, 2):
        isolated = request.param is IsolatedOpenRun
        run = request.param(make_spec(block=number, isolated=isolated), ())
        watch = NetworkWatch()
        watch.network = network
        ours, theirs = socket.socketpair()
        run.watch = watch
        other_end = FrameLink(theirs)
        assert run.attach(other_end)
        network.runs[number] = run
        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        clients.append(Client(run, FrameLink(ours), watch, other_end))
    yield clients[0], clients[1]
    for client, thread in zip(clients, threads, strict=True):
        client.link.close()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    for link in network.links:
        link.close()


class _Reference:
    def __reduce__(self) -> Any:
        return pickling.reference("the other")


def increase(number: int) -> int:
    return number + 1


def fail() -> int:
    raise ValueError("no number")


def make_large() -> bytes:
    return bytes(2 << 20)


def wait_and_return(gate: Path, number: int) -> int:
    wait_for_file(gate)
    return number


def taking(member: int) -> OpenMember:
    """Return a call of `increase` with the result of a member of the first other block."""
    call, _, _ = pickling.pack(((_Reference(),), {}))
    source = (0, member)
    link = Link(needs=(source,), values=(BlockMember(source, "result"),))
    return OpenMember(0, call, "taker", link)


ADDRESS = ServerAddress("host", 1, b"a secret", False)


def forward(client: Client, *members: int) -> None:
    """Have the first block send outcomes of members to the second one."""
    new = NewMembers(
        [], [], peers=[PeerBlock(2, ADDRESS)], forwards=[(member, 0) for member in members]
    )
    client.link.send(encode_members(new))


def take(client: Client, *members: int) -> None:
    """Have members of the second block take values of members of the first one."""
    new = NewMembers([pickling.dumps(increase)], [taking(each) for each in members], sources=[1])
    client.link.send(encode_members(new))


def test_a_value_arrives_from_another_block(pair: tuple[Client, Client], tmp_path: Path) -> None:
    one, two = pair
    gate = tmp_path / "gate"
    one.send(wait_and_return, (gate, 7), (gate, 8))
    forward(one, 0, 1)
    take(two, 1, 0)
    wait_until(lambda: two.run._peers._sources)  # it has arrived there
    gate.touch()
    two.wait(lambda: len(two.statuses) == 2)
    # The first may have been given up meanwhile: then the client would place it again.
    assert set(two.values.values()) <= {8, 9}
    assert two.statuses[1] in (Status.DONE, Status.DEFERRED)


def test_an_outcome_that_is_there_already_is_sent(pair: tuple[Client, Client]) -> None:
    one, two = pair
    one.send(increase, (1,), (2,))
    one.wait(lambda: len(one.values) == 2)
    forward(one, 1, 0)
    wait_until(lambda: two.run._peers._attached)  # what is sent has arrived
    take(two, 1, 0)
    two.wait(lambda: len(two.statuses) == 2)
    assert two.values == {0: 4, 1: 3}


def test_what_is_not_done_is_left_to_the_client(pair: tuple[Client, Client]) -> None:
    one, two = pair
    one.send(fail, ())
    one.send(make_large, ())
    forward(one, 0, 1)
    one.wait(lambda: len(one.statuses) == 2)
    wait_until(lambda: two.run._peers._attached)
    take(two, 0, 1)
    two.wait(lambda: len(two.statuses) == 2)
    assert two.statuses == {0: Status.DEFERRED, 1: Status.DEFERRED}
    two.send(increase, (1,))  # and the block goes on
    two.wait(lambda: len(two.values) == 1)
    assert two.values == {2: 2}


def test_a_member_is_given_up_if_nothing_arrives(
    pair: tuple[Client, Client], network: Network
) -> None:
    network.is_cut = True
    one, two = pair
    one.send(increase, (1,))
    forward(one, 0)
    take(two, 0)
    silent: list[SilentPeerReport] = []

    def apply(report: object) -> None:
        Client.apply(two, report)
        if isinstance(report, SilentPeerReport):
            silent.append(report)

    while not (two.statuses and silent):
        two.link.wait(TIMEOUT)
        for frame in two.link.receive():
            apply(decode_report(frame))
    assert two.statuses == {0: Status.DEFERRED}
    assert silent == [SilentPeerReport(2, 1, 0)]


def test_a_block_that_ends_lets_none_wait(
    pair: tuple[Client, Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_run, "_PEER_SECONDS", TIMEOUT)
    one, two = pair
    one.send(increase, (1,))
    gate = tmp_path / "gate"
    one.send(wait_and_return, (gate, 7), (gate, 8))
    forward(one, 0, 2)
    take(two, 2)
    wait_until(lambda: two.run._peers._sources)
    assert one.run.revoke([2], Status.DEFERRED) == []
    gate.touch()
    two.wait(lambda: len(two.statuses) == 1)
    assert two.statuses == {0: Status.DEFERRED}


def waiting_in_vain(pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch) -> Client:
    """Return the second block, whose member waits for one that does not run."""
    monkeypatch.setattr(open_run, "_PEER_SECONDS", TIMEOUT)
    _, two = pair
    take(two, 0)
    wait_until(lambda: two.run._peers._sources)
    return two


def test_a_member_that_waits_gives_the_slot_back(
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = waiting_in_vain(pair, monkeypatch)
    two.watch.wanted = True
    two.wait_closed()
    assert two.received == 1
    two.wait(lambda: len(two.statuses) == 1)
    assert two.statuses == {0: Status.DEFERRED}


def test_a_member_that_waits_can_be_cancelled(
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = waiting_in_vain(pair, monkeypatch)
    assert two.run.revoke([0], Status.CANCELLED) == []
    two.wait(lambda: len(two.statuses) == 1)


def test_values_are_dropped_once_they_are_used(pair: tuple[Client, Client]) -> None:
    one, two = pair
    one.send(increase, *((number,) for number in range(50)))
    forward(one, *range(50))
    one.wait(lambda: len(one.values) == 50)
    wait_until(lambda: two.run._peers._attached)
    take(two, *range(50))
    two.wait(lambda: len(two.values) == 50)
    assert two.values == {number: number + 2 for number in range(50)}
    (outcomes,) = two.run.inputs
    wait_until(lambda: not outcomes.values)


def test_an_outcome_stays_for_all_that_wait_for_it(pair: tuple[Client, Client]) -> None:
    """Also if the first is over before the client's message about the second has arrived."""
    one, two = pair
    forward(one, 0, 0)  # for two members
    one.send(increase, (6,))
    one.wait(lambda: len(one.values) == 1)
    wait_until(lambda: two.run._peers._attached)
    take(two, 0)
    two.wait(lambda: len(two.statuses) == 1)
    two.link.send(encode_members(NewMembers([], [taking(0)])))
    two.wait(lambda: len(two.statuses) == 2)
    assert two.values == {0: 8, 1: 8}
    (outcomes,) = two.run.inputs
    wait_until(lambda: not outcomes.values)

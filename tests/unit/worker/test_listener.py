"""One port of a worker serves all; and the ports that the setting `daskbatch.port` allows."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest
from support.waiting import wait_until

from daskbatch.errors import SpecError
from daskbatch.shared import relayed
from daskbatch.worker import ports
from daskbatch.worker.handshake import NotReachable, ServerAddress, connect_to_server
from daskbatch.worker.listener import listen

HOST = "127.0.0.1"


@pytest.fixture
def free_ports() -> Iterator[range]:
    """Two ports that follow each other and are free, as the only ones that are allowed."""
    while True:
        with socket.create_server((HOST, 0)) as probe:
            first = probe.getsockname()[1]
        try:
            socket.create_server((HOST, first + 1)).close()
            break
        except OSError:
            continue
    ports.set_ports(f"{first}-{first + 1}")
    yield range(first, first + 2)
    ports.set_ports(None)


def say(text: bytes) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        with sock:
            sock.sendall(text)

    return serve


def heard_from(address: ServerAddress) -> bytes:
    with connect_to_server(address, None, 30.0) as sock:
        sock.settimeout(30)
        return sock.recv(100)


def test_services_of_a_worker_share_a_port(free_ports: range) -> None:
    one = listen(HOST, say(b"one"), owner="w")
    other = listen(HOST, say(b"other"), owner="w")
    neighbour = listen(HOST, say(b"neighbour"), owner="v")
    assert one.address.port == other.address.port == free_ports[0]
    assert neighbour.address.port == free_ports[1]
    heard = [heard_from(each.address) for each in (one, other, neighbour)]
    assert heard == [b"one", b"other", b"neighbour"]
    with pytest.raises(OSError, match="daskbatch.port"):
        listen(HOST, say(b""), owner="u")
    one.close()
    with pytest.raises(OSError):
        heard_from(one.address)
    assert heard_from(other.address) == b"other"
    other.close()
    # The last one has closed the port.
    again = listen(HOST, say(b"again"), owner="u")
    assert heard_from(again.address) == b"again"
    with pytest.raises(OSError):
        heard_from(other.address)
    again.close()
    neighbour.close()


def test_a_service_is_checked_while_clients_connect() -> None:
    checks: list[int] = []
    service = listen(HOST, say(b"x"), lambda: checks.append(1))

    def is_checked() -> bool:
        heard_from(service.address)
        return bool(checks)

    wait_until(is_checked)
    service.close()


def test_a_server_that_cannot_be_reached_is_relayed_to_by_all_of_its_clients() -> None:
    with socket.create_server((HOST, 0)) as gone:
        port = gone.getsockname()[1]
    address = ServerAddress(HOST, port, os.urandom(32), False)
    with pytest.raises(NotReachable):
        connect_to_server(address, None, 30.0)
    assert not relayed.is_relayed(address)
    relayed.start_relaying(address)
    other = address._replace(secret=os.urandom(32))
    assert relayed.is_relayed(other)
    relayed.stop_relaying(other)
    assert not relayed.is_relayed(address)


@pytest.mark.parametrize("setting", ["9000-9002", "9000:9002", " 9000 - 9002 "])
def test_ranges(setting: str) -> None:
    assert list(ports.parse_ports(setting)) == [9000, 9001, 9002]


def test_one_port_and_none() -> None:
    assert list(ports.parse_ports(9000)) == list(ports.parse_ports("9000")) == [9000]
    assert list(ports.parse_ports(None)) == list(ports.parse_ports(0)) == [0]


@pytest.mark.parametrize(
    "setting", ["", "a", "9000-", "9002-9000", "0-9", 70000, -1, 1.5, True, []]
)
def test_what_is_no_port(setting: object) -> None:
    with pytest.raises(SpecError, match="daskbatch.port"):
        ports.parse_ports(setting)

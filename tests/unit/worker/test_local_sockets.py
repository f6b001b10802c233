"""Processes of one host connect by Unix sockets, and by TCP where these lead nowhere."""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
import threading
from typing import Any

import pytest

from daskbatch.worker.handshake import NotReachable, check_reachable, connect_to_server
from daskbatch.worker.listener import listen
from daskbatch.worker.local_sockets import connect_locally, listen_locally

HOST = "127.0.0.1"


def _are_there() -> bool:
    found = listen_locally(1)
    if found is not None:
        found[1].close()
    return found is not None


pytestmark = pytest.mark.skipif(not _are_there(), reason="this system has no such Unix sockets")


def serve(sock: socket.socket) -> None:
    """Say what kind of connection this is."""
    with sock:
        sock.sendall(sock.family.name.encode())


def heard(sock: socket.socket) -> bytes:
    with sock:
        sock.settimeout(30)
        return b"".join(iter(lambda: sock.recv(100), b""))


def test_clients_of_the_host_use_the_unix_socket() -> None:
    service = listen(HOST, serve)
    sock = connect_to_server(service.address, None, 30.0)
    assert sock.family == socket.AF_UNIX
    assert heard(sock) == b"AF_UNIX"
    service.close()


@pytest.mark.parametrize("name", ["", "daskbatch-of-another-host"])
def test_other_clients_use_the_port(name: str) -> None:
    service = listen(HOST, serve)
    sock = connect_to_server(service.address._replace(local=name), None, 30.0)
    assert heard(sock) == b"AF_INET"
    service.close()


def test_both_sides_must_know_the_secret() -> None:
    service = listen(HOST, serve)
    with pytest.raises(OSError):
        connect_to_server(service.address._replace(secret=os.urandom(32)), None, 30.0)
    with pytest.raises(OSError):
        connect_to_server(service.address._replace(secret=os.urandom(32), local=""), None, 30.0)
    service.close()


def test_a_server_with_certificates_has_no_unix_socket() -> None:
    """What is to be encrypted does not pass by another way."""
    service = listen(HOST, serve, tls_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert service.address.local == ""
    service.close()


class Refused(socket.socket):
    """A socket as in a sandbox that allows the internet only."""

    def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
        if family == socket.AF_UNIX:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, *args, **kwargs)


@pytest.mark.parametrize("server_too", [False, True])
def test_where_a_sandbox_refuses_unix_sockets_all_goes_by_tcp(
    server_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = None if server_too else listen(HOST, serve)
    monkeypatch.setattr(socket, "socket", Refused)
    service = service or listen(HOST, serve)
    check_reachable(service.address)
    sock = connect_to_server(service.address, None, 30.0)
    assert heard(sock) == b"AF_INET"
    monkeypatch.undo()
    service.close()


def test_a_client_without_descriptors_does_not_reach_the_server() -> None:
    service = listen(HOST, serve)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(NotReachable):
            check_reachable(service.address)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    check_reachable(service.address)
    service.close()


def test_a_server_that_could_start_no_thread_for_a_client_serves_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = listen(HOST, serve)

    def refuse(_: threading.Thread) -> None:
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError):
        connect_to_server(service.address, None, 30.0)
    with connect_to_server(service.address, None, 30.0) as sock:
        assert sock.recv(1)
    service.close()


def test_the_last_service_closes_both_sockets() -> None:
    one, other = listen(HOST, serve, owner="w"), listen(HOST, serve, owner="w")
    assert one.address.local == other.address.local
    one.close()
    check_reachable(other.address)
    other.close()
    assert connect_locally(other.address.local, 0.0) is None
    with pytest.raises(ConnectionError):
        check_reachable(other.address)


def test_too_many_clients_wait_at_the_socket() -> None:
    """A client waits for its turn, and for no longer than it may."""
    found = listen_locally(0)
    assert found is not None
    name, server = found
    clients = []
    while (client := connect_locally(name, 0.0)) is not None:
        clients.append(client)
    assert connect_locally(name, 0.1) is None
    thread = threading.Thread(target=lambda: [server.accept()[0].close() for _ in clients])
    thread.start()
    last = connect_locally(name, 60.0)
    assert last is not None
    thread.join()
    for each in (*clients, last, server):
        each.close()


def test_what_was_sent_arrives_after_the_other_side_has_ended() -> None:
    """Also if that has not read all: TCP would drop it."""
    found = listen_locally(1)
    assert found is not None
    name, server = found
    client = connect_locally(name, 0.0)
    assert client is not None
    accepted, _ = server.accept()
    client.sendall(b"never read")
    accepted.sendall(b"the last words")
    accepted.close()
    assert client.recv(100) == b"the last words"
    client.close()
    server.close()

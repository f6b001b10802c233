"""Where ranks connect: only with the secret, and a silent stranger delays no rank."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.waiting import wait_until

from daskbatch.worker.mpi.rank_connection import SetAddress, connect, find_rank
from daskbatch.worker.mpi.rank_listener import Arrival, RankListener


@pytest.fixture
def listener() -> Iterator[RankListener]:
    made = RankListener(2, "127.0.0.1")
    yield made
    made.close()


def arrival_at(listener: RankListener) -> Arrival:
    found: list[Arrival] = []

    def take() -> bool:
        arrival = listener.take()
        if arrival is not None:
            found.append(arrival)
        return bool(found)

    wait_until(take)
    return found[0]


def by_tcp(listener: RankListener) -> SetAddress:
    return listener.address._replace(local="")


def test_a_rank_connects_and_says_who_it_is(listener: RankListener) -> None:
    read, write = os.pipe()
    with connect(listener.address, "rank", 1, [read]) as sock:
        arrival = arrival_at(listener)
        assert (arrival.hello.role, arrival.hello.rank) == ("rank", 1)
        assert arrival.hello.pid == os.getpid()
        assert len(arrival.files) == (sys.platform == "linux")
        arrival.sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        arrival.sock.close()
    for file in (read, write, *arrival.files):
        os.close(file)


def test_a_rank_of_another_host_connects_by_tcp(listener: RankListener) -> None:
    with connect(by_tcp(listener), "stdout", 0):
        arrival = arrival_at(listener)
        assert (arrival.hello.role, arrival.files) == ("stdout", [])
        arrival.sock.close()


@pytest.mark.parametrize("tcp", [False, True])
def test_without_the_secret_no_connection_arrives(listener: RankListener, tcp: bool) -> None:
    address = by_tcp(listener) if tcp else listener.address
    with pytest.raises(OSError):
        connect(address._replace(secret="00" * 32), "rank", 0)
    with connect(address, "rank", 1):
        arrival = arrival_at(listener)
        assert arrival.hello.rank == 1
        arrival.sock.close()
    assert listener.take() is None


def test_a_silent_stranger_delays_no_rank(listener: RankListener) -> None:
    where = (listener.address.host, listener.address.port)
    with socket.create_connection(where), socket.create_connection(where) as talker:
        talker.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
        with connect(by_tcp(listener), "rank", 0):
            arrival = arrival_at(listener)
            assert arrival.hello.rank == 0
            arrival.sock.close()


def test_it_goes_on_after_a_time_without_descriptors(
    listener: RankListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    accept = socket.socket.accept

    def fail_once(sock: socket.socket) -> tuple[socket.socket, Any]:
        if failed.is_set():
            return accept(sock)
        failed.set()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket.socket, "accept", fail_once)
    for rank in range(2):
        # The thread waits in the system's `accept` for the first one, and then in this one.
        with connect(by_tcp(listener), "rank", rank):
            arrival = arrival_at(listener)
            assert arrival.hello.rank == rank
            arrival.sock.close()
    assert failed.is_set()


def test_after_its_end_nothing_can_connect(listener: RankListener) -> None:
    listener.close()
    listener.close()
    for address in (listener.address._replace(port=0), by_tcp(listener)):
        with pytest.raises(OSError):
            connect(address, "rank", 0)


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({"PMI_RANK": "2"}, 2),
        ({"PMIX_RANK": "1", "PMI_RANK": "x"}, 1),
        ({"OMPI_COMM_WORLD_RANK": "0"}, 0),
        ({"SLURM_PROCID": "7"}, 7),
        ({"RANK": "7"}, -1),
    ],
)
def test_each_launcher_tells_the_rank_in_its_own_way(environ: dict[str, str], rank: int) -> None:
    assert find_rank(environ) == rank

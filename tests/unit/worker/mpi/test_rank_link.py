"""The connections between a worker and the supervisors of ranks, as an attacker may use them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.waiting import wait_until

from daskbatch.worker.mpi.rank_link import LinkClosed, LinkListener, Message, RankLink
from daskbatch.worker.mpi.rank_supervisor import (
    DIGEST_BYTES,
    EXIT,
    GREETING,
    HEAD,
    HELLO,
    PROGRAM,
    STDOUT,
    proof,
)


@pytest.fixture
def listener() -> Iterator[LinkListener]:
    made = LinkListener("127.0.0.1", 2)
    yield made
    made.close()


def connect(listener: LinkListener) -> tuple[socket.socket, RankLink]:
    host, port, _ = listener.address.split()
    client = socket.create_connection((host, int(port)), timeout=60)
    found: list[RankLink] = []
    wait_until(lambda: found.append(link) or True if (link := listener.accept()) else False)
    return client, found[0]


def hello(listener: LinkListener, rank: int, secret: bytes | None = None) -> bytes:
    content = HELLO.pack(GREETING, rank, os.urandom(32))
    known = bytes.fromhex(listener.address.split()[2]) if secret is None else secret
    return content + proof(known, b"rank", content)


def receive(link: RankLink, count: int = 1) -> list[Message]:
    found: list[Message] = []
    wait_until(lambda: found.extend(link.receive()) or len(found) >= count)
    return found


def test_a_supervisor_proves_that_it_knows_the_secret(listener: LinkListener) -> None:
    client, link = connect(listener)
    client.sendall(hello(listener, 1) + HEAD.pack(STDOUT, 3) + b"abc" + HEAD.pack(EXIT, 0)[:2])
    assert receive(link) == [(STDOUT, b"abc")]
    assert link.rank == 1
    client.sendall(HEAD.pack(EXIT, 0)[2:])
    assert receive(link) == [(EXIT, b"")]
    assert len(client.recv(DIGEST_BYTES)) == DIGEST_BYTES
    client.close()
    wait_until(lambda: closed(link))


def closed(link: RankLink) -> bool:
    try:
        list(link.receive())
    except LinkClosed:
        return True
    return False


@pytest.mark.parametrize("kind", ["secret", "greeting", "noise", "repeated rank", "short"])
def test_a_stranger_is_refused(listener: LinkListener, kind: str) -> None:
    client, link = connect(listener)
    sent = hello(listener, 0)
    if kind == "secret":
        sent = hello(listener, 0, os.urandom(32))
    elif kind == "greeting":
        sent = b"x" + sent[1:]
    elif kind == "noise":
        sent = os.urandom(500)
    elif kind == "repeated rank":
        sent = sent[:8] + (1).to_bytes(4, "big") + sent[12:]
    else:
        sent = sent[:-1]
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
    client.sendall(sent) if kind != "short" else None
    wait_until(lambda: closed(link))
    assert link.rank == -1
    client.close()
    link.close()


def test_a_message_that_is_too_long_ends_the_connection(listener: LinkListener) -> None:
    client, link = connect(listener)
    client.sendall(hello(listener, 0) + HEAD.pack(STDOUT, 1 << 31))
    wait_until(lambda: closed(link))
    client.close()


def test_too_many_strangers_are_sent_away(listener: LinkListener) -> None:
    host, port, _ = listener.address.split()
    clients = [socket.create_connection((host, int(port)), timeout=60) for _ in range(40)]
    wait_until(lambda: listener.accept() is None and len(listener.strangers) >= 18)
    assert len(listener.strangers) <= 18
    for client in clients:
        client.close()


def supervise(address: str | None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    if address is not None:
        environment["DASKBATCH_JOB"] = address
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_supervisor_without_what_it_needs_says_so() -> None:
    lost = supervise(None, PMI_RANK="0")
    assert lost.returncode == 1
    assert "the launcher has not passed on the variable DASKBATCH_JOB" in lost.stderr
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        no_rank = supervise(f"127.0.0.1 {port} {'00' * 32} job")
        assert no_rank.returncode == 1
        assert "the launcher has set none of PMI_RANK" in no_rank.stderr
    refused = supervise(f"127.0.0.1 {port} {'00' * 32} job", PMI_RANK="0")
    assert refused.returncode == 1
    assert "a rank cannot report to its worker: " in refused.stderr


def test_a_supervisor_obeys_nobody_who_does_not_know_the_secret() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM],
            env={"DASKBATCH_JOB": f"127.0.0.1 {port} {'00' * 32} job", "PMI_RANK": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        client, _ = server.accept()
        client.recv(HELLO.size + DIGEST_BYTES)
        client.sendall(os.urandom(DIGEST_BYTES))
        _, said = program.communicate(timeout=60)
        client.close()
    assert program.returncode == 1
    assert "the other side does not know the secret of the job" in said

"""Connections within a process: messages arrive, and the two ends share no buffer."""

from __future__ import annotations

import gc
import threading
from pickle import PickleBuffer

import pytest

from daskbatch.shared.data.codec import MIN_BUFFER_BYTES
from daskbatch.shared.data.messages import Request
from daskbatch.shared.rpc.local_transport import make_pair
from daskbatch.shared.rpc.server import RpcServer
from daskbatch.shared.rpc.socket_transport import ConnectionClosed


def test_each_hears_what_the_other_says() -> None:
    one, other = make_pair()
    one.send(("put", [1, 2]))
    assert other.receive() == ("put", [1, 2])
    other.send(None)
    assert one.receive() is None
    assert not one.peer_has_closed()


def test_what_is_large_is_a_copy() -> None:
    one, other = make_pair()
    given = bytearray(b"a" * 2 * MIN_BUFFER_BYTES)
    one.send(("put", PickleBuffer(given)))
    given[:] = bytes(len(given))
    _, received = other.receive()
    assert bytes(received) == b"a" * 2 * MIN_BUFFER_BYTES


def test_the_end_is_received_by_both() -> None:
    one, other = make_pair()
    one.send("last")
    one.close()
    assert other.receive() == "last"
    assert other.peer_has_closed()
    for end in (one, other, other):
        with pytest.raises(ConnectionClosed):
            end.receive()


def test_whoever_waits_may_give_up() -> None:
    one, _ = make_pair()

    def idle() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        one.receive(idle)


def test_who_is_gone_leaves_no_thread_behind() -> None:
    served = threading.Event()

    def serve(request: Request, is_gone: object) -> object:
        served.set()
        return tuple(request)

    server = RpcServer("127.0.0.1", serve, lambda: True)
    try:
        before = set(threading.enumerate())
        local = server.connect_locally()
        hello = ("hello", b"", 1, 0.0, ())
        local.send(hello)
        assert local.receive() == (0, hello)
        (serving,) = set(threading.enumerate()) - before
        del local
        gc.collect()
        serving.join(30)
        assert not serving.is_alive()
        other = server.connect_locally()
    finally:
        server.close()
    with pytest.raises(ConnectionClosed):
        other.receive()
    with pytest.raises(OSError, match="closed"):
        server.connect_locally()

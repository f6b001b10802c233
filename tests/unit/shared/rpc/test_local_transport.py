"""Connections within a process: what is said is heard, and nothing is shared."""

from __future__ import annotations

import gc
import threading
from pickle import PickleBuffer

import pytest

from daskbatch.shared.data.codec import APART
from daskbatch.shared.rpc.local_transport import connected
from daskbatch.shared.rpc.server import RpcServer
from daskbatch.shared.rpc.socket_transport import ConnectionCut


def test_each_hears_what_the_other_says() -> None:
    one, other = connected()
    one.send(("put", [1, 2]))
    assert other.receive() == ("put", [1, 2])
    other.send(None)
    assert one.receive() is None
    assert not one.is_cut()


def test_what_is_large_is_a_copy() -> None:
    one, other = connected()
    given = bytearray(b"a" * 2 * APART)
    one.send(("put", PickleBuffer(given)))
    given[:] = bytes(len(given))
    _, heard = other.receive()
    assert bytes(heard) == b"a" * 2 * APART


def test_the_end_is_heard_by_both() -> None:
    one, other = connected()
    one.send("last")
    one.close()
    assert other.receive() == "last"
    assert other.is_cut()
    for end in (one, other, other):
        with pytest.raises(ConnectionCut):
            end.receive()


def test_whoever_waits_may_give_up() -> None:
    one, _ = connected()

    def idle() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        one.receive(idle)


def test_who_is_gone_leaves_no_thread_behind() -> None:
    served = threading.Event()

    def serve(request: object, is_gone: object) -> object:
        served.set()
        return request

    door = RpcServer("127.0.0.1", serve, lambda: True)
    try:
        before = set(threading.enumerate())
        near = door.meet()
        near.send("hello")
        assert near.receive() == (0, "hello")
        (talk,) = set(threading.enumerate()) - before
        del near
        gc.collect()
        talk.join(30)
        assert not talk.is_alive()
        other = door.meet()
    finally:
        door.close()
    with pytest.raises(ConnectionCut):
        other.receive()
    with pytest.raises(OSError, match="closed"):
        door.meet()

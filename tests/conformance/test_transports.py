"""Every transport of the RPC protocol carries messages between two ends in the same way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pickle import PickleBuffer
from typing import Any

import pytest
from support.caught import Caught, blocked

from daskbatch.shared.rpc import local_transport
from daskbatch.shared.rpc.local_transport import LocalTransport
from daskbatch.shared.rpc.socket_transport import ConnectionClosed, SocketTransport

Transport = SocketTransport | LocalTransport
Ends = tuple[Transport, Transport]

#: How often `idle` is called. Seconds.
_PACE_SECONDS = 0.02


class SocketWithoutSendmsg(socket.socket):
    """A socket of another type, as one with TLS is: the transport sends it one piece at a time."""


def over_sockets() -> Ends:
    pair = socket.socketpair()
    for each in pair:
        each.settimeout(_PACE_SECONDS)
    one, other = map(SocketTransport, pair)
    return one, other


def over_sockets_in_pieces() -> Ends:
    pair = [SocketWithoutSendmsg(fileno=each.detach()) for each in socket.socketpair()]
    for each in pair:
        each.settimeout(_PACE_SECONDS)
    one, other = map(SocketTransport, pair)
    return one, other


def within_the_process() -> Ends:
    return local_transport.make_pair()


@pytest.fixture(params=[over_sockets, over_sockets_in_pieces, within_the_process])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    make: Callable[[], Ends] = request.param
    one, other = make()
    yield one, other
    one.close()
    other.close()


def give_up() -> None:
    raise TimeoutError("the caller gives up")


def test_messages_arrive_in_their_order_in_both_directions(ends: Ends) -> None:
    one, other = ends
    sending = Caught(lambda: [one.send(("put", number)) for number in range(100)])
    assert [other.receive() for _ in range(100)] == [("put", number) for number in range(100)]
    assert isinstance(sending.result(), list)
    other.send(None)
    assert one.receive() is None


#: Around the sizes at which a transport changes how it reads and writes.
SIZES = [0, 1, 4_000, (1 << 16) - 20, 1 << 16, (1 << 16) + 1, 1 << 20, 5_000_001]


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_any_size_arrive_whole(ends: Ends, size: int) -> None:
    one, other = ends
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    sending = Caught(one.send, ["before", data, "after"])
    assert other.receive() == ["before", data, "after"]
    assert sending.result() is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 3])
def test_buffers_of_any_size_arrive_whole(ends: Ends, size: int, count: int) -> None:
    one, other = ends
    datas = [bytes([65 + each]) * size for each in range(count)]
    sending = Caught(one.send, ("put", *map(PickleBuffer, datas)))
    name, *received = other.receive()
    assert (name, [bytes(each) for each in received]) == ("put", datas)
    assert sending.result() is None
    one.send("next")
    assert other.receive() == "next", "nothing is left of the message before"


def test_messages_with_buffers_may_follow_each_other(ends: Ends) -> None:
    one, other = ends
    datas = [bytes([number]) * 1_000 for number in range(30)]
    sending = Caught(lambda: [one.send((data, PickleBuffer(data))) for data in datas])
    sending.join(0.1)  # so that one read is likely to have many of them
    for data in datas:
        sent, buffer = other.receive()
        assert sent == bytes(buffer) == data
    assert isinstance(sending.result(), list)


def test_more_buffers_arrive_than_the_system_takes_at_once(ends: Ends) -> None:
    one, other = ends
    datas = [b"%d" % number * (number % 3) for number in range(2_000)]
    sending = Caught(one.send, [*map(PickleBuffer, datas)])
    assert [bytes(each) for each in other.receive()] == datas
    assert sending.result() is None


def test_what_arrives_is_a_copy(ends: Ends) -> None:
    one, other = ends
    given = bytearray(b"a" * (1 << 20))
    sending = Caught(one.send, ("put", PickleBuffer(given)))
    _, received = other.receive()
    assert sending.result() is None
    given[:] = bytes(len(given))
    assert bytes(received) == b"a" * (1 << 20)


def test_after_the_end_what_was_sent_before_still_arrives(ends: Ends) -> None:
    one, other = ends
    one.send("last")
    one.close()
    assert other.receive() == "last"
    for _ in range(2):
        with pytest.raises(ConnectionClosed):
            other.receive()
    with pytest.raises(OSError):
        one.receive()


def test_a_thread_that_waits_notices_the_end_at_either_side(ends: Ends) -> None:
    one, other = ends
    for each in ends:
        if isinstance(each, SocketTransport):
            each.sock.settimeout(None)
    here, there = Caught(one.receive), Caught(other.receive)
    blocked(here, there)
    one.close()
    assert isinstance(here.result(), OSError)
    assert isinstance(there.result(), ConnectionClosed)


def test_idle_is_called_while_nothing_comes(ends: Ends) -> None:
    one, other = ends
    called = threading.Semaphore(0)
    receiving = Caught(one.receive, called.release)
    for _ in range(3):
        assert called.acquire(timeout=30)
    assert receiving.is_alive()
    other.send("late")
    assert receiving.result() == "late"


def test_idle_may_give_up(ends: Ends) -> None:
    one, _ = ends
    with pytest.raises(TimeoutError, match="the caller gives up"):
        one.receive(give_up)


def test_idle_is_not_called_for_a_message_that_is_there(ends: Ends) -> None:
    one, other = ends
    one.send("there")
    assert other.receive(give_up) == "there"


def test_whether_the_other_end_is_gone_can_be_asked(ends: Ends) -> None:
    one, other = ends
    assert not one.peer_has_closed()
    assert not other.peer_has_closed()
    other.close()
    assert one.peer_has_closed()


def test_an_end_that_has_closed_says_so(ends: Ends) -> None:
    one, _ = ends
    one.close()
    assert one.peer_has_closed()


def test_to_close_twice_is_allowed(ends: Ends) -> None:
    one, other = ends
    one.close()
    one.close()
    other.close()
    with pytest.raises(OSError):
        other.receive()


def test_a_request_and_its_answer_may_be_large_at_once(ends: Ends) -> None:
    """The two ends take turns: neither sends before it has received all."""
    one, other = ends

    def answer() -> None:
        for _ in range(3):
            _, data = other.receive()
            other.send((0, PickleBuffer(bytes(data) * 2)))

    answering = Caught(answer)
    for number in range(3):
        request: Any = ("double", PickleBuffer(bytes([number]) * 700_000))
        one.send(request)
        sign, result = one.receive()
        assert (sign, bytes(result)) == (0, bytes([number]) * 1_400_000)
    assert answering.result() is None

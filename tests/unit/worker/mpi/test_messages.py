"""Messages between a worker and its ranks: whole or in pieces, with bodies and with files."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from daskbatch.worker.mpi.messages import MessageKind, MessageReader, encode, send


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    if request.param == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 20) + 7])
def test_a_message_arrives_with_its_fields_and_its_body(
    pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    ours, theirs = pair
    body = os.urandom(size)
    reader = MessageReader(theirs)
    ours.setblocking(False)
    data = memoryview(encode(MessageKind.OVER, (1, "é ü"), size) + body)
    theirs.setblocking(False)
    message = None
    while message is None:
        if data:
            with contextlib.suppress(BlockingIOError):
                data = data[ours.send(data) :]
        message = reader.read()
    assert message.kind == MessageKind.OVER
    assert message.fields == (1, "é ü")
    assert message.body == body
    assert not message.body.readonly
    assert reader.read() is None


def test_each_position_at_which_messages_are_cut_gives_the_same_messages() -> None:
    data = b"".join(
        encode(MessageKind.WAITING, (True, n), len(body)) + body
        for n, body in enumerate([b"", b"x" * 5, b"yz"])
    )
    for cut in range(len(data) + 1):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            reader = MessageReader(theirs)
            found = []
            for part in (data[:cut], data[cut:]):
                ours.sendall(part)
                while (message := reader.read()) is not None:
                    found.append((message.fields[1], bytes(message.body)))
            assert found == [(0, b""), (1, b"xxxxx"), (2, b"yz")]


def test_several_messages_arrive_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(
        encode(MessageKind.WAITING, (1,))
        + encode(MessageKind.SLOT, (2,))
        + encode(MessageKind.NEED_DATA)
    )
    reader = MessageReader(theirs)
    assert [reader.read().kind for _ in range(3)] == [
        MessageKind.WAITING,
        MessageKind.SLOT,
        MessageKind.NEED_DATA,
    ]  # type: ignore[union-attr]


def test_files_arrive_with_the_message_that_they_were_sent_with() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ends = [os.pipe() for _ in range(3)]
        send(ours, MessageKind.HELLO, ("a",), files=[ends[0][0], ends[1][0]])
        send(ours, MessageKind.NEED_DATA)
        send(ours, MessageKind.RUN, ("b",), body=b"body", files=[ends[2][0]])
        for _, write in ends:
            os.write(write, b"%d" % write)
        reader = MessageReader(theirs)
        messages = [reader.read() for _ in range(3)]
        received = [[os.read(file, 100) for file in each.files] for each in messages if each]
        first, second, third = (b"%d" % write for _, write in ends)
        assert received == [[first, second], [], [third]]
        for each in messages:
            for file in each.files if each else ():
                os.close(file)
        for end in ends:
            for file in end:
                os.close(file)


def test_the_end_of_the_connection_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(encode(MessageKind.OVER, (1,), 100)[:-1])
    ours.close()
    with pytest.raises(EOFError):
        MessageReader(theirs).read()

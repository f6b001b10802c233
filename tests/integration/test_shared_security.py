"""Who can connect to dictionaries and queues, what is seen on the way, and what cannot hang."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from distributed import LocalCluster
from distributed.security import Security
from support.caught import Caught, blocked
from support.waiting import wait_for_file, wait_until

from daskbatch import Batch, DDict, LifecycleError, Queue, ServiceLost
from daskbatch.shared.rpc.client import RpcClient
from daskbatch.shared.rpc.server import RpcServer
from daskbatch.worker.handshake import ServerAddress, connect_to_server

GREETING = b"daskbatch-1"

#: A value that nobody else may see.
NEEDLE = b"needle-in-a-haystack"


def ports_of(batch: Batch) -> list[tuple[str, int]]:
    """Return where the workers listen: RPC servers and others."""
    found = []
    for pid in batch.client.run(os.getpid).values():
        for each in psutil.Process(pid).net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN:
                found.append((each.laddr.ip, each.laddr.port))
    return found


def first_bytes(sock: socket.socket, seconds: float = 0.5) -> bytes:
    sock.settimeout(seconds)
    with suppress(OSError):
        return sock.recv(1000)
    return b""


def is_closed(sock: socket.socket, seconds: float = 30.0) -> bool:
    """Return whether the other side closes a connection within a time; reads what comes."""
    sock.settimeout(seconds)
    try:
        while sock.recv(1000):
            pass
    except ConnectionError:
        return True
    except (TimeoutError, BlockingIOError):
        return False
    return True


def servers_of(batch: Batch) -> list[tuple[str, int]]:
    found = []
    for port in ports_of(batch):
        with socket.create_connection(port) as sock:
            if first_bytes(sock).startswith(GREETING):
                found.append(port)
    assert found
    return found


# -- clients without the secret -------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"\0" * 64, os.urandom(64), os.urandom(1 << 20), pickle.dumps(print) * 100],
    ids=["zeros", "noise", "much noise", "pickles"],
)
def test_who_does_not_know_the_secret_is_not_let_in(batch: Batch, said: bytes) -> None:
    d = batch.ddict(shards=1)
    for server in servers_of(batch):
        with socket.create_connection(server) as silent, socket.create_connection(server) as sock:
            assert first_bytes(silent, 5).startswith(GREETING)
            assert first_bytes(sock, 5).startswith(GREETING)
            with suppress(ConnectionError):
                sock.sendall(said)
            # Not one more byte, and at once: one that says nothing is closed after some time.
            with suppress(ConnectionError):
                sock.settimeout(30)
                assert sock.recv(1000) == b""
            assert not is_closed(silent, 0)
    d["a"] = 1
    assert d["a"] == 1


@pytest.mark.slow
def test_who_says_nothing_is_in_nobodys_way_and_shown_out(batch: Batch) -> None:
    d = batch.ddict(shards=1)
    server = servers_of(batch)[-1]
    silent = [socket.create_connection(server) for _ in range(100)]
    slow = socket.create_connection(server)
    over = threading.Event()

    def trickle() -> None:
        with suppress(OSError):
            while not over.wait(0.5):
                slow.sendall(b"\0")

    trickling = Caught(trickle)
    try:
        for number in range(200):
            d[number] = number
        other = pickle.loads(pickle.dumps(d))
        assert Caught(lambda: [other[number] for number in range(200)]).result() == list(range(200))
        # They were there all the time.
        assert not is_closed(silent[0], 0)
        assert all(is_closed(sock) for sock in [*silent, slow])
    finally:
        over.set()
        trickling.result()
        for sock in [*silent, slow]:
            sock.close()
    assert d[1] == 1


@contextmanager
def opened(context: ssl.SSLContext | None = None) -> Iterator[RpcServer]:
    over = threading.Event()
    server = RpcServer(
        "127.0.0.1", lambda request, is_gone: request, lambda: not over.is_set(), context
    )
    try:
        yield server
    finally:
        over.set()
        server.close()


def answering(said: bytes) -> tuple[str, int]:
    """Listen once, as something that only seems to be a server."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listener, listener.accept()[0] as sock:
            sock.settimeout(10)
            sock.sendall(GREETING + os.urandom(32))
            with suppress(OSError):
                sock.recv(64)
                sock.sendall(said)

    Caught(answer)
    host, port = listener.getsockname()
    return host, port


def test_who_listens_must_know_the_secret_too() -> None:
    host, port = answering(b"\0" * 32)
    with pytest.raises(ConnectionError, match="does not know the secret"):
        connect_to_server(ServerAddress(host, port, os.urandom(32), False), None, 5.0)


def test_what_is_no_door_is_not_told_anything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = ServerAddress("127.0.0.1", listener.getsockname()[1], os.urandom(32), False)
        entering = Caught(connect_to_server, address, None, 5.0)
        with listener.accept()[0] as sock:
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n" + b" " * 100)
            assert isinstance(entering.result(), ConnectionError)
            assert first_bytes(sock) == b""


class Relay:
    """Stands between a server and its clients, and sees what they send."""

    def __init__(self, server: RpcServer) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.address = server.address._replace(port=port, local="")
        self.said = {"in": b"", "out": b""}
        self._passing = Caught(self._listen)

    def _listen(self) -> None:
        address = self._server.address
        with (
            self._listener,
            self._listener.accept()[0] as sock,
            socket.create_connection((address.host, address.port)) as there,
        ):
            ways = [Caught(self._pass, sock, there, "in"), Caught(self._pass, there, sock, "out")]
            for way in ways:
                way.join()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.said[way] += data
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        assert self._passing.result() is None


def test_what_was_said_at_the_door_opens_it_for_nobody_else() -> None:
    with opened() as server:
        relay = Relay(server)
        client = RpcClient()
        client.call(relay.address, None, "put", 0.0, (NEEDLE,))
        client.close()
        relay.close()
        assert NEEDLE in relay.said["in"]  # it does see all that is sent
        assert server.address.secret not in relay.said["in"] + relay.said["out"]
        with socket.create_connection((server.address.host, server.address.port)) as sock:
            assert first_bytes(sock, 5).startswith(GREETING)
            sock.sendall(relay.said["in"])
            assert first_bytes(sock, 5) == b""


def test_a_secret_is_not_shown(batch: Batch) -> None:
    d, queue = batch.ddict(), batch.queue()
    d["a"] = 1
    queue.put(1)
    known = [each for each in gc.get_objects() if isinstance(each, ServerAddress)]
    assert known
    for content in (pickle.dumps(d), pickle.dumps(queue)):
        assert len(content) < 300
        assert not any(each.secret in content for each in known)
    for each in known:
        assert repr(each.secret) not in repr(each)


# -- with certificates ------------------------------------------------------------------


@pytest.fixture(scope="module")
def encrypted() -> Iterator[Batch]:
    pytest.importorskip("cryptography")
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            security=Security.temporary(),
        ) as cluster,
        Batch(cluster) as batch,
    ):
        yield batch


def use_both(d: DDict, queue: Queue, number: int) -> Any:
    d[number] = np.full(10_000, number)
    queue.put(number)
    return d[number].sum(), d.fetch_add("count")


@pytest.mark.parametrize("replicas", [1, 2])
def test_it_works_with_certificates(encrypted: Batch, replicas: int) -> None:
    batch = encrypted
    d, queue = batch.ddict(replicas=replicas), batch.queue()
    tasks = [
        batch.options(isolation=isolation).function(use_both, d, queue, number)
        for number, isolation in enumerate(["thread", "process", "thread"])
    ]
    for task in tasks:
        task.start()
    assert sorted(task.get(timeout=60)[0] for task in tasks) == [0, 10_000, 20_000]
    assert sorted(queue.get() for _ in tasks) == [0, 1, 2]
    assert d["count"] == 3
    assert np.array_equal(d[1], np.full(10_000, 1))


def test_no_port_says_anything_in_clear(encrypted: Batch) -> None:
    d, queue = encrypted.ddict(replicas=2), encrypted.queue()
    d["a"] = NEEDLE
    queue.put(NEEDLE)
    ports = ports_of(encrypted)
    assert len(ports) >= 2 + 2  # of each worker, that of Dask and that of daskbatch
    for port in ports:
        with socket.create_connection(port) as sock:
            assert first_bytes(sock, 0.3) == b""
            with suppress(ConnectionError):
                sock.sendall(b"\0" * 64)
            # At most that this is no TLS.
            assert first_bytes(sock, 0.3)[:1] in (b"", b"\x15")
    assert d["a"] == queue.get() == NEEDLE


def test_nobody_comes_in_without_a_certificate(encrypted: Batch) -> None:
    d = encrypted.ddict(shards=2)
    d["a"] = 1
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for port in ports_of(encrypted):
        with socket.create_connection(port, timeout=1) as plain, suppress(OSError):  # noqa: SIM117
            with context.wrap_socket(plain) as sock:
                assert not first_bytes(sock, 1)
    assert d["a"] == 1


def test_who_is_between_sees_nothing() -> None:
    pytest.importorskip("cryptography")
    security = Security.temporary()
    with opened(security.get_listen_args("worker")["ssl_context"]) as server:
        assert server.address.tls
        relay = Relay(server)
        client = RpcClient()
        context = security.get_connection_args("client")["ssl_context"]
        found = client.call(
            relay.address, context, "put", 0.0, (NEEDLE, np.frombuffer(NEEDLE, "u1"))
        )
        assert found[4][0] == NEEDLE
        assert bytes(found[4][1]) == NEEDLE
        client.close()
        relay.close()
        for said in relay.said.values():
            assert len(said) > 500
            assert NEEDLE not in said
            assert GREETING not in said
        with pytest.raises(ConnectionError, match="wants TLS"):
            connect_to_server(server.address, None, 5.0)


# -- processes that are forked ----------------------------------------------------------


def forked(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process that is forked from this one."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def call() -> None:
        try:
            theirs.send(function(*args))
        except BaseException as error:
            theirs.send(error)

    process = context.Process(target=call)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that this process has threads
        process.start()
    try:
        assert ours.poll(30), "it hangs"
        return ours.recv()
    finally:
        process.kill()
        process.join()


def use_in_child(d: DDict, queue: Queue) -> Any:
    found = d["parent"]
    for _ in range(100):
        d.fetch_add("count")
    d["child"] = os.getpid()
    queue.put("from the child")
    return found, d.local_keys()


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_forked_process_uses_it_while_the_parent_goes_on(batch: Batch, replicas: int) -> None:
    d, queue = batch.ddict(replicas=replicas), batch.queue()
    d["parent"] = os.getpid()
    over = threading.Event()

    def go_on() -> int:
        count = 0
        while not over.is_set():
            d.fetch_add("count")
            count += 1
        return count

    going = [Caught(go_on) for _ in range(2)]
    try:
        for _ in range(3):
            assert forked(use_in_child, d, queue) == (os.getpid(), [])
            assert queue.get(timeout=10) == "from the child"
    finally:
        over.set()
    counts = [each.result() for each in going]
    assert min(counts) > 0
    assert d["count"] == sum(counts) + 300
    assert d["child"] != os.getpid()


def fork_in_task(d: DDict, queue: Queue) -> Any:
    d["parent"] = 1
    found = forked(use_in_child, d, queue)
    # What the child wrote is here, and not in the memory of the child alone.
    return found, d["count"], "child" in d, queue.get(timeout=10), sorted(d.local_keys())


def test_a_process_forked_where_it_is_kept_does_not_take_it_for_its_own(batch: Batch) -> None:
    d, queue = batch.ddict(shards=1), batch.queue()
    task = batch.options(workers=d.workers_for(["a"])).function(fork_in_task, d, queue)
    task.start()
    assert task.get(timeout=60) == (
        (1, []),
        100,
        True,
        "from the child",
        ["child", "count", "parent"],
    )


# -- waiting clients --------------------------------------------------------------------------


def interrupted(use: Callable[[], Any]) -> float:
    """Press Ctrl-C while a call waits; return how long that took to end it."""
    when = 0.0

    def press() -> None:
        nonlocal when
        when = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.5, press)
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        use()
    timer.join()
    return time.monotonic() - when


@pytest.mark.parametrize("what", ["key", "item", "room", "join"])
def test_ctrl_c_ends_the_wait_and_nothing_else(batch: Batch, what: str) -> None:
    d, queue = batch.ddict(wait_for_keys=True), batch.queue(maxsize=1)
    if what in ("room", "join"):
        queue.put("a")
    uses: dict[str, Callable[[], Any]] = {
        "key": lambda: d["missing"],
        "item": queue.get,
        "room": lambda: queue.put("not wanted any more"),
        "join": queue.join,
    }
    for _ in range(2):
        assert interrupted(uses[what]) < 30
    d["missing"] = 1
    assert d["missing"] == 1
    if what in ("room", "join"):
        assert queue.get() == "a"
    queue.put("b", timeout=5)
    assert queue.get(timeout=5) == "b"
    assert queue.empty()


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    process = psutil.Process(pid)
    try:
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        time.sleep(0.1)  # all its threads
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_frozen_worker() -> None:
    with Batch(num_workers=2) as batch:
        d = batch.ddict(shards=1, replicas=2)
        d.put_many(dict.fromkeys(range(100), 0))
        pids = batch.client.run(os.getpid)
        (first,) = d.workers_for(["a"])
        (second,) = set(pids) - {first}
        with frozen(pids[first]):
            # Nobody knows whether it will go on; but nobody has to wait for that.
            assert interrupted(lambda: d[1]) < 30
            assert interrupted(lambda: d.update({1: -1})) < 30
            other = pickle.loads(pickle.dumps(d))
            getting = Caught(lambda: other[2])
            blocked(getting)
        assert getting.result() == 0
        d.put_many(dict.fromkeys(range(100), 1))
        with frozen(pids[second]):
            writing = [Caught(d.update, {number: 2}) for number in range(10)]
            assert d[50] == 1  # to read takes no backup
            assert [each.result(60) for each in writing] == [None] * 10
            # It was removed, so that this write waits for nobody.
            assert copies(batch) == 1
            d.put_many(dict.fromkeys(range(100), 2))
            assert copies(batch) == 1
        # It is a backup again, with all that was written meanwhile.
        wait_until(lambda: copies(batch) == 2)
        d["more"] = 3
        os.kill(pids[first], signal.SIGKILL)
        assert d.get_many(range(100)) == dict.fromkeys(range(100), 2)
        assert d["more"] == 3


def copies(batch: Batch) -> int:
    """Ask the scheduler how many workers have the one shard."""

    def members(dask_scheduler: Any) -> int:
        found = dask_scheduler.plugins["daskbatch-shared"]
        (info,) = [each.info for each in found._objects.values()]
        return len(info.layouts[0].replicas)

    return int(batch.client.run_on_scheduler(members))


@pytest.mark.slow
@pytest.mark.parametrize("end", ["join", "terminate"])
def test_the_end_of_the_batch_is_told_to_all_who_wait(end: str) -> None:
    batch = Batch(num_workers=1)
    d, queue = batch.ddict(wait_for_keys=True), batch.queue(maxsize=1)
    full = batch.queue(maxsize=1)
    full.put("a")
    waiting = [
        Caught(lambda: d["missing"]),
        Caught(lambda: d.pop("missing")),
        Caught(queue.get),
        Caught(full.put, "b"),
        Caught(full.join),
    ]
    blocked(*waiting)
    if end == "join":
        batch.close()
        batch.join(timeout=60)
    else:
        batch.terminate()
    for each in waiting:
        assert isinstance(each.result(), (LifecycleError, ServiceLost)), each.found
    for use in (queue.get, lambda: d["a"]):
        begin = time.monotonic()
        with pytest.raises((LifecycleError, ServiceLost)):
            use()
        assert time.monotonic() - begin < 30


def test_it_is_there_at_once_though_all_slots_are_in_use(batch: Batch, tmp_path: Path) -> None:
    busy = [batch.function(wait_for_file, tmp_path / "go") for _ in range(6)]
    try:
        for task in busy:
            task.start()
        wait_until(lambda: [task.state for task in busy].count("running") >= 2)
        d, queue = batch.ddict(replicas=2), batch.queue()
        d["a"] = 1
        queue.put(d["a"])
        assert queue.get() == 1
        # All slots have been in use meanwhile.
        assert [task.state for task in busy].count("running") == 2
    finally:
        (tmp_path / "go").touch()
    for task in busy:
        task.get(timeout=60)

"""The way into a process for requests that are to be answered fast: a socket, with a doorkeeper.

Does not know what is asked for. Who comes in must prove to know the secret, and is proven that
this side knows it, too; with a TLS context, all is encrypted, and both sides show certificates.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import ssl
import threading
import weakref
from collections.abc import Callable
from functools import partial
from time import monotonic, sleep
from typing import Any, TypeVar

from daskbatch.errors import BatchError
from daskbatch.shared.data.messages import Request, ServerAddress, error_to_send
from daskbatch.shared.rpc.local_transport import LocalTransport, connected
from daskbatch.shared.rpc.socket_transport import ConnectionCut, Idle, SocketTransport
from daskbatch.worker.execution.task_context import STOP_POLL_SECONDS

T = TypeVar("T")

#: Says which protocol is spoken, and is followed by a number that is used once.
_GREETING = b"daskbatch-1"
_NONCE = 32
_DIGEST = 32

#: How long it may take to come in. Seconds.
_PATIENCE = 10.0

#: Dead machines do not close connections: after so long one that says nothing is asked. Seconds.
_KEEPALIVE = 15

#: How often is looked whether the door is still needed. Seconds.
_LOOK_SECONDS = 1.0

OK, FAILED, CONFIRM = 0, 1, 2


class Answer:
    """What is answered, if that is more than a result.

    Parameters
    ----------
    result : object
        What was asked for.
    settle : callable
        Is told whether the other side has it: what is given away must not be lost on the way.
    """

    __slots__ = ("result", "settle")

    def __init__(self, result: Any, settle: Callable[[bool], None]) -> None:
        self.result = result
        self.settle = settle


#: Does what is asked for. It may raise, and that is the answer. The second argument says whether
#: nobody waits for that any more.
Handler = Callable[[Request, Callable[[], bool]], Any]


class RpcServer:
    """Listens, lets in who knows the secret, and has a thread for each.

    Parameters
    ----------
    host : str
        The address to listen at.
    handler : callable
        Answers requests; called from many threads.
    is_needed : callable
        Is asked now and then; if it says no, the door is closed.
    context : ssl.SSLContext, optional
        To encrypt what is said.
    """

    def __init__(
        self,
        host: str,
        handler: Handler,
        is_needed: Callable[[], bool],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._handler = handler
        self._is_needed = is_needed
        self._context = context
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=1024)
        self._wires: set[SocketTransport | LocalTransport] = set()
        self._lock = threading.Lock()
        self._closed = False
        port = self._listener.getsockname()[1]
        self.address = ServerAddress(host, port, secrets.token_bytes(32), context is not None)
        self._listener.settimeout(_LOOK_SECONDS)
        _sockets.add(self._listener)
        threading.Thread(target=self._listen, name="daskbatch-door", daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more, and end all talks."""
        with self._lock:
            self._closed = True
            wires = list(self._wires)
        with contextlib.suppress(OSError):
            # Who waits in `accept` is not woken by `close`.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in wires:
            wire.close()

    def _listen(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                if not self._is_needed():
                    self.close()
                continue
            except OSError:
                if self._closed:
                    return
                sleep(_LOOK_SECONDS)  # there are too many open files, say
                continue
            threading.Thread(
                target=self._talk, args=[sock], name="daskbatch-talk", daemon=True
            ).start()

    def _talk(self, sock: socket.socket) -> None:
        _sockets.add(sock)
        try:
            end = monotonic() + _PATIENCE
            sock.settimeout(_LOOK_SECONDS)
            tune(sock)
            if self._context is not None:
                sock = self._context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
                _sockets.add(sock)
                _in_time(sock.do_handshake, end)
            if not authenticate_server(sock, self.address.secret, end):
                sock.close()
                return
            sock.settimeout(None)
        except (OSError, ValueError):
            sock.close()
            return
        self._attend(SocketTransport(sock))

    def meet(self) -> LocalTransport:
        """Come in from within this process; there is a thread for that, too, which nobody stops.

        Raises
        ------
        OSError
            The door is closed.
        """
        ours, theirs = connected()
        if self._closed:
            raise ConnectionCut("the door is closed")
        threading.Thread(
            target=self._attend, args=[theirs], name="daskbatch-talk", daemon=True
        ).start()
        return ours

    def _attend(self, wire: SocketTransport | LocalTransport) -> None:
        with self._lock:
            if self._closed:
                wire.close()
                return
            self._wires.add(wire)
        try:
            self._serve(wire)
        except (OSError, EOFError):
            pass
        finally:
            with self._lock:
                self._wires.discard(wire)
            wire.close()

    def _serve(self, wire: SocketTransport | LocalTransport) -> None:
        while True:
            request = wire.receive()
            answer = answer_to(self._handler, request, wire.is_cut)
            del request
            if answer[0] != CONFIRM:
                _send(wire, answer)
                continue
            _, result, settle = answer
            has_it = False
            try:
                wire.send((CONFIRM, result))
                has_it = wire.receive() is True
            finally:
                settle(has_it)
            del result, answer


def _send(wire: SocketTransport | LocalTransport, answer: object) -> None:
    try:
        wire.send(answer)
    except OSError:
        raise
    except Exception as error:  # it cannot be pickled, and nothing of it was sent
        wire.send((FAILED, error_to_send(error)))


def answer_to(
    handler: Handler, request: Request, is_gone: Callable[[], bool] = lambda: False
) -> tuple[Any, ...]:
    """Have a request answered: a sign of what it is, and the answer."""
    try:
        result = handler(request, is_gone)
    except Exception as error:
        return FAILED, error_to_send(error)
    except BaseException as error:  # of a key or a value, which may run anything
        said = f"{type(error).__name__} was raised where it is kept: {error}"
        return FAILED, error_to_send(BatchError(said))
    if type(result) is Answer:
        return CONFIRM, result.result, result.settle
    return OK, result


def tune(sock: socket.socket) -> None:
    """Have a socket send at once, and find out that the other side's machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _KEEPALIVE)


def authenticate_server(sock: socket.socket, secret: bytes, end: float) -> bool:
    """Find out whether the other side knows the secret, and prove that this one does."""
    nonce = os.urandom(_NONCE)
    sock.sendall(_GREETING + nonce)
    said = _exactly(sock, _DIGEST + _NONCE, end)
    if not hmac.compare_digest(said[:_DIGEST], _proof(secret, b"client", nonce)):
        return False
    sock.sendall(_proof(secret, b"server", said[_DIGEST:]))
    return True


def enter(
    address: ServerAddress,
    context: ssl.SSLContext | None,
    seconds: float,
    idle: Idle | None = None,
) -> socket.socket:
    """Go through a door.

    Parameters
    ----------
    address : ServerAddress
        Where it is.
    context : ssl.SSLContext, optional
        What it takes, if it is one with TLS.
    seconds : float
        How long is tried.
    idle : callable, optional
        Is called now and then meanwhile, and may raise.

    Raises
    ------
    OSError
        Nobody opens, or it is another door.
    """
    end = monotonic() + seconds
    sock = socket.create_connection((address.host, address.port), timeout=seconds)
    try:
        sock.settimeout(STOP_POLL_SECONDS)
        tune(sock)
        _sockets.add(sock)
        if address.tls:
            if context is None:
                raise ConnectionError("the door wants TLS, and there is none in this process")
            sock = context.wrap_socket(
                sock, server_hostname=address.host, do_handshake_on_connect=False
            )
            _sockets.add(sock)
            _in_time(sock.do_handshake, end, idle)
        said = _exactly(sock, len(_GREETING) + _NONCE, end, idle)
        if not said.startswith(_GREETING):
            raise ConnectionError("something else listens there")
        nonce = os.urandom(_NONCE)
        sock.sendall(_proof(address.secret, b"client", said[len(_GREETING) :]) + nonce)
        proof = _exactly(sock, _DIGEST, end, idle)
        if not hmac.compare_digest(proof, _proof(address.secret, b"server", nonce)):
            raise ConnectionError("it does not know the secret")
    except BaseException:
        sock.close()
        raise
    return sock


def _proof(secret: bytes, side: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, side + nonce, "sha256")


def _in_time(step: Callable[[], T], end: float, idle: Idle | None = None) -> T:
    """Do what a socket may take longer for than it waits, but not beyond a time."""
    while monotonic() < end:
        try:
            return step()
        except TimeoutError:
            if idle is not None:
                idle()
    raise TimeoutError("the other side says nothing")


def _exactly(sock: socket.socket, size: int, end: float, idle: Idle | None = None) -> bytes:
    data = b""
    while len(data) < size:
        more = _in_time(partial(sock.recv, size - len(data)), end, idle)
        if not more:
            raise ConnectionError("the other side has closed the connection")
        data += more
    return data


#: What a process that was forked from this one must let go of, or the other side would take
#: this one for alive.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _forget() -> None:
    for sock in list(_sockets):
        with contextlib.suppress(OSError):
            os.close(sock.detach())
    _sockets.clear()


os.register_at_fork(after_in_child=_forget)

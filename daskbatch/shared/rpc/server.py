"""The way into a process for requests that are to be answered fast: a socket, with a doorkeeper.

Does not know what is asked for. Who comes in must prove to know the secret, and is proven that
this side knows it, too; with a TLS context, all is encrypted, and both sides show certificates.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from time import monotonic, sleep

from daskbatch.shared.data.messages import ServerAddress, error_to_send
from daskbatch.shared.rpc.answer import CONFIRM, FAILED, Handler, answer_to
from daskbatch.shared.rpc.handshake import (
    GIVE_UP_SECONDS,
    authenticate_server,
    in_time,
    sockets,
    tune,
)
from daskbatch.shared.rpc.local_transport import LocalTransport, connected
from daskbatch.shared.rpc.socket_transport import ConnectionCut, SocketTransport

#: How often is looked whether the door is still needed. Seconds.
_LOOK_SECONDS = 1.0


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
        sockets.add(self._listener)
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
        sockets.add(sock)
        try:
            end = monotonic() + GIVE_UP_SECONDS
            sock.settimeout(_LOOK_SECONDS)
            tune(sock)
            if self._context is not None:
                sock = self._context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
                sockets.add(sock)
                in_time(sock.do_handshake, end)
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

"""An authenticated request server: one thread per connection.

All servers of a worker share its port (`worker.listener`). Both sides prove knowledge of the
server's secret (HMAC-SHA256 challenge-response); with TLS both present certificates. See
`worker.handshake`.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from typing import TypeAlias

from daskbatch.shared.data.codec import has_shared_buffer
from daskbatch.shared.data.messages import Request, encode_error
from daskbatch.shared.rpc.answer import CONFIRM, FAILED, Handler, answer_to
from daskbatch.shared.rpc.local_transport import LocalTransport, make_pair
from daskbatch.shared.rpc.socket_transport import ConnectionClosed, SocketTransport
from daskbatch.worker.listener import listen

_Transport: TypeAlias = SocketTransport | LocalTransport


class RpcServer:
    """Accepts the clients that know the secret, and serves each in a thread.

    All methods may be called by any thread.

    Parameters
    ----------
    host : str
        The address to listen at.
    handler : callable
        Answers requests; called by many threads at once.
    is_needed : callable
        Called about every second; when it returns False, the server closes itself.
    tls_context : ssl.SSLContext, optional
        The server's certificates, to encrypt all connections.
    owner : str
        The worker; see `worker.listener.listen`.

    Raises
    ------
    OSError
        No port that it may use is free.
    """

    def __init__(
        self,
        host: str,
        handler: Handler,
        is_needed: Callable[[], bool],
        tls_context: ssl.SSLContext | None = None,
        owner: str = "",
    ) -> None:
        self._handler = handler
        self._is_needed = is_needed
        self._connections: set[_Transport] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._service = listen(host, self._accept, self._check, tls_context, owner)
        self.address = self._service.address

    def close(self) -> None:
        """Accept no more clients, and close all connections."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        self._service.close()
        for connection in connections:
            connection.close()

    def _check(self) -> None:
        if not self._is_needed():
            self.close()

    def _accept(self, sock: socket.socket) -> None:
        self._serve_until_closed(SocketTransport(sock))

    def connect_locally(self) -> LocalTransport:
        """Connect from within this process.

        A thread of the server serves this connection, too: unlike a task's thread, it is never
        interrupted in the middle of a request.

        Raises
        ------
        OSError
            The server is closed.
        """
        client_end, server_end = make_pair()
        if self._closed:
            raise ConnectionClosed("the server is closed")
        threading.Thread(
            target=self._serve_until_closed,
            args=[server_end],
            name="daskbatch-rpc-serve",
            daemon=True,
        ).start()
        return client_end

    def _serve_until_closed(self, connection: _Transport) -> None:
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._connections.add(connection)
        try:
            self._serve(connection)
        except (OSError, EOFError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _serve(self, connection: _Transport) -> None:
        while True:
            request = Request._make(connection.receive())
            status, result, settle = answer_to(self._handler, request, connection.peer_has_closed)
            # Large objects must not stay in memory while this waits for the next request.
            del request
            if settle is None and connection.shares_memory and has_shared_buffer(result):
                # The client must hold the memory before it is dropped here.
                connection.send((CONFIRM, result))
                connection.receive()
            elif settle is None:
                _send(connection, status, result)
            else:
                received: bool | None = False
                try:
                    connection.send((CONFIRM, result))
                    received = connection.receive() is True
                except TimeoutError:
                    # The link is broken: the client may have confirmed it.
                    received = None
                    raise
                finally:
                    settle(received)
            del result, settle


def _send(connection: _Transport, status: int, result: object) -> None:
    try:
        connection.send((status, result))
    except OSError:
        raise
    except Exception as error:  # it cannot be pickled, and nothing of it was sent
        connection.send((FAILED, encode_error(error)))

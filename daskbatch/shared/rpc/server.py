"""An authenticated request server: one listening socket, one thread per connection.

Both sides prove knowledge of the secret (HMAC-SHA256 challenge-response); with TLS both present
certificates. See `worker.handshake`.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from time import sleep
from typing import TypeAlias

from daskbatch.forking import close_in_children
from daskbatch.memory.host import host_id
from daskbatch.shared.data.codec import has_shared_buffer
from daskbatch.shared.data.messages import Request, encode_error
from daskbatch.shared.rpc.answer import CONFIRM, FAILED, Handler, answer_to
from daskbatch.shared.rpc.local_transport import LocalTransport, make_pair
from daskbatch.shared.rpc.socket_transport import ConnectionClosed, SocketTransport
from daskbatch.worker.handshake import ServerAddress, accept_client

_Transport: TypeAlias = SocketTransport | LocalTransport

#: How often the server checks whether it is still needed; and the pause after an error before it
#: accepts connections again.
_POLL_INTERVAL_SECONDS = 1.0


class RpcServer:
    """Accepts the clients that know the secret, and serves each in a thread.

    All methods may be called by any thread.

    Parameters
    ----------
    host : str
        The address to listen at; the system chooses the port.
    handler : callable
        Answers requests; called by many threads at once.
    is_needed : callable
        Called every second while no client connects; when it returns False, the server closes
        itself.
    tls_context : ssl.SSLContext, optional
        The server's certificates, to encrypt all connections.
    """

    def __init__(
        self,
        host: str,
        handler: Handler,
        is_needed: Callable[[], bool],
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self._handler = handler
        self._is_needed = is_needed
        self._tls_context = tls_context
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=1024)
        self._connections: set[_Transport] = set()
        self._lock = threading.Lock()
        self._closed = False
        port = self._listener.getsockname()[1]
        self.address = ServerAddress(
            *(host, port, secrets.token_bytes(32), tls_context is not None),
            memory=host_id(),
        )
        self._listener.settimeout(_POLL_INTERVAL_SECONDS)
        close_in_children(self._listener)
        threading.Thread(target=self._listen, name="daskbatch-rpc-listen", daemon=True).start()

    def close(self) -> None:
        """Close the listening socket and all connections."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        with contextlib.suppress(OSError):
            # `close` alone does not wake a thread that waits in `accept`.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            connection.close()

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
                sleep(_POLL_INTERVAL_SECONDS)  # there may be too many open files
                continue
            threading.Thread(
                target=self._accept, args=[sock], name="daskbatch-rpc-serve", daemon=True
            ).start()

    def _accept(self, sock: socket.socket) -> None:
        # In the connection's own thread: a silent client must not hold up others.
        accepted = accept_client(sock, self.address.secret, self._tls_context)
        if accepted is not None:
            self._serve_until_closed(SocketTransport(accepted))

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
                received = False
                try:
                    connection.send((CONFIRM, result))
                    received = connection.receive() is True
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

"""Listens at one port of a worker for all that daskbatch serves there.

Each service has a secret, and a client that proves that it knows the secret is one of this service.
So nothing else has to be sent, and a port is enough for any number of dictionaries, queues and open
blocks. Any thread may use a `Service`.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import ssl
import threading
from collections.abc import Callable
from time import monotonic, sleep

from daskbatch.forking import after_fork, close_in_children, make_lock
from daskbatch.memory.host import host_id
from daskbatch.worker.handshake import ServerAddress, accept_client
from daskbatch.worker.local_sockets import listen_locally
from daskbatch.worker.ports import listening_socket

#: How often the listener checks whether its services are still needed; and the pause after an error
#: before it accepts connections again.
_POLL_INTERVAL_SECONDS = 1.0

#: How many connections may wait to be accepted.
_BACKLOG = 1024

_SECRET_BYTES = 32


class Service:
    """What serves the clients that know one secret.

    Attributes
    ----------
    address : ServerAddress
        What a client needs to connect.
    """

    def __init__(
        self,
        listener: _Listener,
        address: ServerAddress,
        serve: Callable[[socket.socket], None],
        check: Callable[[], None] | None,
    ) -> None:
        self.address = address
        self._listener = listener
        self.serve = serve
        self.check = check

    def close(self) -> None:
        """Accept no more clients; connections that were accepted stay."""
        self._listener.remove(self)


def listen(
    host: str,
    serve: Callable[[socket.socket], None],
    check: Callable[[], None] | None = None,
    tls_context: ssl.SSLContext | None = None,
    owner: str = "",
) -> Service:
    """Serve clients that connect to this process.

    Parameters
    ----------
    host : str
        The address to listen at; `worker.ports` says at which port.
    serve : callable
        Called with the socket of each client, in a thread for that client. It closes the socket.
    check : callable, optional
        Called about every second.
    tls_context : ssl.SSLContext, optional
        The certificates, to encrypt all connections.
    owner : str
        The worker. Services of one worker share a port.

    Raises
    ------
    OSError
        No allowed port is free.
    """
    key = host, owner, None if owner else tls_context
    with _lock:
        listener = _listeners.get(key)
        if listener is None:
            listener = _listeners[key] = _Listener(host, tls_context, key)
        return listener.add(serve, check)


#: By host, worker and certificates. Services are added and removed with the lock held.
_Key = tuple[str, str, ssl.SSLContext | None]
_listeners: dict[_Key, _Listener] = {}
_lock = make_lock()

# The sockets are closed in forked processes, and the threads do not exist there.
after_fork(_listeners.clear)


class _Listener:
    """The listening sockets of a worker, and the thread that accepts connections.

    One is for clients of any host; the other one, a Unix socket, for those of this host. It has no
    encryption, so it is not there if there are certificates.
    """

    def __init__(self, host: str, tls_context: ssl.SSLContext | None, key: _Key) -> None:
        self._key = key
        self._tls_context = tls_context
        self._sockets = [listening_socket(host, _BACKLOG)]
        self._host, self._port = host, self._sockets[0].getsockname()[1]
        self._local = ""
        if tls_context is None and (found := listen_locally(_BACKLOG)) is not None:
            self._local = found[0]
            self._sockets.append(found[1])
        for each in self._sockets:
            each.setblocking(False)
            close_in_children(each)
        #: By secret. Replaced and not changed, so that threads may read it without the lock.
        self._services: dict[bytes, Service] = {}
        self._closed = False
        threading.Thread(target=self._listen, name="daskbatch-listen", daemon=True).start()

    def add(
        self, serve: Callable[[socket.socket], None], check: Callable[[], None] | None
    ) -> Service:
        """Add a service; called with the lock held."""
        secret = secrets.token_bytes(_SECRET_BYTES)
        encrypted = self._tls_context is not None
        address = ServerAddress(
            self._host, self._port, secret, encrypted, memory=host_id(), local=self._local
        )
        service = Service(self, address, serve, check)
        self._services = {**self._services, secret: service}
        return service

    def remove(self, service: Service) -> None:
        """Remove a service; the last one closes the socket."""
        with _lock:
            secret = service.address.secret
            self._services = {key: each for key, each in self._services.items() if key != secret}
            if self._services or self._closed:
                return
            self._closed = True
            if _listeners.get(self._key) is self:
                del _listeners[self._key]
        for each in self._sockets:
            with contextlib.suppress(OSError):
                # `close` alone does not wake a thread that waits for clients.
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _listen(self) -> None:
        poll = select.poll()
        for each in self._sockets:
            with contextlib.suppress(OSError, ValueError):  # it has been closed already
                poll.register(each, select.POLLIN)
        next_check = monotonic() + _POLL_INTERVAL_SECONDS
        while not self._closed:
            if monotonic() > next_check:
                for service in self._services.values():
                    if service.check is not None:
                        service.check()
                next_check = monotonic() + _POLL_INTERVAL_SECONDS
            if not poll.poll(_POLL_INTERVAL_SECONDS * 1000):
                continue
            for each in self._sockets:
                try:
                    sock, _ = each.accept()
                except BlockingIOError:  # the client is at the other socket, or has gone
                    continue
                except OSError:
                    if not self._closed:
                        sleep(_POLL_INTERVAL_SECONDS)  # there may be too many open files
                    continue
                try:
                    threading.Thread(
                        target=self._accept, args=[sock], name="daskbatch-serve", daemon=True
                    ).start()
                except RuntimeError:  # there are too many threads
                    sock.close()
                    sleep(_POLL_INTERVAL_SECONDS)

    def _accept(self, sock: socket.socket) -> None:
        # In the connection's own thread: a silent client must not hold up others.
        accepted = accept_client(sock, lambda: self._services, self._tls_context)
        if accepted is None:
            return
        sock, secret = accepted
        service = self._services.get(secret)
        if service is None:  # it was closed meanwhile
            sock.close()
        else:
            service.serve(sock)

"""A client of an `RpcServer`: sends one request at a time, and waits for its answer.

`RpcClient.call` raises OSError for a broken connection. The caller decides whether to repeat the
request, and where: see `shared.proxy`.
"""

from __future__ import annotations

import os
import ssl
from typing import Any

from daskbatch.memory.host import host_id
from daskbatch.shared.data.messages import decode_error
from daskbatch.shared.rpc.answer import CONFIRM, FAILED
from daskbatch.shared.rpc.local_transport import LocalTransport
from daskbatch.shared.rpc.server import RpcServer
from daskbatch.shared.rpc.socket_transport import IdleCheck, SocketTransport
from daskbatch.worker.execution.task_context import STOP_POLL_SECONDS
from daskbatch.worker.handshake import ServerAddress, connect_to_server

#: How long it may take to connect, the proofs of both sides included.
_CONNECT_TIMEOUT_SECONDS = 5.0


class RequestFailed(Exception):
    """The server answered with an exception, which is the argument."""


class RpcClient:
    """A connection to a server, with an id by which a server recognizes repeated requests.

    The id and the number of a request (`seq`) stay the same when a caller repeats it, also on
    another server: so the request takes effect once (exactly-once RPC: Birrell & Nelson 1984;
    Lee et al., RIFL, 2015). The caller increments `seq` before each new request.

    Not thread-safe: one thread at a time may use it.
    """

    def __init__(self) -> None:
        self.client_id = os.urandom(8)
        #: The number of the current request.
        self.seq = 0
        self._connection: SocketTransport | LocalTransport | None = None
        self._address: ServerAddress | None = None

    def call(
        self,
        address: ServerAddress,
        tls_context: ssl.SSLContext | None,
        operation: str,
        wait: float,
        arguments: tuple[Any, ...],
        idle_check: IdleCheck | None = None,
        local_server: RpcServer | None = None,
    ) -> Any:
        """Send a request, and return its result.

        Parameters
        ----------
        address : ServerAddress
            The server. If the client is connected to another one, it connects anew.
        tls_context : ssl.SSLContext, optional
            The client's certificates, for a server with TLS.
        operation : str
            The operation's name.
        wait : float
            Seconds that the server may wait until it can execute the operation.
        arguments : tuple
            The operation's arguments.
        idle_check : callable, optional
            Called every `STOP_POLL_SECONDS` while there is no answer; it may raise to end the wait.
        local_server : RpcServer, optional
            The server itself, if it is in this process.

        Raises
        ------
        RequestFailed
            The server has executed the request, and that raised an exception.
        OSError
            The connection is broken; the server may have executed the request, or not.
        """
        if self._connection is None or self._address != address:
            self.close()
            if local_server is not None:
                self._connection = local_server.connect_locally()
            else:
                sock = connect_to_server(address, tls_context, _CONNECT_TIMEOUT_SECONDS, idle_check)
                sock.settimeout(STOP_POLL_SECONDS)
                shares_memory = bool(host_id()) and address.memory == host_id()
                self._connection = SocketTransport(sock, shares_memory)
            self._address = address
        connection = self._connection
        try:
            # The fields of a `Request`, but as a plain tuple: it takes less time to pickle.
            connection.send((operation, self.client_id, self.seq, wait, arguments), idle_check)
            status, result = connection.receive(idle_check)
            if status == CONFIRM:
                connection.send(True)
        except BaseException:
            # The next message of this connection would be the answer to this request.
            self.close()
            raise
        if status == FAILED:
            raise RequestFailed(decode_error(result))
        return result

    def renew(self) -> None:
        """Become another client for the servers: the caller does not know what its request did."""
        self.close()
        self.client_id = os.urandom(8)
        self.seq = 0

    def close(self) -> None:
        """Close the connection; the next `call` makes another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        self.close()

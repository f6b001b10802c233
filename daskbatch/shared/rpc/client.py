"""A client's way to an actor: one request at a time, each answered before the next.

Does not know which actor is the right one, nor what to do when it is gone.
"""

from __future__ import annotations

import os
import ssl
from typing import Any

from daskbatch.shared.data.messages import ServerAddress, error_sent
from daskbatch.shared.rpc.local_transport import LocalTransport
from daskbatch.shared.rpc.server import CONFIRM, FAILED, RpcServer, enter
from daskbatch.shared.rpc.socket_transport import Idle, SocketTransport
from daskbatch.worker.execution.task_context import STOP_POLL_SECONDS

#: How long it may take to come in. Seconds.
_CONNECT = 5.0


class RequestFailed(Exception):
    """The answer is an exception, which is the argument."""


class RpcClient:
    """A connection, and a name under which requests are known again that come twice."""

    def __init__(self) -> None:
        self.sid = os.urandom(8)
        #: The number of the request that is being made.
        self.seq = 0
        self._wire: SocketTransport | LocalTransport | None = None
        self._door: ServerAddress | None = None

    def call(
        self,
        door: ServerAddress,
        context: ssl.SSLContext | None,
        operation: str,
        wait: float,
        arguments: tuple[Any, ...],
        idle: Idle | None = None,
        near: RpcServer | None = None,
    ) -> Any:
        """Have something done.

        Parameters
        ----------
        door : ServerAddress
            Where.
        context : ssl.SSLContext, optional
            What it takes to go in.
        operation : str
            What.
        wait : float
            How long the other side may wait until it can be done. Seconds.
        arguments : tuple
            With what.
        idle : callable, optional
            Is called now and then while there is no answer, and may raise.
        near : Door, optional
            The door itself, if it is in this process.

        Raises
        ------
        Failed
            It was tried, and failed.
        OSError
            The connection is broken; it may have been done, or not.
        """
        if self._wire is None or self._door != door:
            self.close()
            if near is not None:
                self._wire = near.meet()
            else:
                sock = enter(door, context, _CONNECT, idle)
                sock.settimeout(STOP_POLL_SECONDS)
                self._wire = SocketTransport(sock)
            self._door = door
        wire = self._wire
        try:
            wire.send((operation, self.sid, self.seq, wait, arguments), idle)
            sign, result = wire.receive(idle)
            if sign == CONFIRM:
                wire.send(True)
        except BaseException:
            # Whatever comes through it next would be the answer to something else.
            self.close()
            raise
        if sign == FAILED:
            raise RequestFailed(error_sent(result))
        return result

    def close(self) -> None:
        """End the connection; another one is made when it is needed."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def __del__(self) -> None:
        self.close()

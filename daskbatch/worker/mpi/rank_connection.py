"""Connects a rank and its supervisor to the worker that has started them.

A process on the worker's host connects by a Unix socket with an abstract name, which leaves no
file behind. One on another host connects by TCP. Either way both sides first prove that they know
the secret of the set. Any number of threads may call the functions.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from daskbatch.timeouts import Deadline
from daskbatch.worker.authentication import authenticate_as_client
from daskbatch.worker.local_sockets import connect_locally
from daskbatch.worker.mpi.messages import Hello, MessageKind, send
from daskbatch.worker.mpi.rank_supervisor import RANK_VARIABLES
from daskbatch.worker.socket_options import tune

#: The environment variable of a rank that holds its `SetAddress`. The rank removes it at once.
LINK_VARIABLE = "DASKBATCH_RANK_LINK"

#: How long a rank may take to connect to the worker.
_CONNECT_TIMEOUT_SECONDS = 30.0


class SetAddress(NamedTuple):
    """How the ranks of a set reach their worker.

    Parameters
    ----------
    local : str
        The abstract name of the worker's Unix socket; empty if it has none.
    host, port : str, int
        The worker's address for other hosts; the port is 0 if there are none.
    secret : str
        The secret of the set, in hexadecimal digits.
    mark : str
        What a rank writes to its stdout and stderr at the end of each job.
    size : int
        The number of ranks.
    """

    local: str
    host: str
    port: int
    secret: str
    mark: str
    size: int

    def encode(self) -> str:
        """Return the text for the environment variable."""
        return json.dumps(self)

    @staticmethod
    def decode(text: str) -> SetAddress:
        """Undo `encode`."""
        return SetAddress(*json.loads(text))


def find_rank(environ: Mapping[str, str]) -> int:
    """Return the rank of this process, as its launcher says it; -1 if no launcher says it.

    Examples
    --------
    >>> find_rank({"OMPI_COMM_WORLD_RANK": "3"}), find_rank({})
    (3, -1)
    """
    for name in RANK_VARIABLES:
        with contextlib.suppress(KeyError, ValueError):
            return int(environ[name])
    return -1


def connect(address: SetAddress, role: str, rank: int, files: Sequence[int] = ()) -> socket.socket:
    """Connect to the worker, and say what the connection is for.

    Parameters
    ----------
    address : SetAddress
        How to reach the worker.
    role, rank
        See `Hello`.
    files : sequence of int
        Descriptors to send, if the connection is by a Unix socket.

    Raises
    ------
    OSError
        The worker cannot be reached, or does not know the secret.
    """
    deadline = Deadline(_CONNECT_TIMEOUT_SECONDS)
    sock = _open(address, deadline)
    try:
        sock.settimeout(_CONNECT_TIMEOUT_SECONDS)
        authenticate_as_client(sock, bytes.fromhex(address.secret), deadline)
        hello = Hello(role, rank, os.getpid(), socket.gethostname())
        send(sock, MessageKind.HELLO, hello, files=files if sock.family == socket.AF_UNIX else ())
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _open(address: SetAddress, deadline: Deadline) -> socket.socket:
    # Also if many ranks wait there: files can be sent in this way only.
    local = connect_locally(address.local, deadline.remaining())
    if local is not None:
        return local
    if not address.port:
        raise ConnectionRefusedError("the worker has ended, or is on another host")
    sock = socket.create_connection((address.host, address.port), timeout=deadline.remaining())
    tune(sock)
    return sock


def is_local(sock: socket.socket) -> bool:
    """Return whether the other end of a connection is on the same host."""
    return sock.family == socket.AF_UNIX

"""Finds out quickly whether a server still listens at an address.

Dask's own connections repeat a refused attempt until their time limit has passed. For a nanny that
has died with its worker, each client would wait for that. The functions are coroutines.
"""

from __future__ import annotations

import asyncio
import contextlib

from distributed.comm import parse_address, parse_host_port


async def is_listening(address: str, seconds: float) -> bool:
    """Return whether a server accepts connections at an address of Dask.

    Parameters
    ----------
    address : str
        The address, such as ``tcp://10.0.0.1:8786``. Of other protocols than TCP and TLS nothing
        is known, so that the answer is True.
    seconds : float
        How long a connection may take.
    """
    protocol, location = parse_address(address)
    if protocol not in ("tcp", "tls"):
        return True
    host, port = parse_host_port(location)
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), seconds)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True

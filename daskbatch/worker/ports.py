"""The ports at which daskbatch listens on a worker: those of the setting `daskbatch.port`.

Any thread may call.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Sequence

from daskbatch.errors import SpecError

#: The system chooses.
_ANY: Sequence[int] = (0,)

_ports = _ANY


def parse_ports(setting: object) -> Sequence[int]:
    """Return the ports that a setting allows.

    Parameters
    ----------
    setting : object
        None, a port, or a range such as ``"9000-9100"`` or ``"9000:9100"``.

    Raises
    ------
    SpecError
        It is none of these.

    Examples
    --------
    >>> parse_ports("9000-9002")
    range(9000, 9003)
    """
    if setting is None or setting == 0:
        return _ANY
    found = re.fullmatch(r"\s*(\d+)\s*(?:[-:]\s*(\d+)\s*)?", str(setting))
    if found is not None and not isinstance(setting, (bool, float)):
        first, last = int(found[1]), int(found[2] or found[1])
        if 0 < first <= last < 1 << 16:
            return range(first, last + 1)
    raise SpecError(
        f"daskbatch.port must be a port or a range of ports such as '9000-9100', not {setting!r}"
    )


def set_ports(setting: object) -> None:
    """Have this process listen at the ports that a setting allows; see `parse_ports`."""
    global _ports
    _ports = parse_ports(setting)


def listening_socket(host: str, backlog: int) -> socket.socket:
    """Return a socket that listens at the first of the allowed ports that is free.

    Raises
    ------
    OSError
        None of them is free, or this machine has no address `host`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = _ports
    for port in ports:
        try:
            return socket.create_server((host, port), family=family, backlog=backlog)
        except OSError as error:
            if ports is _ANY or error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise OSError(
        errno.EADDRINUSE,
        f"none of the ports {ports[0]} to {ports[-1]} is free at {host}: daskbatch.port must have "
        "one port for each worker of a host, and one more for each job that it starts across hosts",
    )

"""Hosts for tests: network namespaces of this machine, each with an address of its own.

They share the file system and the processes of this machine. Only root may make them, so
`requires_hosts` skips a test where that is not allowed, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from support.processes import end_all
from support.waiting import wait_until


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60)


#: The first and the last port from which a host connects, by the system's own choice.
LOCAL_PORTS = "41000 60999"


class Hosts:
    """Some hosts of one network; the first one has the address 10.78.0.1.

    Parameters
    ----------
    count : int
        The number of hosts.
    token : str, optional
        The `token` of hosts that another process has made.
    """

    def __init__(self, count: int, token: str = "") -> None:
        self.token = token or uuid.uuid4().hex[:6]
        self._hub = f"hub-{self.token}"
        self.names = [f"h{i}-{self.token}" for i in range(count)]
        self.addresses = [f"10.78.0.{i + 1}" for i in range(count)]

    def make(self) -> None:
        """Make the hosts; raises `OSError` or `CalledProcessError` if that is not allowed."""
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._hub, "link", "set", "br0", "up")
        for i, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            port = f"v{i}-{self.token}"
            _ip("netns", "add", name)
            _ip(
                *("-n", name, "link", "add", "e0", "type", "veth", "peer", "name", port),
                *("netns", self._hub),
            )
            _ip("-n", self._hub, "link", "set", port, "master", "br0")
            _ip("-n", self._hub, "link", "set", port, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "e0")
            _ip("-n", name, "link", "set", "e0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            self._set_local_ports(name)

    def _set_local_ports(self, name: str) -> None:
        """Have connections from a host use no port that `drop_connections` may be told.

        It drops what goes to a port. That may be the answer to a connection from this port.
        """
        file = "/proc/sys/net/ipv4/ip_local_port_range"
        _ip("netns", "exec", name, "sh", "-c", f"echo {LOCAL_PORTS} > {file}")

    def drop_connections(self, ports: str) -> None:
        """Have a firewall drop the connections of each host to some ports of the others.

        Parameters
        ----------
        ports : str
            The first and the last port, with a dash in between.
        """
        for name in self.names:
            # What goes to these ports goes to an interface that leads nowhere.
            _ip("-n", name, "link", "add", "d0", "type", "veth", "peer", "name", "d1")
            _ip("-n", name, "link", "set", "d0", "up")
            _ip("-n", name, "link", "set", "d1", "up")
            _ip("-n", name, "route", "add", "default", "dev", "d0", "table", "100")
            for address in self.addresses:
                lladdr = "02:00:00:00:00:01"
                _ip("-n", name, "neigh", "add", address, "lladdr", lladdr, "dev", "d0")
            rule = ("pref", "10", "ipproto", "tcp", "dport", ports, "lookup", "100")
            _ip("-n", name, "rule", "add", *rule)

    def pass_connections(self) -> None:
        """Undo `drop_connections`."""
        for name in self.names:
            _ip("-n", name, "rule", "del", "pref", "10")
            _ip("-n", name, "link", "del", "d0")

    def cut(self, host: int) -> None:
        """Cut the link of a host: the host does not notice it, but nothing passes."""
        _ip("-n", self._hub, "link", "set", f"v{host}-{self.token}", "down")

    def mend(self, host: int) -> None:
        """Undo `cut`."""
        _ip("-n", self._hub, "link", "set", f"v{host}-{self.token}", "up")

    def cut_between(self, one: int, other: int) -> None:
        """Cut the way between two hosts: neither notices it, and both reach all others."""
        for here, there in ((one, other), (other, one)):
            name, port = self.names[here], f"x{there}"
            # What goes to the other host goes to an interface that leads nowhere.
            _ip("-n", name, "link", "add", port, "type", "veth", "peer", "name", f"y{there}")
            _ip("-n", name, "link", "set", port, "up")
            _ip("-n", name, "link", "set", f"y{there}", "up")
            address = self.addresses[there]
            _ip("-n", name, "neigh", "add", address, "lladdr", "02:00:00:00:00:01", "dev", port)
            _ip("-n", name, "route", "add", f"{address}/32", "dev", port)

    def mend_between(self, one: int, other: int) -> None:
        """Undo `cut_between`."""
        for here, there in ((one, other), (other, one)):
            _ip("-n", self.names[here], "link", "del", f"x{there}")

    def remove(self) -> None:
        """Remove the hosts."""
        for name in (*self.names, self._hub):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                _ip("netns", "del", name)

    def command(self, host: int, *command: str) -> list[str]:
        """Return a command line that runs a command on a host."""
        return ["ip", "netns", "exec", self.names[host], *command]

    def write_ssh(self, path: Path, hidden: Path) -> None:
        """Write a program that runs a command on a host, as ssh does.

        On other hosts than the first one, the directory `hidden` is empty.
        """
        cases = "".join(
            f"  {address}) name={name} ;;\n"
            for address, name in zip(self.addresses, self.names, strict=True)
        )
        path.write_text(
            '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\n'
            f"case $1 in\n{cases}  *) exit 255 ;;\nesac\nshift\n"
            f"hide='mount -t tmpfs none {shlex.quote(str(hidden))}; '\n"
            f"[ $name = {self.names[0]} ] && hide=\n"
            'exec ip netns exec $name sh -c "$hide$*"\n'
        )
        path.chmod(0o755)


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Yield hosts; skip the test where they cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("the program ip is not there: it makes the hosts of this test")
    made = Hosts(count)
    try:
        try:
            made.make()
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or error
            pytest.skip(f"network namespaces cannot be made here: {str(said).strip()}")
        yield made
    finally:
        made.remove()


@contextlib.contextmanager
def cluster(
    made: Hosts, slots: Sequence[int], directory: Path, variables: Mapping[str, str]
) -> Iterator[str]:
    """Start a scheduler on the first host, and on each host a worker; yield its address.

    Parameters
    ----------
    made : Hosts
        The hosts.
    slots : sequence of int
        The slots of the worker of each host.
    directory : Path
        Where their files are.
    variables : mapping
        Added to the environment of the workers.
    """
    environment = {**os.environ, **variables}
    address = f"tcp://{made.addresses[0]}:8786"
    programs = [
        made.command(
            *(0, sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"),
            *("--host", made.addresses[0], "--port", "8786"),
        )
    ]
    programs += [
        made.command(
            *(host, sys.executable, "-m", "distributed.cli.dask_worker", address),
            *("--host", made.addresses[host], "--nthreads", str(count), "--no-dashboard"),
            *("--local-directory", str(directory)),
        )
        for host, count in enumerate(slots)
    ]
    started: list[subprocess.Popen[bytes]] = []
    with (directory / "cluster.log").open("wb") as log:
        try:
            for program in programs:
                started.append(
                    subprocess.Popen(program, stdout=log, stderr=log, env=environment, cwd="/")
                )
            yield address
        finally:
            end_all(started)
    wait_until(lambda: all(process.poll() is not None for process in started))

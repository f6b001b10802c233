"""Hosts with firewalls and broken links: requests take another way, and no task fails.

All tests share one cluster: a scheduler and a worker on the first host, a worker on the second one,
and the program on the third one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from support.hosts import Hosts, cluster, hosts

PORTS = "40000-40100"

#: How long a link is broken.
BLIP_SECONDS = 2.0


class Network(NamedTuple):
    """The hosts, and the address of the scheduler."""

    hosts: Hosts
    scheduler: str
    environment: dict[str, str]

    def start(self, program: str) -> subprocess.Popen[str]:
        """Start a program on the third host."""
        return self.run("-c", COMMON + program, self.scheduler)

    def run(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start Python on the third host, with variables added to its environment."""
        return subprocess.Popen(
            self.hosts.command(2, sys.executable, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **variables},
        )


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    variables = {
        "DASK_DASKBATCH__PORT": PORTS,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    directory = tmp_path_factory.mktemp("cluster")
    with hosts(3) as made:
        try:
            made.drop_connections(PORTS)
            made.pass_connections()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"packets cannot be dropped by their port here: {error.stderr.strip()}")
        with cluster(made, [2, 2], directory, variables) as address:
            yield Network(made, address, {**os.environ, **variables})


COMMON = """
import sys, time
from daskbatch import Batch
from daskbatch.shared import relayed

start_relaying, attempts = relayed.start_relaying, []

def count_attempt(server):
    attempts.append((server.host, server.port))
    start_relaying(server)

relayed.start_relaying = count_attempt

def use(shared, copied, queue, key, seconds):
    end = time.monotonic() + seconds
    count = 0
    while True:
        shared[key] = copied[key] = count
        assert shared[key] == copied[key] == count
        shared.fetch_add("sum")
        queue.put(key)
        queue.get(timeout=60)
        count += 1
        if time.monotonic() > end:
            return count
        time.sleep(0.01)

def look(shared):
    from daskbatch.worker import unreachable
    known = len(unreachable.all_unreachable())
    dict(shared)
    return known, len(unreachable.all_unreachable())

def start_batch():
    batch = Batch(sys.argv[1])
    while batch.num_workers < 4:
        time.sleep(0.05)
    return batch

def make_tasks(batch, seconds):
    shared, copied, queue = batch.ddict(shards=8), batch.ddict(replicas=2), batch.queue()
    shared["sum"] = 0
    tasks = [batch.function(use, shared, copied, queue, i, seconds) for i in range(3)]
    isolated = batch.options(isolation="process")
    tasks.append(isolated.function(use, shared, copied, queue, 3, seconds))
    return shared, copied, queue, batch.compile(tasks), tasks
"""

#: The program is behind a firewall, and so are the workers.
BEHIND_A_FIREWALL = """
with start_batch() as batch:
    for shards in (8, 8):
        shared = batch.ddict(shards=shards)
        for key in range(50):
            shared[key] = key
        assert dict(shared) == {key: key for key in range(50)}
    # One attempt for each worker, and not one for each of its shards.
    print(len(attempts), len(set(attempts)), flush=True)
    shared, copied, queue, program, tasks = make_tasks(batch, 0.2)
    program.run(120)
    assert shared["sum"] == sum(task.get() for task in tasks)
    # A new process of a worker knows at its start what the worker or another process has found.
    worker = next(iter(batch.client.sync(batch.client.scheduler.identity, n_workers=-1)["workers"]))
    fresh = batch.options(isolation="fresh", workers=worker)
    first, second = (fresh.function(look, shared) for _ in range(2))
    first.run(60)
    second.run(60)
    assert second.get()[0] == second.get()[1] == 1, (first.get(), second.get())
    print("done", flush=True)
"""

#: While a link is broken, the program and its tasks use a dictionary, copies and a queue.
DURING_A_BLIP = """
with start_batch() as batch:
    shared, copied, queue, program, tasks = make_tasks(batch, 2.5)
    program.start()
    while shared["sum"] < 8:
        time.sleep(0.01)
    print("running", flush=True)
    count = use(shared, copied, queue, "program", 2.5)
    program.wait(120)
    assert shared["sum"] == count + sum(task.get() for task in tasks)
    print("done", flush=True)
"""


def _finish(program: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return program.communicate(timeout=120)
    finally:
        program.kill()


def test_a_firewall_fails_no_task(network: Network) -> None:
    network.hosts.drop_connections(PORTS)
    try:
        assert _finish(network.start(BEHIND_A_FIREWALL)) == ("2 2\ndone\n", "")
    finally:
        network.hosts.pass_connections()


@pytest.mark.parametrize("host", [1, 2], ids=["of a worker", "of the program"])
def test_a_blip_of_a_link_fails_no_task(network: Network, host: int) -> None:
    program = network.start(DURING_A_BLIP)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "running\n"
        network.hosts.cut(host)
        try:
            threading.Event().wait(BLIP_SECONDS)
        finally:
            network.hosts.mend(host)
        assert _finish(program) == ("done\n", "")
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("stays", [False, True], ids=["and goes", "and stays"])
def test_a_firewall_that_comes(network: Network, stays: bool) -> None:
    """What is connected already is cut, too: requests wait, or are relayed."""
    program = network.start(DURING_A_BLIP)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "running\n"
        network.hosts.drop_connections(PORTS)
        try:
            if stays:
                assert _finish(program) == ("done\n", "")
            else:
                threading.Event().wait(BLIP_SECONDS)
        finally:
            network.hosts.pass_connections()
        if not stays:
            assert _finish(program) == ("done\n", "")
    finally:
        program.kill()
        program.wait()


def test_a_client_that_is_cut_off_for_longer_than_the_limit(network: Network) -> None:
    """Its calls that wait for shared objects end with an error before the link works again."""
    program = network.run(
        "-m", "faults.cut_client", network.scheduler, DASK_DASKBATCH__LINK_TIMEOUT="2s"
    )
    ended: dict[str, str] = {}
    try:
        assert program.stdout is not None
        assert len(json.loads(program.stdout.readline())) == 3
        network.hosts.cut(2)
        try:
            while not ended.keys() >= {"count", "queue", "key"}:
                ended.update([json.loads(program.stdout.readline())])
        finally:
            network.hosts.mend(2)
        for name in ("count", "queue", "key"):
            assert ended[name].startswith("failed: ServiceLost: "), ended
            assert "no answer within 2 s" in ended[name]
        said, errors = program.communicate("mended\n", timeout=60)
        assert not program.returncode, errors
        ended.update(map(json.loads, said.splitlines()))
        assert ended.keys() == {"count", "queue", "key", "put", "write", "tasks"}
        assert not [each for each in ended.values() if each.startswith("wrong")], ended
    finally:
        program.kill()
        program.communicate()

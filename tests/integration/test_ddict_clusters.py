"""Dictionaries on any cluster: opened by name, sent to processes, and how long they live."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle
import dask
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster, wait
from support import ddicts
from support.clients import context, process
from support.waiting import wait_until

from daskbatch import Batch, DDict, LifecycleError, Queue, ServiceLost, SpecError


@pytest.fixture(scope="module", params=[True, False], ids=["processes", "threads"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """A plain Dask cluster, without a Batch."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=request.param, dashboard_address=":0"
    ) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, set_as_default=False) as made:
        yield made


@pytest.mark.parametrize("given", ["cluster", "client", "address"])
def test_on_a_cluster_without_a_batch(cluster: LocalCluster, client: Client, given: str) -> None:
    where: Any = {"cluster": cluster, "client": client, "address": cluster.scheduler_address}[given]
    with DDict(where) as d:
        assert len(d.stats()) == 2, "a shard on each worker"
        d.update((number, np.full(20_000, number)) for number in range(10))
        for number in range(10):
            assert int(client.submit(ddicts.read, d, number, pure=False).result()[0]) == number
        client.submit(ddicts.write, d, "from there", 1, pure=False).result()
        assert d["from there"] == 1
        counts = client.gather(
            client.map(ddicts.count_up, [d] * 8, ["n"] * 8, [50] * 8, pure=False)
        )
        assert sorted(number for count in counts for number in count) == list(range(400))


def test_copies_where_all_are_in_one_process(cluster: LocalCluster, client: Client) -> None:
    with DDict(client, shards=1) as d:
        there = d.workers_for(["key"])
        task = client.submit(ddicts.change_copies, d, "key", workers=there, pure=False)
        assert task.result() == (True, [[1], 0.0, 0.0])
        assert ddicts.change_copies(d, "key")[1] == [[1], 0.0, 0.0]


def test_a_task_of_dask_waits_and_leaves_its_slot(cluster: LocalCluster, client: Client) -> None:
    with DDict(client, wait_for_keys=True, timeout=10) as d:
        readers = [
            client.submit(ddicts.add_one, d, number + 1, number, pure=False) for number in range(8)
        ]
        writer = client.submit(ddicts.write, d, 8, 0, pure=False)
        with client.as_current():
            wait([*readers, writer])
        assert {future.status for future in readers} == {"finished"}
        assert client.gather(readers) == list(range(8, 0, -1))


def test_a_dictionary_that_a_task_of_dask_makes(cluster: LocalCluster, client: Client) -> None:
    with DDict(client, name="known") as d:
        d["a"] = 1
        assert client.submit(ddicts.by_name, "known", "a", pure=False).result() == 1
        assert d["a"] == "changed"


def test_with_a_client_that_is_the_default(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=True) as mine, DDict() as d:
        d["a"] = 1
        assert mine.submit(ddicts.read, d, "a", pure=False).result() == 1


# -- nothing there ------------------------------------------------------------------------


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "DASKBATCH_CLUSTER"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_connected_to_nothing() -> None:
    program = """
from daskbatch import DDict, LifecycleError
try:
    DDict()
except LifecycleError as error:
    print("told:", error)
"""
    assert run(program).startswith("told: ")


def test_with_a_batch_that_is_open() -> None:
    program = """
from daskbatch import Batch, DDict, LifecycleError
with Batch(num_workers=1) as batch:
    d = DDict()
    d["a"] = 1
    task = batch.function(d.get, "a")
    task.run()
    print(task.get())
try:
    DDict()
except LifecycleError:
    print("over")
"""
    assert run(program).split() == ["1", "over"]


def test_what_is_left_open_makes_no_noise() -> None:
    program = """
from daskbatch import Batch
batch = Batch(num_workers=1)
d = batch.ddict(wait_for_keys=True)
d["a"] = 1
task = batch.function(d.get, "a")
task.run()
print(task.get())
"""
    assert run(program) == "1\n"


def test_nobody_answers_there() -> None:
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.5 s"}),
        pytest.raises(ServiceLost, match="127.0.0.1:9"),
    ):
        DDict("tcp://127.0.0.1:9")


@pytest.mark.parametrize("where", [5, ["tcp://127.0.0.1:9"], "", "no address"], ids=repr)
def test_what_is_no_cluster(where: Any) -> None:
    with pytest.raises((SpecError, ServiceLost)):
        DDict(where)


# -- names --------------------------------------------------------------------------------


def test_the_same_name_is_the_same_dictionary(batch: Batch) -> None:
    with batch.ddict(name="a name", shards=2) as d:
        d["a"] = 1
        others = [
            batch.ddict(name="a name"),
            DDict(batch.client, name="a name", shards=2),
            DDict(batch.client.scheduler.address, name="a name"),
        ]
        for number, other in enumerate(others):
            assert other["a"] == number + 1
            assert other == d
            other["a"] += 1
        assert len(batch.ddict(name="another name")) == 0
        assert len(batch.ddict()) == 0
        others[0].close()
        with pytest.raises(LifecycleError):
            d["a"]
    with batch.ddict(name="a name") as d:
        assert "a" not in d, "it is a new one"
        with pytest.raises(LifecycleError):
            others[1].get("a")


def test_the_name_of_one_that_is_not_as_asked_for(batch: Batch) -> None:
    with batch.ddict(name="taken", shards=2):
        with pytest.raises(SpecError, match="taken.*shards=2"):
            batch.ddict(name="taken", shards=3)
        with pytest.raises(SpecError, match="taken"):
            batch.queue(name="taken")


def test_many_make_one_of_a_name_at_once(batch: Batch) -> None:
    program = batch.compile([batch.function(_count_by_name, "at once") for _ in range(8)])
    program.run(timeout=60)
    assert sorted(program.get()) == list(range(8))
    batch.ddict(name="at once").close()


def _count_by_name(name: str) -> int:
    return int(DDict(name=name).fetch_add("n"))


# -- sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [pickle, cloudpickle], ids=lambda module: module.__name__)
def test_a_copy_is_the_same_dictionary(batch: Batch, module: Any) -> None:
    with batch.ddict(wait_for_keys=True, timeout=0.01) as d:
        d["a"] = 1
        sent = module.dumps(d)
        assert len(sent) < 1000
        copy = module.loads(sent)
        assert copy == d
        copy["b"] = 2
        assert d == {"a": 1, "b": 2}
        with pytest.raises(TimeoutError):
            copy["c"]
    with pytest.raises(LifecycleError):
        copy["a"]


def test_a_copy_that_was_never_used(batch: Batch) -> None:
    with batch.ddict() as d:
        sent = pickle.dumps(d)
    assert pickle.dumps(pickle.loads(sent))
    with pytest.raises(LifecycleError):
        pickle.loads(sent)["a"]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_class_derived_from_it_stays_one(batch: Batch, isolation: str) -> None:
    with ddicts.Doubled(batch, wait_for_keys=True) as d:
        d["a"] = 2
        d.unit = " m"
        copy = pickle.loads(pickle.dumps(d))
        assert type(copy) is ddicts.Doubled
        assert (copy.twice("a"), copy == d) == ("4 m", True)
        task = batch.options(isolation=isolation).function(ddicts.twice, d, "a")
        task.run(timeout=60)
        assert task.get() == "4 m"


def test_another_process(batch: Batch) -> None:
    with batch.ddict() as d:
        d["here"] = os.getpid()
        answers = context.SimpleQueue()
        with process(ddicts.use_in_process, d, answers) as other:
            assert answers.get() == ["here", "there"]
            assert d["there"] == [os.getpid(), other.pid]
        assert other.exitcode == 0


# -- how long it is there -----------------------------------------------------------------


def test_it_ends_with_its_batch(cluster: LocalCluster, client: Client) -> None:
    for _ in range(10):
        with Batch(client) as batch:
            unnamed, named = batch.ddict(), batch.ddict(name="ends")
            unnamed["a"] = named["a"] = 1
        for d in (unnamed, named):
            with pytest.raises(LifecycleError, match="closed, or has ended with its Batch"):
                d["a"]
    with DDict(client, name="ends") as d:
        assert len(d) == 0


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("where", [[], ["address"]], ids=["connected", "address"])
def test_one_that_a_task_makes_ends_with_the_batch(
    batch: Batch, isolation: str, where: list[str]
) -> None:
    with Batch(batch.client) as inner:
        make = inner.options(isolation=isolation).function
        given = [batch.client.scheduler.address for _ in where]
        task = make(ddicts.make_at if where else ddicts.make_one, *given)
        task.run(timeout=60)
        d = task.get()
        other = make(ddicts.read, d, "made")
        other.run(timeout=60)
        assert (d["made"], other.get()) == ("there", "there")
    with pytest.raises(LifecycleError):
        d["made"]


def test_one_with_a_name_that_a_task_makes_does_not(client: Client) -> None:
    with Batch(client) as batch:
        task = batch.function(_count_by_name, "by a task")
        task.run(timeout=60)
    with DDict(client, name="by a task") as d:
        assert d["n"] == 1


@pytest.mark.parametrize("fate", ["ends", "is killed", "is killed and has a child"])
def test_one_made_by_way_of_an_address_ends_with_the_program(batch: Batch, fate: str) -> None:
    address = batch.client.scheduler.address
    answers, end = context.SimpleQueue(), context.SimpleQueue()
    with process(ddicts.make_and_wait, address, "child" in fate, answers, end) as maker:
        made = answers.get()
        children = psutil.Process(maker.pid).children()
        try:
            assert [each["made"] for each in made] == ["there", "there"]
            if fate == "ends":
                end.put(None)
            else:
                maker.kill()
            for each in made:
                wait_until(lambda: ddicts.outcome(len, each) == "LifecycleError")  # noqa: B023
        finally:
            for child in children:
                child.kill()
    with DDict(address, name="stays, too") as d:
        assert d == {"made": "there"}


def test_one_made_by_way_of_an_address_is_there_as_long_as_the_program(batch: Batch) -> None:
    """Even if this process has no reference to it: it may have been sent to another process."""
    sent = pickle.dumps(ddicts.make_at(batch.client.scheduler.address))
    gc.collect()
    with pickle.loads(sent) as d:
        assert d["made"] == "there"


def test_a_cluster_may_end_before_the_program() -> None:
    program = """
from distributed import LocalCluster
from daskbatch import DDict
for where in ("object", "address"):
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", protocol="tcp"
    ) as cluster:
        d = DDict(cluster if where == "object" else cluster.scheduler_address)
        d["a"] = 1
        print(d["a"])
"""
    assert run(program) == "1\n1\n"


def test_what_has_a_name_outlives_its_client(cluster: LocalCluster) -> None:
    address = cluster.scheduler_address
    with Client(address, set_as_default=False) as first:
        unnamed = DDict(first)
        unnamed["a"] = 1
        DDict(first, name="stays")["a"] = 1
        Queue(first, name="a queue that stays").put(1)
        gone = Queue(first)
    with Client(address, set_as_default=False) as second, DDict(second, name="stays") as d:
        assert d["a"] == 1
        with Queue(second, name="a queue that stays") as queue:
            assert queue.get_nowait() == 1
        wait_until(lambda: ddicts.outcome(len, unnamed) == "LifecycleError")
        wait_until(lambda: ddicts.outcome(gone.qsize) == "LifecycleError")

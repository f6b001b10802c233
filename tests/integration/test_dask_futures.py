"""A Dask future among the arguments of a task stands for its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from support.waiting import wait_until

from daskbatch import Batch, DependencyFailed, as_executor
from daskbatch.errors import GraphError


@dataclass
class Box:
    content: Any


def add(first: int, second: int = 1) -> int:
    return first + second


def content(box: Box) -> Any:
    return box.content


def wait_for_file(path: str, value: int = 0) -> int:
    end = time.monotonic() + 60
    while not Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.01)
    return value


def fail() -> None:
    raise ValueError("the future's own error")


def sizes(arrays: list[np.ndarray[Any, Any]]) -> list[int]:
    return [len(array) for array in arrays]


def change(values: list[int]) -> list[int]:
    values.append(0)
    return values


@pytest.fixture(params=["the client of the Batch", "another client"])
def client(request: pytest.FixtureRequest, batch: Batch) -> Iterator[Client]:
    if request.param == "the client of the Batch":
        yield batch.client
    else:
        with Client(batch.client.scheduler.address, set_as_default=False) as other:
            yield other


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[str]:
    """A file that `wait_for_file` waits for; it is there at the end, also after a failure."""
    path = tmp_path / "gate"
    yield str(path)
    path.touch()


def test_wherever_a_task_may_stand(batch: Batch, client: Client) -> None:
    one = client.submit(add, 0, pure=False)
    tasks = [
        batch.function(add, one, second=one),
        batch.function(content, Box({"a": [one, (one,)]})),
        batch.options(isolation="process").function(add, one),
        batch.function(add, client.submit(add, 1, key=("a tuple", client.id, 0))),
        batch.function(add, client.scatter(41)),
        batch.process("cat", stdin=client.submit(str, 5, pure=False)),
    ]
    batch.compile(tasks).run(60)
    assert [task.get() for task in tasks[:-1]] == [2, {"a": [1, (1,)]}, 2, 3, 42]
    assert tasks[-1].stdout.get() == "5"


def test_calls_of_an_executor_and_a_started_task(batch: Batch, client: Client) -> None:
    futures = [client.submit(add, i, pure=False) for i in range(5)]
    with as_executor(batch) as executor:
        assert list(executor.map(add, futures)) == [2, 3, 4, 5, 6]
        assert executor.submit(add, futures[0], futures[1]).result(60) == 3
    task = batch.function(add, futures[4])
    task.start()
    assert task.again().run(60) is None
    assert task.get(60) == 6


def test_each_task_has_its_own_copy(batch: Batch, client: Client) -> None:
    shared = client.submit(list, (1,), pure=False)
    tasks = [batch.function(change, shared) for _ in range(3)]
    batch.compile(tasks).run(60)
    assert [task.get() for task in tasks] == [[1, 0]] * 3
    assert shared.result(60) == [1]


def test_large_values(batch: Batch, client: Client) -> None:
    arrays = [client.submit(np.zeros, 200_000 + i, pure=False) for i in range(3)]
    task = batch.function(sizes, arrays)
    task.run(60)
    assert task.get() == [200_000, 200_001, 200_002]


def test_only_tasks_that_take_it_wait_for_it(batch: Batch, client: Client, gate: str) -> None:
    late = client.submit(wait_for_file, gate, 1, pure=False)
    waiting = batch.function(add, late)
    others = [batch.function(add, i) for i in range(20)]
    program = batch.compile([waiting, *others])
    program.start()
    assert [task.get(60) for task in others] == list(range(1, 21))
    assert waiting.state in ("waiting", "queued")
    Path(gate).touch()
    assert waiting.get(60) == 2


def _never_done(client: Client) -> Any:
    return client.submit(add, 1, pure=False, resources={"that-no-worker-has": 1})


def is_on_scheduler(client: Client, key: Any) -> bool:
    return bool(client.run_on_scheduler(lambda dask_scheduler: key in dask_scheduler.tasks))


def _failed(client: Client) -> Any:
    return client.submit(fail, pure=False)


def _cancelled_before(client: Client) -> Any:
    future = _never_done(client)
    future.cancel()
    return future


@pytest.mark.parametrize(
    ("make", "error"), [(_failed, ValueError), (_cancelled_before, CancelledError)]
)
def test_failed_and_cancelled_futures(
    batch: Batch, client: Client, make: Callable[[Client], Any], error: type[Exception]
) -> None:
    task, other = batch.function(add, make(client)), batch.function(add, 1)
    batch.compile([task, other]).run(60)
    with pytest.raises(DependencyFailed, match="Dask future") as caught:
        task.get()
    assert isinstance(caught.value.__cause__, error)
    assert other.get() == 2


def test_a_future_that_is_cancelled_while_a_task_waits_for_it(batch: Batch, client: Client) -> None:
    future = _never_done(client)
    task = batch.function(add, future)
    after = batch.function(add, task)
    batch.compile([task, after]).start()
    wait_until(lambda: is_on_scheduler(batch.client, future.key))
    future.cancel()
    with pytest.raises(DependencyFailed) as caught:
        after.get(60)
    assert isinstance(caught.value.__cause__, CancelledError)
    with pytest.raises(DependencyFailed):
        task.get()


def test_no_one_waits_for_a_future_that_no_task_takes_any_longer(
    batch: Batch, client: Client, gate: str
) -> None:
    future = client.submit(wait_for_file, gate, 7, pure=False)
    task = batch.function(add, future)
    task.start()
    task.cancel()
    batch.fence(60)  # though the future is not done
    again = task.again()
    again.start()
    Path(gate).touch()
    assert again.get(60) == 8


def test_a_future_of_another_cluster(batch: Batch) -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        future = client.submit(add, 1)
        with pytest.raises(GraphError, match="of the cluster inproc.*result"):
            batch.function(add, future)

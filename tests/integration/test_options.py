"""`options` on clusters that can satisfy them: workers, resources, priority, retries."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Scheduler, SpecCluster, Worker, get_worker
from support.cluster_info import workers_of
from support.waiting import wait_for_file, wait_until, wait_until_running

from daskbatch import Batch, SpecError


@pytest.fixture(scope="module")
def cluster() -> Iterator[SpecCluster]:
    """One worker of one thread with two GPUs, and one of two threads without."""
    common = {"host": "127.0.0.1", "dashboard_address": ":0"}
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0}}
    workers: dict[str, Any] = {
        "with": {"cls": Worker, "options": {"nthreads": 1, "resources": {"GPU": 2}, **common}},
        "without": {"cls": Worker, "options": {"nthreads": 2, **common}},
    }
    with SpecCluster(scheduler=scheduler, workers=workers) as cluster:
        yield cluster


@pytest.fixture
def batch(cluster: SpecCluster) -> Iterator[Batch]:
    with Batch(cluster) as batch:
        yield batch


@pytest.fixture
def addresses(batch: Batch) -> dict[str, str]:
    """The addresses of the workers, by their names."""
    workers = workers_of(batch.client)
    return {each["name"]: address for address, each in workers.items()}


def where() -> str:
    return str(get_worker().name)


def note(number: int, path: Path) -> int:
    with path.open("a") as file:
        file.write(f"{number}\n")
    return number


# -- where --------------------------------------------------------------------------------


def test_nothing_asked_for_runs_everywhere(batch: Batch, tmp_path: Path) -> None:
    met = [tmp_path / "one", tmp_path / "other"]
    tasks = [batch.function(meet, met[n], met[1 - n]) for n in range(2)]
    batch.compile(tasks).run(timeout=60)
    assert {task.get() for task in tasks} <= {"with", "without"}


def meet(mine: Path, other: Path) -> str:
    mine.touch()
    wait_for_file(other)
    return where()


def test_resources_are_found_where_they_are(batch: Batch) -> None:
    tasks = [batch.options(resources={"GPU": 1}).function(where) for _ in range(30)]
    batch.compile(tasks).run(timeout=60)
    assert {task.get() for task in tasks} == {"with"}


def test_resources_do_not_spread_to_what_comes_before_and_after(
    batch: Batch, addresses: dict[str, str]
) -> None:
    elsewhere = batch.options(workers=addresses["without"])
    before = elsewhere.function(where)
    task = batch.options(resources={"GPU": 2}).function(where_after, before)
    after = elsewhere.function(where_after, task)
    batch.compile([before, task, after]).run(timeout=60)
    assert after.get() == ["without", "with", "without"]


def where_after(before: str | list[str]) -> list[str]:
    return [*([before] if isinstance(before, str) else before), where()]


def test_resources_for_executables(batch: Batch) -> None:
    task = batch.options(resources={"GPU": 1}).process("echo", "on the GPU")
    task.run(timeout=60)
    assert task.stdout.get() == "on the GPU"


def test_workers_by_address(batch: Batch, addresses: dict[str, str]) -> None:
    for name, address in addresses.items():
        alone = [batch.options(workers=address).function(where) for _ in range(10)]
        listed = [batch.options(workers=[address]).function(where) for _ in range(10)]
        batch.compile(alone + listed).run(timeout=60)
        assert {task.get() for task in alone + listed} == {name}


def test_workers_by_host(batch: Batch) -> None:
    task = batch.options(workers="127.0.0.1").function(where)
    task.run(timeout=60)
    assert task.get() in ("with", "without")


def test_one_program_may_ask_for_many_places(batch: Batch, addresses: dict[str, str]) -> None:
    names = sorted(addresses)
    tasks = [
        batch.options(workers=addresses[names[number % 2]], priority=number % 3).function(where)
        for number in range(60)
    ]
    program = batch.compile(tasks)
    program.run(timeout=60)
    assert program.get() == [names[number % 2] for number in range(60)]


# -- rank ---------------------------------------------------------------------------------


def keys_there(dask_scheduler: Any) -> list[Any]:
    return list(dask_scheduler.tasks)


def order_of(batch: Batch, tmp_path: Path, priorities: list[int], apart: bool) -> list[int]:
    """Let tasks of some priorities wait for one slot; return the order in which they ran."""
    blocker = batch.options(priority=100).function(wait_for_file, tmp_path / "go")
    blocker.start()
    wait_until_running(blocker)
    # Dask hands the next task to a worker before the last is done, whatever comes later.
    second = batch.options(priority=99).function(wait_for_file, tmp_path / "go")
    second.start()
    tasks = [
        batch.options(priority=priority).function(note, number, tmp_path / "order")
        for number, priority in enumerate(priorities)
    ]
    for some in [[task] for task in tasks] if apart else [tasks]:
        batch.compile(some).start()
    blocks = [task._record.block for task in (second, *tasks)]
    assert None not in blocks
    keys = {block.key for block in blocks if block is not None}
    wait_until(lambda: keys <= set(batch.client.run_on_scheduler(keys_there)))
    (tmp_path / "go").touch()
    batch.fence(timeout=60)
    return [int(line) for line in (tmp_path / "order").read_text().split()]


@pytest.fixture
def one_slot() -> Iterator[Batch]:
    with Batch(num_workers=1) as batch:
        yield batch


@pytest.mark.parametrize("apart", [False, True], ids=["in one program", "apart"])
def test_higher_priority_runs_first(one_slot: Batch, tmp_path: Path, apart: bool) -> None:
    priorities = [0, -5, 7, 3, 0, 7]
    ran = order_of(one_slot, tmp_path, priorities, apart)
    assert [priorities[number] for number in ran] == sorted(priorities, reverse=True)


def test_priority_does_not_overrule_what_must_come_before(one_slot: Batch, tmp_path: Path) -> None:
    order = tmp_path / "order"
    low = one_slot.options(priority=-1, writes=[one_slot.write(order)]).function(note, 0, order)
    high = one_slot.options(priority=9, writes=[one_slot.write(order)]).function(note, 1, order)
    one_slot.compile([low, high]).run(timeout=60)
    assert order.read_text().split() == ["0", "1"]


# -- retries ------------------------------------------------------------------------------


def fail_at_first(path: Path, times: int) -> int:
    with path.open("a") as file:
        file.write("tried\n")
    tried = len(path.read_text().split())
    if tried <= times:
        raise OSError(f"attempt {tried}")
    return tried


def test_retries_are_counted_for_each_task_alone(batch: Batch, tmp_path: Path) -> None:
    tasks = [
        batch.options(retries=number).function(fail_at_first, tmp_path / f"{number}", 2)
        for number in range(5)
    ]
    batch.compile(tasks).run(timeout=60)
    for number in range(2):
        with pytest.raises(OSError, match=f"attempt {number + 1}"):
            tasks[number].get()
    assert [task.get() for task in tasks[2:]] == [3, 3, 3]
    tried = [len((tmp_path / f"{number}").read_text().split()) for number in range(5)]
    assert tried == [1, 2, 3, 3, 3]


def test_executables_are_tried_again(batch: Batch, tmp_path: Path) -> None:
    # It succeeds where the directory is there, and makes it where it is not.
    made = tmp_path / "made"
    script = f"[ -d {made} ] || {{ mkdir {made}; exit 3; }}"
    task = batch.options(retries=1).process("sh", "-c", script)
    task.run(timeout=60)
    assert task.get() == 0


# -- whose a keyword is -------------------------------------------------------------------


def keywords(*args: Any, **given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, given


ALL_OF_OURS = {
    "reads": ["r"],
    "writes": "w",
    "name": None,
    "timeout": 3,
    "retries": -1,
    "resources": "GPU",
    "workers": 4,
    "priority": "high",
    "isolation": "complete",
    "cwd": "/",
    "env": {},
    "target": "moon",
    "self": "me",
    "args": (1,),
    "kwargs": {"a": 1},
}


def test_behind_options_all_keywords_are_the_functions(batch: Batch) -> None:
    task = batch.options(name="mine").function(keywords, 1, **ALL_OF_OURS)
    assert task.name == "mine"
    task.run(timeout=60)
    assert task.get() == ((1,), ALL_OF_OURS)


def test_without_options_five_keywords_are_not(batch: Batch) -> None:
    ours = {"reads": [], "writes": [], "name": "mine", "timeout": 30}
    theirs = {"retries": 1, "priority": 2, "workers": 3, "resources": 4, "cwd": 5, "env": 6}
    task = batch.function(keywords, 1, **ours, **theirs)
    assert task.name == "mine"
    task.run(timeout=60)
    assert task.get() == ((1,), theirs)


def test_options_are_for_many_tasks(batch: Batch, tmp_path: Path) -> None:
    path = tmp_path / "log"
    appending = batch.options(
        name="append",
        reads=[batch.read(path)],
        writes=[batch.write(path)],
        retries=1,
        cwd=None,
        env=None,
    )
    tasks = [appending.function(note, number, path) for number in range(20)]
    batch.compile(tasks).run(timeout=60)
    assert [task.name for task in tasks] == [f"append[{number}]" for number in range(20)]
    assert path.read_text().split() == [str(number) for number in range(20)]


def test_options_for_executables(batch: Batch, tmp_path: Path) -> None:
    configured = batch.options(name="tell", cwd=tmp_path, env={"DASKBATCH_TEST_COLOUR": "red"})
    task = configured.process("sh", "-c", "pwd; echo $DASKBATCH_TEST_COLOUR; cat", stdin="end")
    task.run(timeout=60)
    assert task.name == "tell"
    assert task.stdout.get().splitlines() == [os.path.realpath(tmp_path), "red", "end"]


def test_what_is_no_option_is_said_at_once(batch: Batch) -> None:
    with pytest.raises(TypeError, match=r"^Batch\.options\(\) .* 'colour'"):
        batch.options(colour="red")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^Batch\.ddict\(\) .* 'colour'"):
        batch.ddict(colour="red")  # type: ignore[call-arg]
    assert pickle.loads(pickle.dumps(Batch.options)) is Batch.options
    with pytest.raises(SpecError, match="priority= must be a number, not 'high'"):
        batch.options(priority="high")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"retries= must be a whole number from 0, not -1"):
        batch.options(retries=-1)


@pytest.mark.parametrize("seconds", [3e6, 1e10, math.inf])
def test_a_timeout_is_as_long_as_one_likes(batch: Batch, seconds: float) -> None:
    """A timeout may be longer than the system can wait in one call."""
    task = batch.process("sleep", 0.3, timeout=seconds)
    function = batch.function(time.sleep, 0.3, timeout=seconds)
    batch.compile([task, function]).run(timeout=60)
    assert (task.get(), function.get()) == (0, None)

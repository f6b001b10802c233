"""Tasks that run on the driver, and functions for tasks that run on workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from distributed import get_worker
from support.waiting import wait_for_file

from daskbatch.execute import (
    DependenciesFailed,
    FailedDependency,
    Job,
    RmiTask,
    Task,
    TaskCancelled,
)

# -- on the driver ---------------------------------------------------------------


class Barrier(Task):
    """A barrier after some tasks. Its result says which worker executed each of them last."""

    def execute(self, scheduler: Any, worker: Any) -> None:
        self.set_executing(worker)
        self.mark_done({task.id: task.executed_on_last() for task in self.dependencies})


class Prefers(RmiTask):
    """A task whose locality is given by the names of workers."""

    def __init__(self, *args: Any, degrees: dict[str, int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.degrees = degrees
        self.asked: list[list[str]] = []

    def locality(self, workers: Any) -> list[tuple[Any, int]]:
        self.asked.append([worker.name for worker in workers])
        return [
            (worker, self.degrees.get(worker.name, self.degrees.get("*", 0))) for worker in workers
        ]


class Promised(Task):
    """A task that returns a future, which the test completes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.future: Future[Any] = Future()

    def execute(self, scheduler: Any, worker: Any) -> Future[Any]:
        self.set_executing(worker)
        return self.future


def after(tasks: Iterable[Task], before: Iterable[Task]) -> None:
    """Make each of `tasks` depend on each of `before`."""
    before = list(before)
    for task in tasks:
        for each in before:
            task.dependencies.add(each)
            each.dependents.add(task)


def three_stages(ctx: Any, method: Callable[..., Any], size: int = 5, *args: Any) -> Job:
    """Make the job of the tests of `bndl.execute`: group a, barrier, group b, barrier, group c."""
    groups = [
        [
            RmiTask(ctx, (stage, number), method, (stage, number, *args), group="abc"[stage])
            for number in range(size)
        ]
        for stage in (0, 2, 4)
        for stage in [stage // 2]
    ]
    barriers = [Barrier(ctx, (stage, size), group="barrier") for stage in range(2)]
    tasks: list[Task] = []
    for stage, group in enumerate(groups):
        tasks += group
        if stage:
            after(group, [barriers[stage - 1]])
        if stage < 2:
            after([barriers[stage]], group)
            tasks.append(barriers[stage])
    return Job(ctx, tasks)


# -- on workers -------------------------------------------------------------------------


def identity(value: Any) -> Any:
    return value


def where(*_: Any) -> str:
    """Return the name of the worker."""
    return str(get_worker().name)


def where_after(seconds: float) -> str:
    time.sleep(seconds)
    return where()


def fail(message: str) -> None:
    raise ValueError(message)


def note(path: Path, text: object) -> None:
    """Append a line to a file, in one write."""
    with path.open("a") as file:
        file.write(f"{text}\n")


def note_and_return(path: Path, text: object) -> object:
    note(path, text)
    return text


def fail_on(names: list[str]) -> str:
    """Fail on the workers with these names."""
    if where() in names:
        raise ValueError(f"not on {where()}")
    return where()


def fail_times(path: Path, times: int) -> str:
    """Fail the first `times` times; append the name of the worker to a file each time."""
    note(path, where())
    if len(path.read_text().splitlines()) <= times:
        raise ValueError(f"attempt {len(path.read_text().splitlines())}")
    return where()


def fail_once(stage: int, number: int, path: Path) -> tuple[int, int]:
    if (stage, number) == (1, 2) and not path.exists():
        path.touch()
        raise ValueError("transient")
    return stage, number


def miss_half(stage: int, number: int, directory: Path) -> tuple[int, int]:
    """Report, once in each stage, that the outputs of half of the stage before are missing."""
    mark = directory / f"missed-{stage}"
    if stage and number == 1 and not mark.exists():
        mark.touch()
        raise DependenciesFailed({None: [(stage - 1, each) for each in range(0, 5, 2)]})
    return stage, number


def pair(stage: int, number: int) -> tuple[int, int]:
    return stage, number


def miss_once(path: Path, worker: str, ids: list[Any]) -> str:
    if not path.exists():
        path.touch()
        raise DependenciesFailed({worker: ids})
    return "found"


def miss_itself_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        raise FailedDependency()
    return "found"


def always_miss(path: Path, name: object) -> None:
    note(path, "looked")
    raise DependenciesFailed({None: [name]})


def read_or_miss(path: Path, ids: list[Any], worker: str | None = None) -> str:
    """Read a file that other tasks have made; if it is missing, report the ids of these tasks."""
    if not path.exists():
        raise DependenciesFailed({worker: ids})
    return path.read_text()


def make_on_second(path: Path, first: Path) -> str:
    """Make a file, except in the first call."""
    if first.exists():
        path.write_text("made")
    first.touch()
    return "made"


def make_noting(path: Path, first: Path, order: Path) -> str:
    note(order, "make")
    return make_on_second(path, first)


def read_noting(path: Path, order: Path) -> str:
    note(order, "read" if path.exists() else "miss")
    return read_or_miss(path, [0])


def kill_once(path: Path, value: Any) -> Any:
    """Kill the worker's process in the first call."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def kill_always() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def spin(path: Path) -> None:
    """Run until cancelled; make a file at the begin, and another one when cancelled."""
    try:
        # A test may cancel the task as soon as the file is there.
        path.with_suffix(".begun").touch()
        while True:
            time.sleep(0.005)
    except TaskCancelled:
        path.with_suffix(".cancelled").touch()
        raise


def fail_first(directory: Path, number: int, count: int) -> None:
    """Number 1 raises a ValueError once `count` tasks run; the others wait to be cancelled.

    All record in files what happened.
    """
    note(directory / "executed", number)
    try:
        while number != 1 or len((directory / "executed").read_text().splitlines()) < count:
            time.sleep(0.005)
    except TaskCancelled:
        note(directory / "cancelled", number)
        raise
    note(directory / "failed", number)
    raise ValueError(number)


def swallow(path: Path) -> str:
    """Catch the cancellation, and continue; return after three exceptions."""
    for _ in range(3):
        try:
            # Whoever waits for this file may stop the task before this statement is over.
            path.with_suffix(".begun").touch()
            while True:
                time.sleep(0.005)
        except Exception as error:
            note(path, type(error).__name__)
    return "returned"


_running = 0
_max_running = 0
_lock = threading.Lock()


def count_running(seconds: float, parties: int = 1, name: str = "") -> int:
    """Return the largest number of calls that have run at once in this process.

    It waits until `parties` calls with this name run, and then for some seconds, in which more
    would begin if they could.
    """
    global _running, _max_running
    with _lock:
        _running += 1
        _max_running = max(_max_running, _running)
    if parties > 1:
        wait_for_parties(name, parties)
    time.sleep(seconds)
    with _lock:
        _running -= 1
    return _max_running


def count_where(seconds: float) -> tuple[str, int]:
    return where(), count_running(seconds)


def forget_running() -> None:
    global _max_running
    _max_running = 0


_barriers: dict[str, threading.Barrier] = {}


def wait_for_parties(name: str, parties: int) -> int:
    """Wait until `parties` calls with this name run in this process."""
    with _lock:
        barrier = _barriers.setdefault(name, threading.Barrier(parties))
    return barrier.wait(20)


def wait_for_if(path: Path | None) -> None:
    if path is not None:
        wait_for_file(path)


def nested(ctx: Any, count: int) -> list[Any]:
    """Execute a job from within a task."""
    tasks = [RmiTask(ctx, number, identity, (number,)) for number in range(count)]
    return [task.result() for task in ctx.execute(Job(ctx, tasks))]


def drop_nested(ctx: Any, path: Path) -> str:
    """Begin a job from within a task, and drop its generator after the first result."""
    for task in ctx.execute(
        Job(ctx, [RmiTask(ctx, 0, identity, (0,)), RmiTask(ctx, 1, spin, (path,))])
    ):
        return str(task.id)
    return "none"


async def doubled(number: int) -> int:
    return 2 * number


def large(size: int) -> bytes:
    return bytes(size)


def write_for_process(directory: Path, number: int) -> None:
    """Write an output that counts as lost when this process has ended."""
    partial = directory / f"{number}.{os.getpid()}"
    partial.write_text(f"{os.getpid()} {where()} {number}")
    partial.rename(directory / str(number))


def read_of_processes(directory: Path, numbers: list[int]) -> int:
    """Add outputs up; report those whose processes have ended, with the names of the workers."""
    missing: dict[str | None, list[Any]] = {}
    total = 0
    for number in numbers:
        pid, name, value = (directory / str(number)).read_text().split()
        if Path(f"/proc/{pid}").exists():
            total += int(value)
        else:
            missing.setdefault(name, []).append(number)
    if missing:
        raise DependenciesFailed(missing)
    return total


async def spin_in_coroutine(path: Path) -> None:
    spin(path)

"""Functions that tests run as further clients of a Batch: in other processes, and in tasks."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import dask
from support.waiting import wait_for_file, wait_until

from daskbatch import Batch, ServiceLost, SubmitAfterCloseError
from daskbatch.batch.task import Task

#: Processes that start quickly, since Dask is imported once for all of them.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["daskbatch.batch.batch", "support.clients"])


@contextmanager
def process(function: Callable[..., None], *args: Any) -> Iterator[BaseProcess]:
    """Run a function in another process; at the end, wait for the process, or kill it."""
    running = context.Process(target=function, args=args)
    running.start()
    try:
        yield running
    finally:
        running.join(30)
        if running.exitcode is None:
            running.kill()
            running.join()


# -- clients ----------------------------------------------------------------------------


def run_squares(batch: Batch, first: int, count: int, begin: Any, answers: Any, end: Any) -> None:
    """Run many tasks at the same time as other clients, and close once `end` is set."""
    tasks = [batch.function(pow, number, 2) for number in range(first, first + count)]
    program = batch.compile(tasks)
    begin.wait(30)
    program.run(timeout=90)
    right = program.get() == [number**2 for number in range(first, first + count)]
    answers.put((batch.client_id, right))
    end.wait(60)
    batch.close()


def run_for_ever_with_ttl(batch: bytes, directory: Path, ttl: str) -> None:
    """Like `run_for_ever`, with a setting that a copy reads when it is unpickled."""
    dask.config.set({"daskbatch.client-ttl": ttl})
    run_for_ever(pickle.loads(batch), directory)


def run_for_ever(batch: Batch, directory: Path) -> None:
    """Start tasks that run until they are stopped, and one that never begins."""
    tasks = [
        batch.function(spin, directory / "thread"),
        batch.options(isolation="process").function(spin, directory / "process"),
        batch.process("sh", "-c", f"echo $$ > {directory}/executable.begun; exec sleep 600"),
    ]
    for task in tasks:
        task.start()
    try:
        tasks[0].get()
    except ServiceLost:
        (directory / "told").touch()
        try:
            batch.function(len, "").run(timeout=30)
        except ServiceLost:
            (directory / "told again").touch()


def spin(path: Path) -> None:
    """Run until stopped; files show that this has begun, and that it was stopped."""
    try:
        # Whoever waits for this file may stop the task before this statement is over.
        path.with_suffix(".begun").write_text(f"{os.getpid()}\n")
        while True:
            time.sleep(0.01)
    finally:
        path.with_suffix(".stopped").touch()


def use_and_leave(batch: Batch, path: Path) -> None:
    """Start a task that does not end before the test says so, close the Batch, and end."""
    batch.function(touch_when_told, path).start()
    batch.close()
    path.with_suffix(".closed").touch()


def fork_and_run_for_ever(batch: Batch, directory: Path) -> None:
    """Fork: both processes have the same files and connections open, and run on."""
    batch.function(spin, directory / "task").start()
    wait_until((directory / "task.begun").exists)
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    (directory / "forked").touch()
    time.sleep(600)


def forget_to_close(batch: Batch, path: Path) -> None:
    """End while a task runs, without having closed the Batch."""
    batch.function(spin, path).start()
    wait_until(path.with_suffix(".begun").exists)


def square_there(batch: Batch, answers: Any) -> None:
    """Run one small and one large task, and send the result."""
    with batch:
        task, large = batch.function(pow, 7, 2), batch.function(len, bytes(11 << 20))
        large.run(timeout=30)
        task.run(timeout=30)
        answers.put((batch.client_id, task.get()))


def take_from(queue: Any, answers: Any) -> None:
    """Receive a Batch from a queue, and use it."""
    square_there(queue.get(timeout=30), answers)


def wait_for_ever(batch: Batch, path: Path, answers: Any) -> None:
    """Wait for a task that does not end; send the exceptions of this and of later calls."""
    task = batch.function(spin, path)
    task.start()
    told: list[str] = []
    for attempt in (task.get, batch.fence, task.get, lambda: batch.function(len, "").start()):
        try:
            attempt()
            told.append("nothing")
        except (ServiceLost, SubmitAfterCloseError) as error:
            told.append(type(error).__name__)
    batch.close()
    answers.put(told)


# -- tasks ------------------------------------------------------------------------------


def touch_when_told(path: Path) -> None:
    """Make a file once the file with the suffix ".go" exists."""
    path.with_suffix(".begun").touch()
    wait_for_file(path.with_suffix(".go"))
    path.touch()


def go_down(batch: Batch, levels: int, isolation: str) -> list[int]:
    """Start a task that calls this function for one level less, and wait for it."""
    if not levels:
        return [batch.client_id]
    task = batch.options(isolation=isolation).function(go_down, batch, levels - 1, isolation)
    task.start()
    return [batch.client_id, *task.get()]


def square(batch: Batch, number: int) -> tuple[int, int]:
    """Square a number in another task; the Batch is not closed here."""
    task = batch.function(pow, number, 2)
    task.run()
    return task.get(), batch.client_id


def wait_for_another(batch: Batch, path: Path) -> Any:
    task = batch.function(wait_for_file, path)
    task.start()
    return task.get()


async def await_two(batch: Batch) -> list[int]:
    tasks = [batch.function(pow, number, 2) for number in (3, 4)]
    for task in tasks:
        task.start()
    return list(await asyncio.gather(*[_await(task) for task in tasks]))


async def _await(task: Task) -> Any:
    return await task


def use_in_threads(batch: Batch) -> tuple[list[int], set[int]]:
    """Run tasks and wait for them in threads that this task starts."""
    found: list[int] = []
    clients: set[int] = set()

    def use(number: int) -> None:
        task = batch.function(pow, number, 2)
        task.run()
        found.append(task.get())
        clients.add(batch.client_id)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found), clients


def alone(batch: Batch, directory: Path, levels: int = 1) -> int:
    """Count how often another task computes at the same time, before and after this one waits."""
    overlaps = 0
    for part in range(2):
        try:
            (directory / "computing").mkdir()
            time.sleep(0.01)
            (directory / "computing").rmdir()
        except FileExistsError:
            overlaps += 1
        if levels and not part:
            task = batch.function(alone, batch, directory, levels - 1)
            task.start()
            overlaps += task.get()
    return overlaps


def fork_and_square(batch: Batch) -> tuple[int, int]:
    """Use the Batch in a forked process, which is a client and not a task."""
    number = batch.client_id
    answers = multiprocessing.get_context("fork").SimpleQueue()
    child = os.fork()
    if child == 0:
        with suppress(BaseException), batch:
            task = batch.function(pow, 7, 2)
            task.run(timeout=30)
            answers.put((batch.client_id - number, task.get()))
        os._exit(0)
    os.waitpid(child, 0)
    return answers.get()  # type: ignore[no-any-return]


def make_another() -> tuple[int, int, bool]:
    """Make a Batch in a task, and run tasks on it."""
    with Batch(num_workers=1) as batch:
        task = batch.function(pow, 2, 5)
        task.run(timeout=30)
        inner = batch.function(square, batch, 3)
        inner.run(timeout=30)
    return batch.client_id, task.get() + inner.get()[0], batch.closed


def wait_and_tell(batch: Batch, directory: Path) -> Any:
    """Wait for another task; write to a file which process waits."""
    task = batch.function(wait_for_file, directory / "go")
    task.start()
    with (directory / "waiting").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return task.get()


def start_and_return(batch: Batch, path: Path) -> str:
    batch.function(touch_when_told, path).start()
    return "returned"


def start_and_fail(batch: Batch, path: Path) -> None:
    task = batch.function(spin, path)
    task.start()
    while not path.with_suffix(".begun").exists():
        # Only a wait for a task releases the slot to other tasks.
        with suppress(TimeoutError):
            task.wait(timeout=0.1)
    raise KeyError("mine")


def start_and_wait(batch: Batch, path: Path) -> None:
    task = batch.function(spin, path)
    task.start()
    task.wait()


def use_after_close(batch: Batch) -> str:
    batch.close()
    try:
        batch.function(len, "")
    except SubmitAfterCloseError as error:
        return str(error)
    return "nothing"


def large(batch: Batch) -> int:
    """Run a task whose value is so large that it stays on its worker; return its length."""
    task = batch.function(bytes, 300_000)
    task.run()
    return len(task.get())


def note(path: Path, name: str) -> None:
    with path.open("a") as file:
        file.write(f"{name}\n")


def note_slowly(path: Path, name: str) -> None:
    """Write a note, and take long enough to be a block alone, and not in an open one."""
    note(path, name)
    time.sleep(0.2)


def hold(batch: Batch, directory: Path, how: str) -> None:
    """Keep a copy that is never used until the test says so; then close, drop or only leave it."""
    if how == "dropped":
        del batch
        gc.collect()
    wait_for_file(directory / "go")
    if how == "closed":
        batch.close()
        wait_for_file(directory / "end")


def hold_several(data: bytes, begin: Any, closed: Any, end: Any) -> None:
    """Unpickle several copies, and close one of them; use none."""
    copies = [pickle.loads(data) for _ in range(3)]
    begin.wait(60)
    copies[1].close()
    closed.set()
    end.wait(60)


def close_one_of_two(data: bytes) -> tuple[bool, bool, int, int, int]:
    """Unpickle two copies in a task, close one, and use the other."""
    first, second = pickle.loads(data), pickle.loads(data)
    numbers = first.client_id, second.client_id
    first.close()
    task = second.function(pow, 2, 3)
    task.run(timeout=30)
    return first.closed, second.closed, *numbers, task.get()


def close_without_use(data: bytes) -> tuple[bool, bool, int]:
    first, second = pickle.loads(data), pickle.loads(data)
    first.close()
    task = second.function(pow, 2, 3)
    task.run(timeout=30)
    return first.closed, second.closed, task.get()

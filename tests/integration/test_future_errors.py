"""What a call raises reaches the program unchanged, whatever it is, and however it is awaited."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from support.waiting import wait_for_file

from daskbatch import Batch, as_executor

SECONDS = 60


class Falsy(Exception):
    """An exception that is false, as one with a length of 0 is."""

    def __bool__(self) -> bool:
        return False


class Empty(Exception):
    def __len__(self) -> int:
        return 0


class Undecided(Exception):
    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


def fail_with(kind: type[BaseException], *args: Any) -> None:
    error = kind(*args)
    error.add_note("a note")
    raise error


def by_result(batch: Batch, kind: type[BaseException]) -> Any:
    return as_executor(batch).submit(fail_with, kind, "text").result(SECONDS)


def by_map(batch: Batch, kind: type[BaseException]) -> Any:
    return list(as_executor(batch).map(fail_with, [kind], ["text"], timeout=SECONDS))


def by_chunks(batch: Batch, kind: type[BaseException]) -> Any:
    return list(as_executor(batch).map(fail_with, [kind] * 2, ["text"] * 2, chunksize=2))


def by_task(batch: Batch, kind: type[BaseException]) -> Any:
    task = batch.function(fail_with, kind, "text")
    task.start()
    return task.get(SECONDS)


def by_await(batch: Batch, kind: type[BaseException]) -> Any:
    async def wait() -> Any:
        return await (await as_executor(batch).async_submit(fail_with, kind, "text"))

    return asyncio.run(asyncio.wait_for(wait(), SECONDS))


def by_async_map(batch: Batch, kind: type[BaseException]) -> Any:
    async def wait() -> Any:
        executor = as_executor(batch)
        return [each async for each in executor.async_map(fail_with, [[kind], ["text"]])]

    return asyncio.run(asyncio.wait_for(wait(), SECONDS))


def by_awaiting_a_task(batch: Batch, kind: type[BaseException]) -> Any:
    async def wait() -> Any:
        task = batch.function(fail_with, kind, "text")
        task.start()
        return await task

    return asyncio.run(asyncio.wait_for(wait(), SECONDS))


def by_wrapping_a_future(batch: Batch, kind: type[BaseException]) -> Any:
    async def wait() -> Any:
        return await asyncio.wrap_future(as_executor(batch).submit(fail_with, kind, "text"))

    return asyncio.run(asyncio.wait_for(wait(), SECONDS))


def by_wrapping_a_task(batch: Batch, kind: type[BaseException]) -> Any:
    async def wait() -> Any:
        task = batch.function(fail_with, kind, "text")
        task.start()
        return await asyncio.wrap_future(task.as_future())

    return asyncio.run(asyncio.wait_for(wait(), SECONDS))


def by_run_in_executor(batch: Batch, kind: type[BaseException]) -> Any:
    async def wait() -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(as_executor(batch), fail_with, kind, "text")

    return asyncio.run(asyncio.wait_for(wait(), SECONDS))


WAYS = [by_result, by_map, by_chunks, by_task, by_await, by_async_map, by_awaiting_a_task]
#: Those in which asyncio copies the outcome of a future.
COPYING_WAYS = [by_wrapping_a_future, by_wrapping_a_task, by_run_in_executor]
KINDS = [
    *(Falsy, Empty, Undecided, TimeoutError, concurrent.futures.CancelledError),
    concurrent.futures.InvalidStateError,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_exception_of_the_call_is_raised(
    batch: Batch, kind: type[BaseException], way: Callable[..., Any]
) -> None:
    with pytest.raises(kind) as caught:
        way(batch, kind)
    assert caught.type is kind
    assert caught.value.args == ("text",)
    assert caught.value.__notes__ == ["a note"]
    assert "in fail_with" in str(caught.value.__cause__)


@pytest.mark.parametrize("way", [by_await, by_async_map, by_awaiting_a_task, by_map, *COPYING_WAYS])
def test_a_stop_iteration_does_not_end_what_awaits_it(
    batch: Batch, way: Callable[..., Any]
) -> None:
    # What Python makes of a StopIteration that a coroutine or a generator raises.
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        way(batch, StopIteration)
    assert type(caught.value.__cause__) is StopIteration
    assert caught.value.__cause__.args == ("text",)


def test_a_stop_iteration_is_raised_where_nothing_awaits(batch: Batch) -> None:
    with pytest.raises(StopIteration, match="text"):
        by_result(batch, StopIteration)
    with pytest.raises(StopIteration, match="text"):
        by_task(batch, StopIteration)


@pytest.mark.parametrize("way", COPYING_WAYS)
def test_asyncio_copies_any_other_outcome_itself(batch: Batch, way: Callable[..., Any]) -> None:
    with pytest.raises(Falsy, match="text"):
        way(batch, Falsy)


def test_a_callback_of_the_program_receives_the_future_itself(batch: Batch) -> None:
    received: SimpleQueue[Any] = SimpleQueue()
    future = as_executor(batch).submit(fail_with, StopIteration, "text")
    future.add_done_callback(received.put)
    assert received.get(timeout=SECONDS) is future
    assert type(future.exception()) is StopIteration


def test_the_text_of_a_future_runs_no_code_of_its_exception(batch: Batch) -> None:
    future = as_executor(batch).submit(fail_with, Undecided)
    assert type(future.exception(SECONDS)) is Undecided
    assert repr(future).endswith("state=finished raised Undecided>")


def test_to_cancel_what_awaits_a_future_cancels_the_call(batch: Batch, tmp_path: Path) -> None:
    async def wait() -> tuple[bool, bool]:
        # It may have begun, and can be stopped: it is Python code.
        future = await as_executor(batch).async_submit(wait_for_file, tmp_path / "never")
        waiting = asyncio.ensure_future(future)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return future.cancelled(), future.done()

    assert asyncio.run(wait()) == (True, True)

"""The methods of a task: start, wait, get, and how they refuse wrong use."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.waiting import wait_for_file, wait_until_running

from daskbatch import Batch, LifecycleError, SerializationError


def test_from_created_to_done(batch: Batch, tmp_path: Path) -> None:
    task = batch.function(wait_for_file, tmp_path / "go", name="mine")
    assert (task.name, task.state) == ("mine", "created")
    task.start()
    assert task.state in ("waiting", "running")
    (tmp_path / "go").touch()
    task.wait(timeout=60)
    assert task.state == "done"
    assert task.get() == task.result.get() == "go"
    assert repr(task) == "<Task 'mine' done>"


def test_running_is_seen(batch: Batch, tmp_path: Path) -> None:
    task = batch.function(wait_for_file, tmp_path / "go")
    task.start()
    wait_until_running(task)
    (tmp_path / "go").touch()
    task.wait(timeout=60)


def test_run_and_wait_return_nothing_and_raise_nothing_of_the_task(batch: Batch) -> None:
    task = batch.function(divmod, 1, 0)
    assert task.run(timeout=60) is None  # type: ignore[func-returns-value]
    assert task.wait() is None  # type: ignore[func-returns-value]
    assert task.state == "failed"


def test_uids_differ(batch: Batch) -> None:
    assert len({batch.function(len, "").uid for _ in range(100)}) == 100


def test_what_is_in_the_arguments_is_what_counts(batch: Batch) -> None:
    numbers = [1, 2]
    task = batch.function(sum, numbers)
    numbers.append(100)
    task.run(timeout=60)
    assert task.get() == 3


@dataclass
class Nested:
    inner: Any
    more: dict[str, Any] = field(default_factory=dict)


def describe(*args: Any, **kwargs: Any) -> str:
    return f"{args!r} {sorted(kwargs.items())!r}"


def test_tasks_are_found_wherever_they_stand_among_the_arguments(batch: Batch) -> None:
    one = batch.function(int, "1")
    out = batch.function(print, "said")
    task = batch.function(
        describe,
        [one, (one.result, {"key": one})],
        Nested(one, {"deep": [one]}),
        {one},
        text=out.stdout,
    )
    batch.compile([one, out, task]).run(timeout=60)
    assert task.get() == (
        "([1, (1, {'key': 1})], Nested(inner=1, more={'deep': [1]}), {1}) [('text', 'said')]"
    )


def test_tasks_in_a_partial_and_in_a_bound_method(batch: Batch) -> None:
    one = batch.function(int, "1")
    by_partial = batch.function(partial(describe, one), 2)
    by_method = batch.function([one, 5].index, 5)
    batch.compile([one, by_partial, by_method]).run(timeout=60)
    assert by_partial.get() == "(1, 2) []"
    assert by_method.get() == 1


def test_a_compiled_task_stands_for_its_results(batch: Batch) -> None:
    some = batch.compile([batch.function(int, "1"), batch.function(int, "2")])
    some.start()
    total = batch.function(sum, some)
    total.run(timeout=60)
    assert total.get() == 3


def test_each_consumer_has_a_copy_of_its_own(batch: Batch) -> None:
    made = batch.function(list, "ab")
    first = batch.function(_append_and_give, made)
    second = batch.function(_append_and_give, made)
    batch.compile([made, first, second]).run(timeout=60)
    assert (made.get(), first.get(), second.get()) == (["a", "b"], ["a", "b", 1], ["a", "b", 1])


def _append_and_give(some: list[Any]) -> list[Any]:
    some.append(1)
    return some


def test_a_coroutine_function_is_run_to_its_end(batch: Batch) -> None:
    task = batch.function(_later, 3)
    task.run(timeout=60)
    assert task.get() == 6


async def _later(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


def test_awaiting(batch: Batch) -> None:
    async def main() -> tuple[int, list[int]]:
        task = batch.function(pow, 2, 5)
        program = batch.compile([batch.function(pow, 2, n) for n in range(3)])
        task.start()
        program.start()
        return await task, await program

    assert asyncio.run(main()) == (32, [1, 2, 4])


def test_awaiting_what_fails_and_what_was_not_started(batch: Batch) -> None:
    async def main(start: bool) -> None:
        task = batch.function(divmod, 1, 0)
        if start:
            task.start()
        await task

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main(True))
    with pytest.raises(LifecycleError, match="has not been started"):
        asyncio.run(main(False))


def test_large_values_stay_until_they_are_asked_for(batch: Batch) -> None:
    big = batch.function(bytes, 5_000_000)
    length = batch.function(len, big)
    program = batch.compile([big, length])
    program.run(timeout=60)
    assert length.get() == 5_000_000
    assert big.get(timeout=60) == bytes(5_000_000)
    later = batch.function(len, big)
    later.run(timeout=60)
    assert later.get() == 5_000_000


# -- doing it wrong ---------------------------------------------------------------------


def test_large_values_go_with_their_batch() -> None:
    with Batch(num_workers=1) as batch:
        task = batch.function(bytes, 1_000_000)
        task.run(timeout=60)
    assert task.state == "done"
    with pytest.raises(LifecycleError, match="'bytes' stayed on its worker, and the Batch has"):
        task.get()


def test_waiting_for_what_nobody_started(batch: Batch) -> None:
    task = batch.function(len, "abc", name="lonely")
    for wait in (task.wait, task.get, task.result.get, task.stdout.get, task.stderr.get):
        with pytest.raises(LifecycleError, match="'lonely' has not been started") as caught:
            wait()
        assert str(caught.value).endswith(": call start() or run() of it first")


def test_starting_twice(batch: Batch) -> None:
    task = batch.function(len, "abc")
    task.run(timeout=60)
    with pytest.raises(LifecycleError, match="'len' is done already: a task starts once"):
        task.start()


def test_starting_a_member(batch: Batch) -> None:
    member = batch.function(len, "abc", name="part")
    program = batch.compile([member], name="whole")
    with pytest.raises(LifecycleError, match="member of the compiled task 'whole': start that"):
        member.start()
    with pytest.raises(LifecycleError, match="of the compiled task 'whole' first"):
        member.wait()
    program.run(timeout=60)
    with pytest.raises(LifecycleError, match="'whole' has been started already"):
        program.start()


def test_starting_what_takes_from_what_was_not_started(batch: Batch) -> None:
    first = batch.function(len, "abc", name="first")
    second = batch.function(str, first, name="second")
    with pytest.raises(LifecycleError, match="'second' takes the result of 'first', which has not"):
        second.start()
    first.run(timeout=60)
    second.run(timeout=60)
    assert second.get() == "3"


def test_an_access_too_late(batch: Batch) -> None:
    task = batch.function(len, "abc")
    task.read("some-file")
    task.run(timeout=60)
    with pytest.raises(LifecycleError, match="has been started: declare reads and writes before"):
        task.write("some-file")


def test_waiting_not_long_enough(batch: Batch, tmp_path: Path) -> None:
    task = batch.function(wait_for_file, tmp_path / "go", name="slow")
    task.start()
    for wait in (task.wait, task.get, task.result.get, task.stdout.get):
        with pytest.raises(TimeoutError, match="'slow' is not over after 0.05 s"):
            wait(timeout=0.05)
    (tmp_path / "go").touch()
    task.wait(timeout=60)


def test_a_task_does_not_leave_its_process_but_as_an_argument(batch: Batch) -> None:
    task = batch.function(len, "abc", name="here")
    for each in (task, task.result, batch.compile([task])):
        with pytest.raises(TypeError, match="'here' cannot be copied or sent away"):
            pickle.dumps(each)


def test_a_task_in_a_closure_is_refused_with_a_word_of_advice(batch: Batch) -> None:
    task = batch.function(len, "abc", name="caught")
    task.run(timeout=60)
    other = batch.function(lambda: task)
    other.run(timeout=60)
    with pytest.raises(SerializationError, match="give it as an argument to another task"):
        other.get()

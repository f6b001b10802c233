"""A block runs its members one after another, records an outcome for each, and never raises."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from support.payloads import BARRIER, Call, TaskPlaceholder, call, spec

from daskbatch.errors import ProcessFailed, SerializationError, TaskCrashed, TaskTimeout
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.worker.entry import run_block
from daskbatch.worker.execution import executable
from daskbatch.worker.execution.block import LOCAL, BlockMember, Limits, Link
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.outcome import BlockResult, Status

DONE, FAILED, SKIPPED, CANCELLED, DEFERRED = Status

#: What members append while they run, in this process.
SEEN: list[Any] = []


@pytest.fixture(autouse=True)
def clean() -> None:
    SEEN.clear()


def run(*calls: Call, inputs: Iterable[Any] = (), **changes: Any) -> BlockResult:
    return run_block(pickling.dumps(spec(*calls, **changes)), *inputs)


def statuses(result: BlockResult) -> list[Status]:
    return [Status(each) for each in result.statuses]


def value(result: BlockResult, member: int = 0) -> Any:
    assert result.statuses[member] == DONE, unpack_error(result.values[member] or b"")
    return pickling.loads(result.values[member] or b"")


def error(result: BlockResult, member: int = 0) -> BaseException:
    assert result.statuses[member] == FAILED
    return unpack_error(result.values[member] or b"")


def note(what: Any) -> Any:
    SEEN.append(what)
    return what


def fail(what: Any = "boom") -> None:
    SEEN.append(what)
    raise ValueError(what)


def say(text: str, to: str = "stdout") -> None:
    print(text, file=getattr(sys, to))


# -- values and failures ------------------------------------------------------------------


def test_members_run_in_their_order_and_leave_their_values() -> None:
    result = run(call(note, 1), call(note, what=2), call(pow, 2, 10))
    assert SEEN == [1, 2]
    assert [value(result, member) for member in range(3)] == [1, 2, 1024]


def test_an_empty_block_has_an_empty_result() -> None:
    assert statuses(run()) == []


def test_a_failure_is_the_members_own() -> None:
    result = run(call(note, 1), call(fail), call(note, 3))
    assert statuses(result) == [DONE, FAILED, DONE]
    assert repr(error(result, 1)) == "ValueError('boom')"
    assert "in fail" in str(error(result, 1).__cause__)


def test_the_traceback_does_not_show_what_runs_the_block() -> None:
    assert "worker/execution/block_run.py" not in str(error(run(call(fail))).__cause__)


class CannotBeShown(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raise_what_cannot_be_shown() -> None:
    raise CannotBeShown


def raise_with_lock() -> None:
    raise ValueError("boom", threading.Lock())


@pytest.mark.parametrize("raises", [raise_what_cannot_be_shown, raise_with_lock])
def test_an_exception_that_cannot_be_sent_fails_its_member_alone(raises: Any) -> None:
    result = run(call(raises), call(note, 2))
    assert statuses(result) == [FAILED, DONE]
    assert isinstance(error(result), Exception)


async def later(what: Any) -> Any:
    await asyncio.sleep(0)
    return await asyncio.to_thread(note, what)


async def fail_later() -> None:
    await asyncio.sleep(0)
    raise KeyError("later")


def test_coroutine_functions_are_run_to_their_end() -> None:
    result = run(call(later, 5), call(fail_later))
    assert value(result) == 5
    assert repr(error(result, 1)) == "KeyError('later')"


@pytest.mark.parametrize(
    ("code", "exitcode"), [(3, 3), (0, 0), (None, 0), ("a message", 1), (-1, -1)]
)
def test_sys_exit_ends_the_member_alone(code: Any, exitcode: int) -> None:
    result = run(call(sys.exit, code), call(note, 2))
    assert statuses(result) == [FAILED, DONE]
    crashed = error(result)
    assert isinstance(crashed, TaskCrashed)
    assert crashed.exitcode == exitcode
    assert f"task 't' called sys.exit({code!r})" in str(crashed)


def interrupt() -> None:
    raise KeyboardInterrupt


async def exit_later() -> None:
    sys.exit(4)


def test_an_interrupt_and_an_exit_of_a_coroutine_end_the_member_alone() -> None:
    result = run(call(interrupt), call(exit_later), call(note, 3))
    assert statuses(result) == [FAILED, FAILED, DONE]
    interrupted, exited = error(result), error(result, 1)
    assert isinstance(interrupted, TaskCrashed)
    assert interrupted.exitcode == -2
    assert isinstance(exited, TaskCrashed)
    assert exited.exitcode == 4


def test_other_base_exceptions_end_the_member_alone() -> None:
    result = run(call(throw, GeneratorExit("a")), call(throw, asyncio.CancelledError("b")))
    assert [repr(error(result, n)) for n in (0, 1)] == ["GeneratorExit('a')", "CancelledError('b')"]


def throw(error: BaseException) -> None:
    raise error


def test_a_result_that_cannot_be_sent_fails_its_member_alone() -> None:
    result = run(call(threading.Lock), call(note, 2))
    assert statuses(result) == [FAILED, DONE]
    assert isinstance(error(result), SerializationError)
    assert "task 't'" in str(error(result))
    assert "lock" in str(error(result))


class FailsToLoad:
    def __reduce__(self) -> Any:
        return fail, ("it cannot be loaded",)


MISSING = b"cno_such_module\nfunction\n."


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((MISSING, call(note, 1)[1]), ["function", "no_such_module"]),
        ((b"nonsense", call(note, 1)[1]), ["function"]),
        (call(note, FailsToLoad()), ["arguments", "ValueError: it cannot be loaded"]),
        ((pickling.dumps(note), b"nonsense"), ["arguments"]),
    ],
    ids=["function", "no function", "argument", "no arguments"],
)
def test_what_cannot_be_loaded_fails_its_member_alone(wrong: Any, words: list[str]) -> None:
    result = run(call(note, 0), wrong, call(note, 2))
    assert statuses(result) == [DONE, FAILED, DONE]
    assert isinstance(error(result, 1), SerializationError)
    for word in ["task 't'", *words]:
        assert word in str(error(result, 1))


def test_messages_name_the_member() -> None:
    result = run(call(sys.exit, 1), call(sys.exit, 2), labels=["first", "second"])
    assert "'first'" in str(error(result, 0))
    assert "'second'" in str(error(result, 1))


def test_an_executable_that_fails_is_named() -> None:
    command = {"command": ["sh", "-c", "echo no >&2; exit 3"], "cwd": os.getcwd(), "env": {}}
    execute = call(executable.execute, **command, stdin=None, check=True, timeout=None)
    failed = error(run(execute, labels=["copy"]))
    assert isinstance(failed, ProcessFailed)
    assert (failed.returncode, failed.stderr) == (3, "no")
    assert "'copy'" in str(failed)


# -- output -------------------------------------------------------------------------------


def test_what_a_member_writes_is_kept_for_it() -> None:
    result = run(call(say, "one"), call(note, 1), call(say, "two", to="stderr"), call(say, ""))
    assert dict(result.outputs) == {0: ("one", ""), 2: ("", "two"), 3: ("", "")}


def test_what_a_failed_member_wrote_is_kept() -> None:
    def both() -> None:
        print("before")
        raise ValueError

    assert run(call(both)).outputs[0] == ("before", "")


def test_the_output_is_limited_per_member() -> None:
    outputs = run(call(say, "x" * 900), call(say, "y" * 900), output_limit=1000).outputs
    assert outputs[0][0] == "x" * 900
    assert "dropped" in run(call(say, "x" * 2000), output_limit=1000).outputs[0][0]


# -- needs, and what only has to be over --------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_a_member_runs_if_what_it_needs_is_done_and_what_it_follows_is_over(status: Status) -> None:
    given = BlockResult(bytes([status]), [pickling.dumps(0)])
    links = {0: Link(needs=((0, 0),)), 1: Link(after=((0, 0),))}
    found = statuses(run(call(note, "a"), call(note, "b"), links=links, inputs=[given]))
    if status == DEFERRED:
        assert (found, SEEN) == ([DEFERRED, DEFERRED], [])
    elif status == DONE:
        assert (found, SEEN) == ([DONE, DONE], ["a", "b"])
    else:
        assert (found, SEEN) == ([SKIPPED, DONE], ["b"])


def test_the_same_holds_within_a_block() -> None:
    needing = {number: Link(needs=((LOCAL, number - 1),)) for number in (1, 2)}
    following = {number: Link(after=((LOCAL, number - 3),)) for number in (3, 4, 5)}
    notes = [call(note, number) for number in range(1, 6)]
    links = {**needing, **following}
    assert (
        statuses(run(call(fail, 0), *notes, links=links)) == [FAILED, SKIPPED, SKIPPED] + [DONE] * 3
    )
    assert SEEN == [0, 3, 4, 5]


def test_what_was_revoked_is_over_and_has_not_succeeded() -> None:
    links = {1: Link(needs=((LOCAL, 0),)), 2: Link(after=((LOCAL, 0),))}
    for status, expected in [(CANCELLED, [SKIPPED, DONE]), (DEFERRED, [DEFERRED, DEFERRED])]:
        block = BlockRun(spec(*[call(note, number) for number in range(3)], links=links), [])
        assert block.revoke([0], status) == []
        assert statuses(block()) == [status, *expected]
    assert SEEN == [2]


def test_what_was_deferred_comes_before_what_failed() -> None:
    given = BlockResult(bytes([FAILED, DEFERRED, DONE]), [b"", None, b""])
    links = {0: Link(needs=((0, 0), (0, 1), (0, 2))), 1: Link(needs=((0, 0),), after=((0, 1),))}
    assert (
        statuses(run(call(note, 1), call(note, 2), links=links, inputs=[given])) == [DEFERRED] * 2
    )


def test_a_barrier_passes_on_what_became_of_what_it_needs() -> None:
    links = {
        1: Link(needs=((LOCAL, 0),)),
        2: Link(after=((LOCAL, 0),)),
        3: Link(needs=((LOCAL, 1),)),
        4: Link(needs=((LOCAL, 2),)),
        5: Link(after=((LOCAL, 1),)),
    }
    notes = [call(note, number) for number in (3, 4, 5)]
    result = run(call(fail), BARRIER, BARRIER, *notes, links=links)
    assert statuses(result) == [FAILED, SKIPPED, DONE, SKIPPED, DONE, DONE]


# -- slots --------------------------------------------------------------------------------


def append(values: list[int], more: int) -> list[int]:
    values.append(more)
    return values


def test_slots_are_filled_with_fresh_copies_from_the_block_and_from_inputs() -> None:
    given = BlockResult(bytes([DONE]), [pickling.dumps([0])])
    from_input, from_block = BlockMember((0, 0), "result"), BlockMember((LOCAL, 0), "result")
    links = {
        number: Link(needs=(part.source,), values=(part,))
        for number, part in enumerate([from_input, from_input, from_block, from_block])
    }
    calls = [call(append, TaskPlaceholder(), number) for number in range(4)]
    result = run(*calls, links=links, inputs=[given])
    assert [value(result, n) for n in range(4)] == [[0, 0], [0, 1], [0, 0, 2], [0, 0, 3]]


def test_slots_take_values_texts_and_outputs() -> None:
    given = BlockResult(bytes([DONE, DONE]), [b"", b""], {0: ("out", "err")})
    values = (
        pickling.dumps({"a": 1}),
        "a text",
        BlockMember((0, 0), "stdout"),
        BlockMember((0, 0), "stderr"),
        BlockMember((0, 1), "stdout"),
        BlockMember((LOCAL, 0), "stdout"),
    )
    calls = [call(say, "said"), call(note, [TaskPlaceholder() for _ in values])]
    result = run(*calls, links={1: Link(values=values)}, inputs=[given])
    assert value(result, 1) == [{"a": 1}, "a text", "out", "err", "", "said"]


def test_buffers_come_from_inputs_and_can_be_written_to() -> None:
    array = np.zeros(pickling.MIN_SHARED_BUFFER_BYTES)
    data, _, (buffer,) = pickling.pack(((array,), {}))
    fill = pickling.dumps(fill_and_sum)
    link = Link(buffers=(1,))
    result = run(
        (fill, data),
        (fill, data),
        links={0: link, 1: link},
        inputs=[BlockResult(b""), buffer.content],
    )
    assert value(result, 0) == value(result, 1) == array.size


def fill_and_sum(array: Any) -> float:
    array += 1
    return float(array.sum())


# -- retries and timeouts -----------------------------------------------------------------


def succeed_at(attempt: int, values: list[int]) -> list[int]:
    print("attempt", len(SEEN) + 1)
    values.append(note(1))
    if len(SEEN) < attempt:
        raise ValueError(f"attempt {len(SEEN)}")
    return values


@pytest.mark.parametrize(("retries", "status"), [(0, FAILED), (1, FAILED), (2, DONE), (5, DONE)])
def test_a_member_is_tried_again_as_often_as_was_asked(retries: int, status: Status) -> None:
    result = run(call(succeed_at, 3, [7]), limits={0: Limits(retries=retries)})
    assert statuses(result) == [status]
    assert len(SEEN) == min(3, retries + 1)
    if status == DONE:
        assert value(result) == [7, 1]
    # Only the last attempt counts.
    assert result.outputs[0] == (f"attempt {len(SEEN)}", "")


def exit_then_return_a_lock() -> Any:
    if len(SEEN) == 0:
        sys.exit(note(1))
    return threading.Lock() if note(len(SEEN)) == 1 else "third"


def test_an_exit_and_a_result_that_cannot_be_sent_are_tried_again_too() -> None:
    assert value(run(call(exit_then_return_a_lock), limits={0: Limits(retries=2)})) == "third"


def test_a_member_that_was_skipped_is_not_tried_again() -> None:
    links = {1: Link(needs=((LOCAL, 0),))}
    run(call(fail, 1), call(note, 2), links=links, limits={1: Limits(retries=3)})
    assert SEEN == [1]


def test_a_member_that_ran_for_too_long_has_failed() -> None:
    def work() -> None:
        threading.Event().wait(0.01)

    late = error(run(call(work), limits={0: Limits(timeout=0.001)}, labels=["slow"]))
    assert isinstance(late, TaskTimeout)
    assert "'slow'" in str(late)
    assert "0.001 s" in str(late)
    assert value(run(call(note, 1), limits={0: Limits(timeout=60.0)})) == 1

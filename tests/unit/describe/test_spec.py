"""Options and calls are validated when they are described, not when they run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskbatch.describe.spec import (
    DEFAULT_OPTIONS,
    Call,
    function_call,
    make_options,
    positive_seconds,
    process_call,
)
from daskbatch.errors import ProcessFailed, SerializationError, SpecError
from daskbatch.serialization import pickling
from daskbatch.worker.execution.capture import capturing


class TaskPlaceholder:
    """Stands for a task among the arguments."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return pickling.reference((self.name, "result"))


def refusal(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SpecError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def run(call: Call, *values: Any) -> Any:
    """Run a call as a worker does."""
    buffers = [buffer.content for buffer in call.buffers]
    filled = [pickling.dumps(value) for value in values]
    args, kwargs = pickling.unpack(call.data, filled, buffers)
    return call.function(*args, **kwargs)


# -- options ------------------------------------------------------------------------------


def test_nothing_asked_for_is_the_default() -> None:
    assert make_options() == DEFAULT_OPTIONS
    assert (DEFAULT_OPTIONS.timeout, DEFAULT_OPTIONS.retries, DEFAULT_OPTIONS.priority) == (
        None,
        0,
        0,
    )
    assert (DEFAULT_OPTIONS.resources, DEFAULT_OPTIONS.workers) == ((), ())


def test_options_keep_what_was_asked_for() -> None:
    options = make_options(
        timeout=3, retries=2, resources={"GPU": 1}, workers=["a", "tcp://b:1"], priority=5
    )
    assert (options.timeout, options.retries, options.priority) == (3.0, 2, 5.0)
    assert (options.resources, options.workers) == ((("GPU", 1.0),), ("a", "tcp://b:1"))


def test_options_that_say_the_same_are_equal() -> None:
    one = make_options(resources={"A": 1, "B": 2.0}, workers="host", timeout=60)
    other = make_options(resources={"B": 2, "A": 1}, workers=["host"], timeout=timedelta(minutes=1))
    assert one == other
    assert hash(one) == hash(other)


def test_placement_differs_where_tasks_cannot_share_a_dask_key() -> None:
    keys = [
        make_options(resources={"GPU": 1}).placement_key,
        make_options(resources={"GPU": 2}).placement_key,
        make_options(workers="a").placement_key,
        make_options(priority=1).placement_key,
        DEFAULT_OPTIONS.placement_key,
    ]
    assert len(set(keys)) == len(keys)
    assert make_options(retries=3).placement_key == DEFAULT_OPTIONS.placement_key
    assert make_options(isolation="process").placement_key != DEFAULT_OPTIONS.placement_key


@pytest.mark.parametrize(
    ("options", "isolated"),
    [
        ({}, False),
        ({"timeout": 1}, True),
        ({"cwd": "/"}, True),
        ({"env": {"A": "b"}}, True),
        ({"timeout": 1, "isolation": "thread"}, False),
        ({"isolation": "process"}, True),
    ],
)
def test_functions_that_must_be_killed_or_have_their_own_are_isolated(
    options: dict[str, Any], isolated: bool
) -> None:
    assert make_options(**options).isolated is isolated


def test_a_thread_has_no_directory_and_no_environment_of_its_own() -> None:
    for options in ({"cwd": "/"}, {"env": {"A": "b"}}):
        with pytest.raises(SpecError, match='cwd= and env= need isolation="process"'):
            make_options(isolation="thread", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (5, 5.0),
        (0.25, 0.25),
        (timedelta(minutes=2, milliseconds=500), 120.5),
        (timedelta(days=1), 86400.0),
        (Fraction(1, 2), 0.5),
        (np.float64(1.5), 1.5),
        (float("inf"), float("inf")),
    ],
)
def test_a_span_is_seconds_or_a_timedelta(given: Any, meant: float) -> None:
    assert make_options(timeout=given).timeout == meant
    assert type(positive_seconds(given, "timeout=")) is float


@pytest.mark.parametrize(
    "wrong", [0, -1, "5", True, float("nan"), timedelta(0), timedelta(seconds=-1), [1]]
)
def test_a_span_that_is_none_is_refused(wrong: Any) -> None:
    text = refusal(make_options, timeout=wrong)
    assert text.startswith("timeout= must be a positive number of seconds or timedelta, not ")


@pytest.mark.parametrize("wrong", [-1, 1.5, "2", None])
def test_retries_is_a_whole_number(wrong: Any) -> None:
    text = refusal(make_options, retries=wrong)
    assert text == f"retries= must be a whole number from 0, not {wrong!r}"


@pytest.mark.parametrize("wrong", ["high", None, [1], float("nan")])
def test_priority_is_a_number(wrong: Any) -> None:
    assert refusal(make_options, priority=wrong) == f"priority= must be a number, not {wrong!r}"


@pytest.mark.parametrize("wrong", [["GPU"], "GPU", 1])
def test_resources_is_a_dict(wrong: Any) -> None:
    text = refusal(make_options, resources=wrong)
    assert text == f'resources= must be a dict such as {{"GPU": 1}}, not {wrong!r}'


@pytest.mark.parametrize(
    "wrong", [{"GPU": 0}, {"GPU": -1}, {"GPU": "1"}, {1: 1}, {"A": 1, "B": None}, {"A": np.nan}]
)
def test_resources_are_positive_numbers_by_name(wrong: Any) -> None:
    text = refusal(make_options, resources=wrong)
    assert text.startswith('resources= must be a dict such as {"GPU": 1}; ')
    assert text.endswith(" is wrong")


@pytest.mark.parametrize("wrong", [[1], ["a", None], [b"a"], 5])
def test_workers_are_texts(wrong: Any) -> None:
    text = refusal(make_options, workers=wrong)
    assert text.startswith("workers= must be addresses or host names, not ")


@pytest.mark.parametrize("wrong", ["fork", "", 1])
def test_isolation_is_one_of_those_known(wrong: Any) -> None:
    text = refusal(make_options, isolation=wrong)
    assert text.startswith("isolation= must be ")
    assert text.endswith(f"not {wrong!r}")


# -- functions ----------------------------------------------------------------------------


def scale(value: int, factor: int = 1, *, offset: int = 0) -> int:
    return factor * value + offset


class Machine:
    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def scaled(self, value: int, **more: int) -> int:
        return scale(value, self.factor, **more)

    def __call__(self, value: int) -> int:
        return scale(value, self.factor)

    @classmethod
    def make(cls, factor: int) -> Machine:
        return cls(factor)


def test_a_function_is_called_with_its_arguments() -> None:
    call = function_call(scale, (3, 2), {"offset": 1})
    assert call.function is scale
    assert run(call) == 7
    assert (call.references, call.buffers, call.failure) == ((), (), None)


def test_arguments_are_taken_as_they_are_now() -> None:
    values = [1, 2]
    call = function_call(lambda values: sum(values), (values,), {})
    values.append(10)
    assert run(call) == 3


@pytest.mark.parametrize(
    ("function", "args", "result"),
    [
        pytest.param(len, ("four",), 4, id="builtin"),
        pytest.param(dict, ([("a", 1)],), {"a": 1}, id="type"),
        pytest.param(partial(scale, factor=5), (2,), 10, id="partial"),
        pytest.param(Machine(3).scaled, (2,), 6, id="method"),
        pytest.param(Machine(4), (2,), 8, id="object"),
        pytest.param(np.add, (1, 2), 3, id="ufunc"),
        pytest.param("a-b".split, ("-",), ["a", "b"], id="method of a builtin"),
        pytest.param(lambda x: -x, (2,), -2, id="lambda"),
    ],
)
def test_whatever_can_be_called_can_be_a_function(function: Any, args: Any, result: Any) -> None:
    assert run(function_call(function, args, {})) == result


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "found"),
    [
        pytest.param(
            scale, (TaskPlaceholder("a"),), {"factor": TaskPlaceholder("b")}, "ab", id="function"
        ),
        pytest.param(
            partial(scale, TaskPlaceholder("a")), (TaskPlaceholder("b"),), {}, "ab", id="partial"
        ),
        pytest.param(
            partial(scale, factor=TaskPlaceholder("a")),
            (TaskPlaceholder("b"),),
            {},
            "ab",
            id="keyword",
        ),
        pytest.param(
            Machine(TaskPlaceholder("a")).scaled, (TaskPlaceholder("b"),), {}, "ab", id="method"
        ),
        pytest.param(Machine(TaskPlaceholder("a")), (TaskPlaceholder("b"),), {}, "ab", id="object"),
        pytest.param(
            partial(Machine(TaskPlaceholder("a")).scaled, TaskPlaceholder("b")),
            (),
            {},
            "ab",
            id="both",
        ),
    ],
)
def test_tasks_are_found_in_the_arguments_and_in_what_is_called(
    function: Any, args: Any, kwargs: Any, found: str
) -> None:
    call = function_call(function, args, kwargs)
    assert call.failure is None
    assert call.references == tuple((name, "result") for name in found)
    assert run(call, 6, 7) == 42


def test_calls_that_can_be_expected_to_be_alike_are_of_one_family() -> None:
    def family(function: Any) -> Any:
        return function_call(function, (1,), {}).family

    assert family(scale) == family(scale)
    assert family(partial(scale, factor=2)) == family(partial(scale, factor=3))
    assert family(Machine(1).scaled) == family(Machine(2).scaled)
    assert family(Machine(1)) == family(Machine(2))
    functions = [scale, len, dict, Machine(1), Machine(1).scaled, lambda x: x, lambda x: -x]
    assert len({family(each) for each in functions}) == len(functions)


def test_a_family_can_be_told_of_everything_callable() -> None:
    for function in (partial(partial(scale), 1), Machine.make, np.add, "".join, max):
        hash(function_call(function, (1,), {}).family)


@pytest.mark.parametrize("wrong", [3, "ls", None, [scale]])
def test_what_cannot_be_called_is_refused(wrong: Any) -> None:
    text = refusal(function_call, wrong, (), {})
    assert text.startswith(f"cannot call {wrong!r}: give a function first")
    assert "batch.process(" in text


def test_an_argument_that_cannot_be_sent_fails_the_task_alone() -> None:
    for function in (scale, partial(scale)):
        call = function_call(function, (threading.Lock(),), {})
        assert isinstance(call.failure, SerializationError)
        assert "lock" in str(call.failure)


def test_a_large_argument_is_shared_by_the_calls_that_are_given_it() -> None:
    array = np.arange(pickling.MIN_SHARED_BUFFER_BYTES)
    calls = [function_call(np.sum, (array,), {}) for _ in range(2)]
    assert calls[0].buffers == calls[1].buffers
    assert len(calls[0].data) < 1000
    assert run(calls[0]) == array.sum()


# -- executables --------------------------------------------------------------------------


def process(target: Any, args: Sequence[Any] = (), **changes: Any) -> Call:
    given = {"cwd": "/", "env": None, "stdin": None, "check": True, "timeout": None, **changes}
    return process_call(target, args, **given)


@pytest.mark.parametrize("target", ["echo", Path("echo")])
def test_an_executable_is_run_with_its_arguments_as_text(target: Any) -> None:
    with capturing(1000) as capture:
        assert run(process(target, ["a b", 3, Path("x/y"), 1.5])) == 0
    assert capture.texts() == ("a b 3 x/y 1.5", "")


def test_an_executable_is_run_as_it_was_asked_for(tmp_path: Path) -> None:
    call = process(
        sys.executable,
        ["-c", "import os, sys; print(os.getcwd(), os.environ['X'], sys.stdin.read())"],
        cwd=str(tmp_path),
        env={"X": "y"},
        stdin="text",
        timeout=60.0,
    )
    with capturing(1000) as capture:
        assert run(call) == 0
    assert capture.texts()[0] == f"{tmp_path} y text"


def test_check_decides_whether_an_exit_code_is_an_error() -> None:
    assert run(process("false", check=False)) == 1
    with pytest.raises(ProcessFailed):
        run(process("false"))


def test_tasks_are_found_among_the_arguments_and_as_input() -> None:
    call = process("cat", ["-", TaskPlaceholder("a")], stdin=TaskPlaceholder("b"))
    assert sorted(call.references) == [("a", "result"), ("b", "result")]


def test_runs_of_one_executable_are_of_one_family() -> None:
    assert process("echo", ["a"]).family == process(Path("echo"), ["b"]).family
    assert process("echo").family != process("cat").family


@pytest.mark.parametrize("wrong", ["", 3, None, ["ls", "-l"], scale])
def test_what_is_no_executable_is_refused(wrong: Any) -> None:
    text = refusal(process, wrong)
    assert text.startswith(f"cannot run {wrong!r}: give an executable as str or Path")
    assert "batch.function(" in text


@pytest.mark.parametrize(
    "wrong",
    [{"A": 1}, {1: "a"}, {"A": None}, {"A": b"a"}, {"A": "a\0b"}, {"A": "\ud800"}],
)
def test_the_environment_is_texts_by_name(wrong: Any) -> None:
    ((name, value),) = wrong.items()
    text = refusal(process, "ls", env=wrong)
    assert text == f"env= must map str to str; {name!r}: {value!r} is wrong"


@pytest.mark.parametrize("name", ["", "A=B", "=", "A\0", "\ud800"])
def test_the_name_of_a_variable_is_one(name: str) -> None:
    said = f"env= holds {name!r}, which cannot be the name of a variable"
    assert refusal(process, "ls", env={"A": "a", name: "b"}) == said
    assert refusal(make_options, env={name: "b"}) == said


def test_bytes_that_are_no_text_go_into_the_environment_as_they_are() -> None:
    name = os.fsdecode(b"N\xff")
    code = "import os, sys; sys.stdout.buffer.write(os.environb[b'N\\xff'].hex().encode())"
    with capturing(1000) as capture:
        assert run(process(sys.executable, ["-c", code], env={name: os.fsdecode(b"\xfe")})) == 0
    assert capture.texts()[0] == "fe"


@pytest.mark.parametrize("wrong", [["A"], "A=b", 5])
def test_the_environment_is_a_mapping(wrong: Any) -> None:
    assert "env= must" in refusal(process, "ls", env=wrong)


@pytest.mark.parametrize("wrong", [5, ["text"], {}])
def test_the_input_is_text_bytes_or_a_path(wrong: Any) -> None:
    assert "stdin= must" in refusal(process, "cat", stdin=wrong)


def test_an_argument_of_an_executable_that_cannot_be_sent_fails_the_task_alone() -> None:
    call = process("echo", [threading.Lock()])
    assert isinstance(call.failure, SerializationError)

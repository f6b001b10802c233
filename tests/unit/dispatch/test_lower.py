"""Checks the Dask graphs that blocks are lowered to, and what travels along their edges."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import dask
import numpy as np
import pytest
from dask.highlevelgraph import HighLevelGraph
from dask.order import order
from dask.task_spec import DataNode
from dask.utils import key_split

from daskbatch.describe.access import Channel, Mode, make_access
from daskbatch.describe.spec import DEFAULT_OPTIONS, Options, function_call, make_options
from daskbatch.dispatch.edges import set_waits
from daskbatch.dispatch.key_names import NAMES
from daskbatch.dispatch.lower import SECONDS, TOPIC, Lowered, Setting, lower
from daskbatch.dispatch.task_record import Phase, SubmittedBlock, TaskRecord
from daskbatch.plan.program import build_graph
from daskbatch.serialization import pickling
from daskbatch.worker.entry import run_block
from daskbatch.worker.execution.outcome import BlockResult, Status

LARGE = "x" * 100_000


class Ref:
    """Refers to a record's result among arguments, as a task's handle does."""

    def __init__(self, record: TaskRecord, part: str = "result") -> None:
        self.target = record, part

    def __reduce__(self) -> Any:
        return pickling.reference(self.target)


class Program:
    """Tasks in the order of a sequential program, each in a block of its own."""

    def __init__(self) -> None:
        self.records: list[TaskRecord] = []

    def add(
        self,
        function: Callable[..., Any],
        *args: Any,
        reads: str = "",
        writes: str = "",
        options: Options = DEFAULT_OPTIONS,
    ) -> TaskRecord:
        call = function_call(function, args, {})
        record = TaskRecord("client", len(self.records), function.__name__, call, options)
        record.reads, record.writes = channels(Mode.READ, reads), channels(Mode.WRITE, writes)
        self.records.append(record)
        return record

    def lower(
        self,
        *sharing: Sequence[TaskRecord],
        name: str | None = None,
        nonce: str = "0123abcd",
        small: bool = False,
        known: Sequence[str] = (),
        entry: Callable[..., Any] = run_block,
    ) -> Lowered:
        """Lower the program; `sharing` are the tasks that share a block."""
        for each in self.records:
            each.base_name = name or each.base_name
        records = set_waits(build_graph(self.records), self.records, "client")
        for each in records:
            if each.call is not None and each.phase == Phase.CREATED:
                each.function = pickling.dumps(each.call.function)
        shared: list[list[TaskRecord]] = []
        for record in records:
            if record.over:
                continue
            members = next((some for some in sharing if record in some), [record])
            if record is members[0]:
                shared.append(list(members))
        blocks = [SubmittedBlock(number, block) for number, block in enumerate(shared)]
        for block in blocks:
            block.small = small
        setting = Setting("topic", entry, 60.0, 1 << 20, 1 << 16, 1 << 20)
        return lower(blocks, nonce, setting, dict.fromkeys(known))


def channels(mode: Mode, names: str) -> tuple[Channel, ...]:
    return make_access(mode, "/data", names.split(), "/").channels if names else ()


def make_large() -> str:
    return LARGE


def follow(*values: Any) -> int:
    return sum(map(len, values))


def fail() -> None:
    raise ValueError("as asked for")


def inputs_of(lowered: Lowered, record: TaskRecord) -> frozenset[Any]:
    """Return the keys that the key of a task's block depends on."""
    assert record.block is not None
    return frozenset(dict(lowered.graph)[record.block.key].dependencies)


def key_of(record: TaskRecord) -> Any:
    assert record.block is not None
    return record.block.key


def options_of(lowered: Lowered, key: Any) -> dict[str, Any]:
    """Return the annotations of a key, without those that all keys have."""
    annotations = dict(layer_of(lowered, key).annotations)
    del annotations[NAMES], annotations[SECONDS]
    return annotations


def layer_of(lowered: Lowered, key: Any) -> Any:
    (found,) = (layer for layer in lowered.graph.layers.values() if key in layer)
    return found


def results(lowered: Lowered, *records: TaskRecord) -> list[Any]:
    """Run the graph in this process; return the tasks' values, or their statuses."""
    found = dask.get(lowered.graph, [key_of(record) for record in records])
    values = []
    for record, result in zip(records, found, strict=True):
        done = result.statuses[record.member] == Status.DONE
        values.append(pickling.loads(result.values[record.member]) if done else result.statuses)
    return values


# -- edges --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({"writes": "a"}, {"reads": "a"}, id="read after write"),
        pytest.param({"reads": "a"}, {"writes": "a"}, id="write after read"),
        pytest.param({"writes": "a"}, {"writes": "a"}, id="write after write"),
    ],
)
def test_an_edge_for_the_order_alone_carries_no_value(
    before: dict[str, str], after: dict[str, str]
) -> None:
    program = Program()
    first = program.add(make_large, **before)
    second = program.add(follow, **after)
    received: dict[int, tuple[Any, ...]] = {}

    def entry(payload: bytes, *inputs: Any) -> BlockResult:
        received[pickling.loads(payload).block] = inputs
        return run_block(payload, *inputs)

    lowered = program.lower(entry=entry)
    (between,) = inputs_of(lowered, second)
    assert between != key_of(first)
    assert dict(lowered.graph)[between].dependencies == {key_of(first)}
    assert results(lowered, first, second) == [LARGE, 0]
    (token,) = received[second.block.number]
    assert len(pickling.dumps(token)) < 1000 < sys.getsizeof(LARGE)


def test_an_edge_for_the_order_alone_still_tells_how_the_other_ended() -> None:
    program = Program()
    program.add(fail, reads="b", writes="a")
    reader = program.add(follow, reads="a")
    overwriter = program.add(follow, writes="b")
    lowered = program.lower()
    assert results(lowered, reader, overwriter) == [bytes([Status.SKIPPED]), 0]


def test_an_argument_hangs_on_the_value() -> None:
    program = Program()
    first = program.add(make_large)
    second = program.add(follow, Ref(first))
    lowered = program.lower()
    assert inputs_of(lowered, second) == {key_of(first)}
    assert len(lowered.graph) == 2
    assert results(lowered, second) == [len(LARGE)]


def test_an_argument_and_an_order_are_one_edge() -> None:
    program = Program()
    first = program.add(make_large, writes="a")
    second = program.add(follow, Ref(first), reads="a", writes="a")
    lowered = program.lower()
    assert inputs_of(lowered, second) == {key_of(first)}
    assert results(lowered, second) == [len(LARGE)]


def test_all_that_come_after_a_task_share_what_tells_them() -> None:
    program = Program()
    first = program.add(make_large, writes="a")
    readers = [program.add(follow, reads="a") for _ in range(5)]
    taker = program.add(follow, Ref(first))
    lowered = program.lower()
    assert len({inputs_of(lowered, reader) for reader in readers}) == 1
    assert inputs_of(lowered, taker) == {key_of(first)}
    assert len(lowered.graph) == 8, "seven blocks, and one key between"


def test_a_value_known_to_be_small_needs_no_key_between() -> None:
    program = Program()
    first = program.add(follow, writes="a")
    second = program.add(follow, reads="a")
    lowered = program.lower(small=True)
    assert inputs_of(lowered, second) == {key_of(first)}
    assert results(lowered, second) == [0]


def test_within_a_block_there_are_no_edges() -> None:
    program = Program()
    first = program.add(make_large, writes="a")
    second = program.add(follow, Ref(first), reads="a")
    lowered = program.lower([first, second])
    assert list(lowered.blocks) == list(dict(lowered.graph)) == [key_of(first)]
    assert inputs_of(lowered, second) == frozenset()
    assert results(lowered, first, second) == [LARGE, len(LARGE)]


def test_a_value_that_the_client_has_comes_from_the_client() -> None:
    program = Program()
    early = program.add(make_large)
    early.phase, early.value = Phase.DONE, pickling.dumps("early")
    taker = program.add(follow, Ref(early), Ref(early, "stdout"))
    lowered = program.lower()
    assert inputs_of(lowered, taker) == frozenset()
    assert results(lowered, taker) == [5]


def test_a_large_argument_is_in_the_graph_once() -> None:
    array = np.arange(1_000_000.0)
    program = Program()
    takers = [program.add(follow, array) for _ in range(5)]
    lowered = program.lower()
    (key,) = lowered.buffers
    assert isinstance(dict(lowered.graph)[key], DataNode)
    assert {inputs_of(lowered, taker) for taker in takers} == {frozenset([key])}
    assert results(lowered, *takers) == [len(array)] * 5
    again = program.lower(known=[key])
    assert not again.buffers
    assert key not in again.graph.to_dict(), "it is on the cluster already"
    assert inputs_of(again, takers[0]) == {key}


def test_a_large_function_is_shared_like_a_buffer() -> None:
    def make() -> Callable[[int], int]:
        large = LARGE
        return lambda number: len(large) + number

    program = Program()
    function = make()
    one, two = program.add(function, 1), program.add(function, 2)
    after = program.add(follow, Ref(program.add(make_large)), writes="a")
    both = program.add(function, Ref(program.add(abs, -3)), reads="a")
    lowered = program.lower()
    (key,) = lowered.buffers
    for record in (one, two, both):
        assert key in inputs_of(lowered, record)
    assert key not in inputs_of(lowered, after)
    size = len(LARGE)
    assert results(lowered, one, two, both) == [size + 1, size + 2, size + 3]


# -- keys ---------------------------------------------------------------------------------


def some_program() -> Program:
    program = Program()
    first = program.add(make_large, writes="a")
    program.add(follow, reads="a", writes="b")
    program.add(follow, Ref(first), reads="b", options=make_options(priority=2))
    return program


def test_keys_of_two_submissions_differ() -> None:
    one = some_program().lower(nonce="00000001")
    other = some_program().lower(nonce="00000002")
    assert len(one.graph.to_dict()) == len(other.graph.to_dict()) == 5
    assert not set(one.graph.to_dict()) & set(other.graph.to_dict())
    assert not set(one.graph.layers) & set(other.graph.layers)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("monthly_report", "monthly_report"),
        ("v1.2", "v1.2"),
        ("two words", "two_words"),
        ("a-b", "a_b"),
        ("2nd", "task_2nd"),
        ("größe", "gr_e"),
        ("('x', 0)", "task__x_0_"),
        ("n" * 200, "n" * 60),
    ],
)
def test_dask_calls_the_keys_what_the_user_called_the_tasks(name: str, shown: str) -> None:
    lowered = some_program().lower(name=name)
    assert {key_split(key) for key in lowered.blocks} == {shown}
    assert all(block.name == shown for block in lowered.blocks.values())


def test_what_is_between_tasks_is_not_called_like_them() -> None:
    lowered = some_program().lower(name="report")
    between = set(lowered.graph.to_dict()) - set(lowered.blocks)
    assert len(between) == 2
    assert {key_split(key) for key in between} == {"daskbatch_token"}


@pytest.mark.parametrize("count", [9, 10, 11, 101])
def test_what_comes_first_in_the_program_comes_first(count: int) -> None:
    program = Program()
    for _ in range(count):
        program.add(follow)
    lowered = program.lower()
    ranks = order(lowered.graph.to_dict())
    assert sorted(program.records, key=lambda record: ranks[key_of(record)]) == program.records


# -- annotations and layers ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "annotations"),
    [
        (make_options(), {}),
        (make_options(resources={"GPU": 1}), {"resources": {"GPU": 1.0}}),
        (make_options(workers="here"), {"workers": ["here"]}),
        (make_options(workers=["tcp://a:1", "b"]), {"workers": ["tcp://a:1", "b"]}),
        (make_options(priority=-3), {"priority": -3.0}),
        (
            make_options(resources={"GPU": 2}, workers="b", priority=1),
            {"resources": {"GPU": 2.0}, "workers": ["b"], "priority": 1.0},
        ),
    ],
)
def test_options_are_annotations(options: Options, annotations: dict[str, Any]) -> None:
    program = Program()
    task = program.add(follow, options=options)
    lowered = program.lower()
    assert options_of(lowered, key_of(task)) == {TOPIC: "topic", **annotations}
    assert layer_of(lowered, key_of(task)).annotations[NAMES](key_of(task)) == (("follow", 1),)
    assert layer_of(lowered, key_of(task)).annotations[SECONDS](key_of(task)) == 0.0


def test_retries_are_for_the_task_and_not_for_its_key() -> None:
    # Otherwise Dask would run all tasks that share the key again.
    tries: list[int] = []

    def third_time_lucky() -> int:
        tries.append(len(tries))
        if len(tries) < 3:
            raise ValueError("again")
        return len(tries)

    program = Program()
    task = program.add(third_time_lucky, options=make_options(retries=2))
    lowered = program.lower()
    assert "retries" not in (layer_of(lowered, key_of(task)).annotations or {})
    assert results(lowered, task) == [3]


def test_what_only_tells_that_a_task_is_over_may_run_anywhere() -> None:
    program = Program()
    program.add(make_large, writes="a", options=make_options(resources={"GPU": 1}))
    second = program.add(follow, reads="a", options=make_options(resources={"GPU": 1}))
    lowered = program.lower()
    (between,) = inputs_of(lowered, second)
    assert options_of(lowered, between) == {TOPIC: "topic"}
    assert layer_of(lowered, between).annotations[NAMES](between) == ()


def test_a_submission_is_one_graph_whose_layers_know_of_each_other() -> None:
    program = Program()
    array = np.zeros(1_000_000)
    wishes = [make_options(), make_options(priority=1), make_options(workers="b")]
    for number in range(30):
        options = wishes[number % 3]
        program.add(follow, array, reads=f"f{number - 1}", writes=f"f{number}", options=options)
    lowered = program.lower()
    assert isinstance(lowered.graph, HighLevelGraph)
    lowered.graph.validate()
    assert len(lowered.graph.layers) == 3, "one for each kind of wish"
    keys = [key for layer in lowered.graph.layers.values() for key in layer]
    assert len(keys) == len(set(keys)) == 30 + 29 + 1, "blocks, what is between, the array"
    assert [block.number for block in lowered.blocks.values()] == list(range(30))
    assert results(lowered, program.records[-1]) == [len(array)]

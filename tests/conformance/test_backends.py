"""Every backend runs what a dispatcher submits, and answers its questions, in the same way."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from distributed import Client, LocalCluster
from support.inprocess import InProcessBackend, make_dispatcher, run_records
from support.waiting import touch, wait_for_file, wait_until

from daskbatch.cluster.dask_backend import ClusterBackend
from daskbatch.describe.spec import function_call
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.task_record import Phase, SubmittedBlock, TaskRecord
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.plugin import run_on_worker

#: Members that have not begun, and members that are being stopped, by their blocks' numbers.
Answer = tuple[Mapping[int, Sequence[int]], Mapping[int, Sequence[int]]]


class Pair(NamedTuple):
    """A backend, and a dispatcher that submits to it and listens to it."""

    dispatcher: Dispatcher
    backend: Any
    #: The blocks that were submitted, with their futures.
    blocks: list[SubmittedBlock]


@contextmanager
def in_process() -> Iterator[Pair]:
    dispatcher, backend = make_dispatcher(slots=2)
    yield Pair(dispatcher, backend, [])
    backend.join()


@contextmanager
def on_a_cluster() -> Iterator[Pair]:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        topic = f"daskbatch-{uuid.uuid4().hex}"
        backend = ClusterBackend(client, topic)
        backend.prepare()
        setting = Setting(topic, run_on_worker, 0.2, 1 << 20, 1 << 16, 1 << 20)
        dispatcher = Dispatcher(backend, setting)
        lost: list[Exception] = []
        assert backend.connect(dispatcher, uuid.uuid4().hex, True, lost.append) == 0
        yield Pair(dispatcher, backend, [])
        backend.disconnect()
        assert lost == []


@pytest.fixture(params=[in_process, on_a_cluster])
def made(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with request.param() as pair:
        submit = pair.backend.submit

        def keep(lowered: Any, again: bool) -> Any:
            buffers = submit(lowered, again)
            assert set(buffers) == set(lowered.buffers)
            pair.blocks.extend(lowered.blocks.values())
            return buffers

        pair.backend.submit = keep
        yield pair


class Ref:
    """Stands for a record's result among arguments, as a task's handle does."""

    def __init__(self, record: TaskRecord) -> None:
        self.record = record

    def __reduce__(self) -> Any:
        return pickling.reference((self.record, "result"))


def record(number: int, function: Callable[..., Any], *args: Any) -> TaskRecord:
    return TaskRecord("client", number, function.__name__, function_call(function, args, {}))


def value_of(record: TaskRecord) -> Any:
    assert record.phase == Phase.DONE
    assert record.value is not None
    return pickling.loads(record.value)


def fail() -> None:
    raise ValueError("on purpose")


def touch_and_wait(begun: Path, gate: Path) -> None:
    begun.touch()
    wait_for_file(gate)


@contextmanager
def held(made: Pair, directory: Path) -> Iterator[tuple[TaskRecord, TaskRecord]]:
    """A task that runs until the end of the with-block, and one that waits for it."""
    begun, gate = directory / "begun", directory / "gate"
    running = record(0, touch_and_wait, begun, gate)
    behind = record(1, touch, directory / "ran")
    behind.waits = ((running, 1),)
    made.dispatcher.submit([running, behind], "held")
    try:
        wait_until(begun.exists)
        yield running, behind
    finally:
        gate.touch()
    assert made.dispatcher.outcomes.wait(lambda: running.over and behind.over, 60)


class Answers:
    """The answers to a question: `then` must be called once."""

    def __init__(self) -> None:
        self.all: list[Answer] = []
        self._first = threading.Event()

    def then(self, not_begun: Any, stopping: Any) -> None:
        self.all.append((not_begun, stopping))
        self._first.set()

    def first(self) -> Answer:
        assert self._first.wait(60)
        return self.all[0]


# -- submitting -------------------------------------------------------------------------------


def test_each_task_is_reported_with_its_value(made: Pair) -> None:
    records = [record(number, pow, number, 2) for number in range(50)]
    run_records(made.dispatcher, records)
    assert [value_of(each) for each in records] == [number**2 for number in range(50)]


def test_values_pass_within_a_submission_and_between_submissions(made: Pair) -> None:
    first = record(0, pow, 2, 3)
    second = record(1, pow, Ref(first), 2)
    second.waits = ((first, 1),)
    run_records(made.dispatcher, [first, second])
    third = record(2, divmod, Ref(second), Ref(first))
    run_records(made.dispatcher, [third])
    assert value_of(third) == (8, 0)


def test_a_large_value_passes_between_submissions(made: Pair) -> None:
    first = record(0, bytes, 3 << 20)
    run_records(made.dispatcher, [first])
    second = record(1, len, Ref(first))
    run_records(made.dispatcher, [second])
    assert value_of(second) == 3 << 20


def test_a_failure_is_reported_and_others_run(made: Pair) -> None:
    failing, other = record(0, fail), record(1, pow, 2, 2)
    run_records(made.dispatcher, [failing, other])
    assert failing.phase == Phase.FAILED
    assert failing.value is not None
    error = unpack_error(failing.value)
    assert isinstance(error, ValueError)
    assert str(error) == "on purpose"
    assert value_of(other) == 4


def test_a_block_has_a_future_until_it_is_over(made: Pair, tmp_path: Path) -> None:
    with held(made, tmp_path):
        assert made.blocks
        assert made.blocks[0].future is not None


# -- revoking ---------------------------------------------------------------------------------


def one_each(candidates: Sequence[Any], *_: Any) -> list[list[int]]:
    """Pack each task into a block of its own."""
    return [[position] for position in range(len(candidates))]


@pytest.mark.parametrize("apart", [False, True], ids=["in one block", "in two blocks"])
def test_a_member_that_has_not_begun_does_not_run(
    made: Pair, tmp_path: Path, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if apart:
        monkeypatch.setattr("daskbatch.dispatch.placer.pack", one_each)
    revoke = made.backend.revoke
    answers = Answers()

    def ask(members: Any, status: Status, then: Any, begun: bool = True) -> None:
        def both(*answer: Any) -> None:
            answers.then(*answer)
            then(*answer)

        revoke(members, status, both, begun)

    made.backend.revoke = ask
    with held(made, tmp_path) as (running, behind):
        block, member = behind.block, behind.member
        made.dispatcher.cancel([behind])
        not_begun, stopping = answers.first()
        assert block is not None
        assert list(not_begun[block.number]) == [member]
        assert not any(stopping.values())
    assert behind.phase == Phase.CANCELLED
    assert running.phase == Phase.DONE
    run_records(made.dispatcher, [record(3, pow, 2, 2)])
    if isinstance(made.backend, InProcessBackend):
        made.backend.join()
    assert not (tmp_path / "ran").exists()
    assert len(answers.all) == 1


def test_a_member_that_has_begun_is_not_said_to_be_revoked(made: Pair, tmp_path: Path) -> None:
    with held(made, tmp_path) as (running, _):
        block, answers = running.block, Answers()
        assert block is not None
        made.backend.revoke(
            {block.number: [running.member]}, Status.DEFERRED, answers.then, begun=False
        )
        not_begun, stopping = answers.first()
        assert running.member not in not_begun.get(block.number, ())
        assert not any(stopping.values())
    assert running.phase == Phase.DONE
    assert len(answers.all) == 1


@pytest.mark.slow
def test_a_question_about_a_block_that_is_over_is_answered_once(made: Pair) -> None:
    done = record(0, pow, 2, 2)
    run_records(made.dispatcher, [done])
    (block,), answers = made.blocks, Answers()
    made.backend.revoke({block.number: [0]}, Status.CANCELLED, answers.then)
    _, stopping = answers.first()
    assert not any(stopping.values())
    assert value_of(done) == 4
    # A cluster that does not answer is given up after five seconds; this one has answered.
    time.sleep(6)
    assert len(answers.all) == 1


# -- the rest ---------------------------------------------------------------------------------


def test_a_backend_that_works_says_that_it_is_alive(made: Pair) -> None:
    assert made.backend.require_alive() is None
    assert made.backend.slots == 2


def test_blocks_can_be_forgotten_and_released(made: Pair) -> None:
    done = record(0, pow, 2, 2)
    run_records(made.dispatcher, [done])
    (block,) = made.blocks
    made.backend.forget([block.number, 10**6])
    made.backend.release(block)
    made.backend.release(block)
    after = record(1, pow, 3, 2)
    run_records(made.dispatcher, [after])
    assert value_of(after) == 9

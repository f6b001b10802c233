"""Runs the dispatcher on a backend in this process: the outcome is the same for all blocks."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.inprocess import InProcessBackend, make_dispatcher, run_records
from support.programs import Step, act, make_root, random_program, run_sequentially, snapshot

from daskbatch.describe.access import Mode, make_access
from daskbatch.describe.spec import function_call
from daskbatch.dispatch.backend import Members, RevokeCallback
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.edges import set_waits
from daskbatch.dispatch.lower import AGAIN, SECONDS, Lowered
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import WorkerLost
from daskbatch.plan.program import build_graph
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.worker.execution.outcome import Status


class Ref:
    """Refers to a record's result among arguments, as a task's handle does."""

    def __init__(self, record: TaskRecord) -> None:
        self.record = record

    def __reduce__(self) -> Any:
        return pickling.reference((self.record, "result"))


def record(number: int, function: Callable[..., Any], *args: Any, name: str = "") -> TaskRecord:
    return TaskRecord(
        "client", number, name or function.__name__, function_call(function, args, {})
    )


def records_of(steps: Sequence[Step], root: Path) -> list[TaskRecord]:
    records: list[TaskRecord] = []
    for step in steps:
        made = record(step.number, act, str(root), step, *(Ref(records[n]) for n in step.arguments))
        made.reads = _channels(Mode.READ, root, step.reads)
        made.writes = _channels(Mode.WRITE, root, step.writes)
        records.append(made)
    return records


def _channels(mode: Mode, root: Path, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(c for name in names for c in make_access(mode, root, [name], "/").channels)


def outcome_of(each: TaskRecord) -> str:
    if each.phase == Phase.DONE:
        assert each.value is not None
        return str(pickling.loads(each.value))
    if each.phase == Phase.CANCELLED:
        return "cancelled"
    if each.root_failure is not None:
        return "skipped"
    assert each.value is not None
    return f"failed: {unpack_error(each.value)}"


def blocks_of(size: int) -> Callable[..., list[list[int]]]:
    """Return a packer that puts `size` tasks into each block, in program order."""

    def pack(candidates: Sequence[Any], *_: Any) -> list[list[int]]:
        return [
            list(range(start, min(start + size, len(candidates))))
            for start in range(0, len(candidates), size)
        ]

    return pack


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("budget", [0.0, 60.0])
def test_programs_end_as_their_sequential_run(
    size: int, slots: int, budget: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For blocks of every size, on one thread or several, deferred or not."""
    monkeypatch.setattr("daskbatch.dispatch.placer.pack", blocks_of(size))
    for seed in range(12):
        steps = random_program(random.Random(seed), 1 + 5 * seed)
        expected = run_sequentially(make_root(tmp_path / f"{seed}-expected"), steps)
        root = make_root(tmp_path / f"{seed}-found")
        dispatcher, backend = make_dispatcher(slots, budget)
        records = records_of(steps, root)
        run_records(dispatcher, set_waits(build_graph(records), records, "client"))
        backend.join()
        assert [outcome_of(each) for each in records] == expected.results, f"seed {seed}"
        assert snapshot(root) == expected.files, f"seed {seed}"


def test_without_reports_the_results_of_the_keys_will_do(tmp_path: Path) -> None:
    steps = random_program(random.Random(3), 40)
    expected = run_sequentially(make_root(tmp_path / "expected"), steps)
    root = make_root(tmp_path / "found")
    dispatcher, backend = make_dispatcher(reports=False)
    records = records_of(steps, root)
    run_records(dispatcher, set_waits(build_graph(records), records, "client"))
    backend.join()
    assert [outcome_of(each) for each in records] == expected.results


def test_what_is_deferred_is_placed_again_knowing_more() -> None:
    dispatcher, backend = make_dispatcher(budget=0.0)
    records = [record(number, _add, number, 1) for number in range(40)]
    run_records(dispatcher, records)
    backend.join()
    assert {each.phase for each in records} == {Phase.DONE}
    first, *later = backend.submissions
    assert len(first.blocks) < 40, "tasks nobody has seen share blocks"
    assert later, "with no time for a second task in any block, some must come back"
    assert not _is_again(first)
    assert all(map(_is_again, later))


def _is_again(lowered: Lowered) -> bool:
    return all(layer.annotations.get(AGAIN) for layer in lowered.graph.layers.values())


def test_tasks_that_turn_out_long_get_blocks_of_their_own() -> None:
    dispatcher, backend = make_dispatcher(budget=0.01)
    run_records(dispatcher, [record(number, _sleep, 0.06) for number in range(12)])
    backend.join()
    seen = len(backend.submissions)
    run_records(dispatcher, [record(number, _sleep, 0.0) for number in range(12)])
    backend.join()
    (again,) = backend.submissions[seen:]
    assert [len(block.records) for block in again.blocks.values()] == [1] * 12


def test_keys_say_how_long_they_are_expected_to_take() -> None:
    dispatcher, backend = make_dispatcher(budget=0.25)
    run_records(dispatcher, [record(number, _sleep, 0.06) for number in range(3)])
    backend.join()
    run_records(dispatcher, [record(number, _sleep, 0.0) for number in range(3)])
    backend.join()
    first, *_, last = backend.submissions
    assert set(_seconds_of(first)) == {0.25}, "as long as a block may take, if nothing is known"
    assert len(_seconds_of(last)) == 3
    assert all(each >= 0.06 for each in _seconds_of(last))


def _seconds_of(lowered: Lowered) -> list[float]:
    (layer,) = lowered.graph.layers.values()
    return [layer.annotations[SECONDS](key) for key in lowered.blocks]


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_a_value_that_is_large_ends_sharing() -> None:
    dispatcher, backend = make_dispatcher(share_limit=1000)
    run_records(dispatcher, [record(number, bytes, 5000) for number in range(20)])
    backend.join()
    seen = len(backend.submissions)
    run_records(dispatcher, [record(number, bytes, 1) for number in range(20)])
    backend.join()
    (again,) = backend.submissions[seen:]
    assert len(again.blocks) == 20


def test_results_pass_between_submissions() -> None:
    dispatcher, backend = make_dispatcher(slots=2)
    gate = threading.Event()
    _GATES["between"] = gate
    first = record(0, _wait_at, "between")
    dispatcher.submit([first], "first")
    second = record(1, _add, Ref(first), 1)
    second.waits = ((first, 1),)
    dispatcher.submit([second], "second")
    gate.set()
    assert dispatcher.outcomes.wait(lambda: second.over, 30)
    third = record(2, _add, Ref(second), 1)
    run_records(dispatcher, [third])
    backend.join()
    assert outcome_of(third) == "3"


def test_what_waits_for_less_is_placed_anew_and_so_is_what_has_come_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("daskbatch.dispatch.placer.pack", blocks_of(1))
    dispatcher, backend = make_dispatcher(slots=2, budget=60.0)
    gate = _GATES["long"] = threading.Event()
    long, after = record(0, _wait_at, "long"), record(1, _add, 1, 1)
    after.waits = ((long, 0),)
    begun = _BEGUN["long"] = threading.Event()
    dispatcher.submit([long, after], "first")
    assert begun.wait(30)
    # Another task is submitted while the backend is asked which members have begun.
    last = record(2, _add, 1, 2)
    last.waits = ((after, 0),)
    revoke = backend.revoke

    def revoke_late(
        members: Members, status: Status, then: RevokeCallback, begun: bool = True
    ) -> None:
        backend.revoke = revoke  # type: ignore[method-assign]
        dispatcher.submit([last], "second")
        revoke(members, status, then, begun)

    backend.revoke = revoke_late  # type: ignore[method-assign]
    after.waits = ()
    dispatcher.place_anew([long, after])
    try:
        assert dispatcher.outcomes.wait(lambda: after.over and last.over, 30)
        assert not long.over
    finally:
        gate.set()
    assert dispatcher.outcomes.wait(lambda: long.over, 30)
    backend.join()
    assert [outcome_of(each) for each in (long, after, last)] == ["1", "2", "3"]


_GATES: dict[str, threading.Event] = {}
_BEGUN: dict[str, threading.Event] = {}


def _wait_at(name: str) -> int:
    if name in _BEGUN:
        _BEGUN[name].set()
    assert _GATES[name].wait(30)
    return 1


def _add(one: int, other: int) -> int:
    return one + other


def _fail() -> None:
    raise ValueError("on purpose")


def test_cancelled_before_the_start() -> None:
    dispatcher, _ = make_dispatcher()
    made = record(0, _add, 1, 2)
    dispatcher.cancel([made])
    assert made.phase == Phase.CANCELLED
    assert dispatcher.outcomes.unfinished == 0


def test_what_hangs_on_a_cancelled_task_comes_after_what_that_waits_for() -> None:
    """Z waits for X only through Y, which is cancelled while X still runs."""
    gate = _GATES["after"] = threading.Event()
    order: list[str] = []
    _ORDERS["after"] = order
    x = record(0, _record_after, "after", "x")
    y = record(1, _record, "after", "y")
    z = record(2, _record, "after", "z")
    y.waits, z.waits = ((x, 8),), ((y, 8),)
    dispatcher, backend = make_dispatcher(slots=3)
    dispatcher.submit([x, y, z], "test")
    dispatcher.cancel([y])
    assert y.phase == Phase.CANCELLED
    gate.set()
    assert dispatcher.outcomes.wait(lambda: z.over, 30)
    backend.join()
    assert order == ["x", "z"]


_ORDERS: dict[str, list[str]] = {}


def _record(name: str, what: str) -> None:
    _ORDERS[name].append(what)


def _record_after(name: str, what: str) -> None:
    assert _GATES[name].wait(30)
    _ORDERS[name].append(what)


def test_a_task_that_cannot_be_sent_fails_alone() -> None:
    dispatcher, backend = make_dispatcher()
    bad = record(0, len, threading.Lock(), name="bad")
    good = record(1, _add, 1, 2)
    behind = record(2, _add, Ref(bad), 1)
    behind.waits = ((bad, 1),)
    run_records(dispatcher, [bad, good, behind])
    backend.join()
    assert outcome_of(good) == "3"
    assert "task 'bad': its arguments cannot be sent" in outcome_of(bad)
    assert behind.root_failure is bad


def test_a_key_that_fails_takes_its_own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask fails what depends on a failed key; tasks that may still run are placed again."""
    monkeypatch.setattr("daskbatch.dispatch.placer.pack", blocks_of(1))
    backend = _Failing()
    dispatcher = _dispatcher_on(backend)
    lost, ordered, needing = record(0, _add, 1, 1), record(1, _add, 2, 2), record(2, _add, Ref, 1)
    ordered.waits, needing.waits = ((lost, 4),), ((lost, 1),)
    run_records(dispatcher, [lost, ordered, needing])
    backend.join()
    assert "its worker died" in outcome_of(lost)
    assert outcome_of(ordered) == "4"
    assert needing.root_failure is lost


class _Failing(InProcessBackend):
    """Fails the first submission, with all that depends on it, as if its worker had died."""

    def submit(self, lowered: Any, again: bool) -> Any:
        if self.submissions:
            return super().submit(lowered, again)
        self.submissions.append(lowered)
        blocks = list(lowered.blocks.values())

        def fail() -> None:
            for block in blocks:
                self.dispatcher.key_finished(block, error=WorkerLost("its worker died"))

        thread = threading.Thread(target=fail)
        self._threads.append(thread)
        thread.start()
        return {}


class _Refusing(InProcessBackend):
    """Refuses the first submissions, as Dask's scheduler does if it lacks what they need."""

    def __init__(self, times: int, lost: Sequence[TaskRecord] = ()) -> None:
        super().__init__()
        self.refusals = times
        self._lost = lost

    def submit(self, lowered: Any, again: bool) -> Any:
        if not self.refusals:
            return super().submit(lowered, again)
        self.refusals -= 1
        blocks = list(lowered.blocks.values())
        lost = [record.block.key for record in self._lost if record.block is not None]

        def refuse() -> None:
            self.dispatcher.keys_refused(blocks, lost)

        thread = threading.Thread(target=refuse)
        self._threads.append(thread)
        thread.start()
        return {}


def test_refused_keys_are_submitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of them has run, so their tasks are placed again: all in one submission."""
    monkeypatch.setattr("daskbatch.dispatch.placer.pack", blocks_of(1))
    backend = _Refusing(times=3)
    dispatcher = _dispatcher_on(backend)
    first, ordered = record(0, _add, 1, 1), record(1, _add, 2, 2)
    needing = record(2, _add, Ref(first), 1)
    ordered.waits, needing.waits = ((first, 4),), ((first, 1),)
    run_records(dispatcher, [first, ordered, needing])
    backend.join()
    assert [outcome_of(each) for each in (first, ordered, needing)] == ["2", "4", "3"]
    assert backend.refusals == 0
    assert len(backend.submissions) == 1
    assert not dispatcher.table.live


def test_a_key_that_is_always_refused_fails() -> None:
    backend = _Refusing(times=1000)
    dispatcher = _dispatcher_on(backend)
    first, needing = record(0, _add, 1, 1, name="first"), record(1, _add, Ref, 1)
    needing.waits = ((first, 1),)
    run_records(dispatcher, [first, needing])
    assert outcome_of(first).startswith("failed: task 'first' could not be run: Dask's scheduler")
    assert needing.root_failure is first
    assert 0 < backend.refusals < 1000
    assert not dispatcher.table.live


def test_what_a_refused_key_lacked_is_computed_again() -> None:
    backend = _Refusing(times=0)
    dispatcher = _dispatcher_on(backend)
    made = record(0, bytes, 100_000)
    run_records(dispatcher, [made])
    backend.join()
    assert made.value is None
    backend.refusals, backend._lost = 1, [made]
    taker = record(1, len, Ref(made))
    run_records(dispatcher, [taker])
    backend.join()
    assert outcome_of(taker) == "100000"
    assert backend.refusals == 0
    assert len(backend.submissions) == 2, "that of both is one submission"


def test_a_cancelled_key_takes_its_own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask cancels what comes after it, too: those tasks run, if they need no other result."""
    monkeypatch.setattr("daskbatch.dispatch.placer.pack", blocks_of(1))
    gate, begun = threading.Event(), threading.Event()
    _GATES["cancelled"], _BEGUN["cancelled"] = gate, begun
    dispatcher, backend = make_dispatcher(slots=2, budget=60.0)
    blocker = record(0, _wait_at, "cancelled")
    cancelled, ordered = record(1, _add, 1, 1, name="one"), record(2, _add, 2, 2)
    needing = record(3, _add, Ref(cancelled), 1)
    cancelled.waits = ((blocker, 4),)
    ordered.waits, needing.waits = ((cancelled, 4),), ((cancelled, 1),)
    dispatcher.submit([blocker, cancelled, ordered, needing], "test")
    assert begun.wait(30)
    try:
        blocks = [each.block for each in (cancelled, ordered, needing)]
        for block in blocks:
            assert block is not None
            dispatcher.key_cancelled(block, "somebody has cancelled it")
        assert dispatcher.outcomes.wait(lambda: cancelled.over and needing.over, 30)
        assert (
            outcome_of(cancelled) == "failed: task 'one' was cancelled: somebody has cancelled it"
        )
        assert needing.root_failure is cancelled
    finally:
        gate.set()
    assert dispatcher.outcomes.wait(lambda: ordered.over, 30)
    backend.join()
    assert outcome_of(ordered) == "4"


def _dispatcher_on(backend: InProcessBackend) -> Dispatcher:
    return make_dispatcher(backend=backend)[0]


def test_nobody_waits_for_ever_when_submission_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher, backend = make_dispatcher()

    def refuse(lowered: Any, again: bool) -> Any:
        raise OSError("no route to the scheduler")

    monkeypatch.setattr(backend, "submit", refuse)
    made = record(0, _add, 1, 2)
    run_records(dispatcher, [made])
    assert "no route to the scheduler" in outcome_of(made)


def test_callbacks_are_called_once_when_it_is_over_and_at_once_after_that() -> None:
    dispatcher, backend = make_dispatcher()
    _GATES["callback"] = threading.Event()
    made = record(0, _wait_at, "callback")
    calls: list[int] = []
    dispatcher.submit([made], "test")
    dispatcher.outcomes.when_over(made, lambda: calls.append(1))
    assert not calls
    _GATES["callback"].set()
    assert dispatcher.outcomes.wait(lambda: made.over, 30)
    backend.join()
    dispatcher.outcomes.when_over(made, lambda: calls.append(2))
    assert calls == [1, 2]

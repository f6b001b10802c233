"""A block in a child process: if a member is killed, crashes or hangs, it alone fails."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest
from support.own_process import in_own_process
from support.payloads import BARRIER, Call, TaskPlaceholder, call, spec
from support.processes import killed_if_failed
from support.waiting import read_pid, wait_until

from daskbatch.errors import TaskCrashed, TaskTimeout
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.worker.entry import run_block
from daskbatch.worker.execution.block import LOCAL, BlockMember, BlockSpec, Limits, Link
from daskbatch.worker.execution.journal import NOT_MEASURED, Journal, read_journals
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.isolation import deadline
from daskbatch.worker.isolation.child_pool import ChildPool, get_child_pool
from daskbatch.worker.isolation.child_process import ChildLost, ChildProcess
from daskbatch.worker.isolation.isolated_run import IsolatedRun

DONE, FAILED, SKIPPED, CANCELLED, DEFERRED = Status


@pytest.fixture(autouse=True, scope="module")
def no_child_left() -> Iterator[None]:
    yield
    get_child_pool().close()


def block(*calls: Call, **changes: Any) -> BlockSpec:
    return spec(*calls, **{"isolated": True, **changes})


def run(*calls: Call, inputs: Any = (), **changes: Any) -> BlockResult:
    return run_block(pickling.dumps(block(*calls, **changes)), *inputs)


def statuses(result: BlockResult) -> list[Status]:
    return [Status(each) for each in result.statuses]


def value(result: BlockResult, member: int = 0) -> Any:
    assert result.statuses[member] == DONE, unpack_error(result.values[member] or b"")
    return pickling.loads(result.values[member] or b"")


def error(result: BlockResult, member: int = 0) -> BaseException:
    assert result.statuses[member] == FAILED
    return unpack_error(result.values[member] or b"")


def note(path: Path, what: str = "x") -> str:
    with path.open("a") as file:
        file.write(what)
    return what


def say(text: str) -> None:
    print(text)


class Gate:
    """Lets a member in another process report that it has begun, and wait until `open`."""

    def __init__(self, directory: Path) -> None:
        self.began, self.go = directory / "began", directory / "go"
        os.mkfifo(self.began)
        os.mkfifo(self.go)

    def pass_through(self, what: Any = None) -> Any:
        self.began.write_text("")
        self.go.read_text()
        return what

    def wait(self) -> None:
        self.began.read_text()

    def open(self) -> None:
        self.go.write_text("")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


class Running:
    """A block that runs in another thread."""

    def __init__(self, given: BlockSpec) -> None:
        self.run = IsolatedRun(given, [])
        self.result: BlockResult | None = None
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        self.result = self.run()

    def finish(self) -> BlockResult:
        self._thread.join(60)
        assert self.result is not None
        return self.result


# -- as in a thread -----------------------------------------------------------------------


def add(first: list[int], second: int) -> list[int]:
    first.append(second)
    return first


def fail() -> None:
    raise ValueError("boom")


async def later(what: Any) -> Any:
    return what


@pytest.mark.parametrize("where", [False, True], ids=["thread", "child"])
def test_outcomes_are_the_same_wherever_a_block_runs(where: bool) -> None:
    given = BlockResult(
        bytes([DONE, FAILED]), [pickling.dumps([0]), b""], {0: ("out", ""), 1: ("no", "")}
    )
    first = BlockMember((0, 0), "result")
    links = {
        0: Link(needs=((0, 0),), values=(first,)),
        1: Link(needs=((LOCAL, 0),), values=(BlockMember((LOCAL, 0), "result"),)),
        2: Link(needs=((0, 1),)),
        3: Link(
            values=(BlockMember((0, 0), "stdout"), BlockMember((LOCAL, 5), "stdout"), "a text")
        ),
        6: Link(needs=((LOCAL, 4),)),
        7: Link(after=((LOCAL, 4),)),
        8: Link(values=(BlockMember((LOCAL, 5), "stdout"),)),
    }
    result = run(
        call(add, TaskPlaceholder(), 1),
        call(add, TaskPlaceholder(), 2),
        call(len, ""),
        call(list, [TaskPlaceholder(), TaskPlaceholder(), TaskPlaceholder()]),
        call(fail),
        call(say, "said"),
        BARRIER,
        call(later, 7),
        call(str, TaskPlaceholder()),
        call(sys.exit, 3),
        call(threading.Lock),
        links=links,
        inputs=[given],
        isolated=where,
    )
    assert statuses(result) == [
        *(DONE, DONE, SKIPPED, DONE, FAILED, DONE, SKIPPED, DONE, DONE, FAILED, FAILED)
    ]
    assert value(result, 1) == [0, 1, 2]
    assert value(result, 3) == ["out", "", "a text"]
    assert value(result, 8) == "said"
    assert repr(error(result, 4)) == "ValueError('boom')"
    assert "in fail" in str(error(result, 4).__cause__)
    exited = error(result, 9)
    assert isinstance(exited, TaskCrashed)
    assert exited.exitcode == 3
    assert "'t'" in str(error(result, 10))
    assert dict(result.outputs) == {5: ("said", "")}


@pytest.mark.parametrize("where", [False, True], ids=["thread", "child"])
def test_the_budget_and_the_limit_of_sharing_hold(where: bool) -> None:
    calls = [call(len, "") for _ in range(3)]
    assert statuses(run(*calls, budget=0.0, isolated=where)) == [DONE, DEFERRED, DEFERRED]
    large = [call(bytes, 5000), *calls]
    assert statuses(run(*large, share_limit=1000, isolated=where)) == [DONE] + [DEFERRED] * 3


def attempt(path: Path, good: int, otherwise: Any) -> int:
    note(path)
    print("attempt", number := len(path.read_text()))
    if number < good:
        otherwise()
    return number


def crash() -> None:
    os._exit(3)


def hang() -> None:
    threading.Event().wait()


@pytest.mark.parametrize("otherwise", [fail, crash, hang])
@pytest.mark.parametrize(("retries", "status"), [(1, FAILED), (2, DONE)])
def test_a_member_is_tried_again_as_often_as_was_asked(
    tmp_path: Path, otherwise: Any, retries: int, status: Status
) -> None:
    limits = {1: Limits(retries=retries, timeout=0.2)}
    path = tmp_path / "attempts"
    calls = [call(len, ""), call(attempt, path, 3, otherwise), call(len, "a")]
    result = run(*calls, limits=limits)
    assert statuses(result) == [DONE, status, DONE]
    assert len(path.read_text()) == retries + 1
    # Only the last attempt counts.
    assert result.outputs[1] == (f"attempt {retries + 1}", "")


def raise_then_crash(path: Path) -> int:
    note(path)
    if (number := len(path.read_text())) in (1, 3):
        fail()
    if number == 2:
        crash()
    return number


@pytest.mark.parametrize(("retries", "count"), [(2, 3), (3, 4)])
def test_exceptions_and_crashes_count_as_attempts_together(
    tmp_path: Path, retries: int, count: int
) -> None:
    path = tmp_path / "attempts"
    result = run(call(raise_then_crash, path), limits={0: Limits(retries=retries)})
    assert len(path.read_text()) == count
    assert statuses(result) == [DONE if count == 4 else FAILED]


# -- crashes ------------------------------------------------------------------------------


def kill(number: int) -> None:
    print("so far")
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("crashes", "exitcode", "words"),
    [
        (call(os._exit, 3), 3, "exit code 3"),
        (call(os._exit, 0), 0, "exit code 0"),
        (call(kill, signal.SIGSEGV), -signal.SIGSEGV, "SIGSEGV"),
        (call(kill, signal.SIGTERM), -signal.SIGTERM, "SIGTERM"),
        (call(kill, signal.SIGKILL), -signal.SIGKILL, "memory"),
        (call(ctypes.string_at, 0), -signal.SIGSEGV, "SIGSEGV"),
    ],
    ids=["exit", "exit 0", "SIGSEGV", "SIGTERM", "SIGKILL", "null pointer"],
)
def test_a_crash_is_the_members_own(crashes: Call, exitcode: int, words: str) -> None:
    links = {3: Link(needs=((LOCAL, 1),)), 4: Link(values=(BlockMember((LOCAL, 0), "result"),))}
    calls = [call(len, "abc"), crashes, call(len, "d"), call(len, ""), call(abs, TaskPlaceholder())]
    result = run(*calls, links=links)
    assert statuses(result) == [DONE, FAILED, DONE, SKIPPED, DONE]
    assert value(result, 4) == 3
    crashed = error(result, 1)
    assert isinstance(crashed, TaskCrashed)
    assert crashed.exitcode == exitcode
    assert "task 't'" in str(crashed)
    assert words in str(crashed)


def test_what_a_crashed_member_wrote_is_kept() -> None:
    assert run(call(kill, signal.SIGTERM)).outputs == {0: ("so far", "")}


def close_all_files() -> None:
    os.closerange(0, 1000)


def test_a_member_that_cuts_its_process_off_fails_alone() -> None:
    result = run(call(len, ""), call(close_all_files), call(len, "a"))
    assert statuses(result) == [DONE, FAILED, DONE]
    assert isinstance(error(result, 1), TaskCrashed)


def test_a_warm_child_that_died_is_replaced() -> None:
    psutil.Process(value(run(call(os.getpid)))).kill()
    assert statuses(run(call(len, ""), call(len, ""))) == [DONE, DONE]


def test_a_child_that_is_killed_from_outside_costs_what_ran(gate: Gate) -> None:
    running = Running(block(call(os.getpid), call(gate.pass_through), call(len, "")))
    gate.wait()
    running.run.tick()
    while not running.run.log.statuses:
        running.run.tick()
    psutil.Process(pickling.loads(running.run.log.values[0] or b"")).kill()
    result = running.finish()
    assert statuses(result) == [DONE, FAILED, DONE]
    assert "MiB" in str(error(result, 1))


# -- timeouts -----------------------------------------------------------------------------


def hold_the_interpreter() -> None:
    print("so far", flush=True)
    re.match(r"(a+)+$", "a" * 60 + "b")


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    hang()


@pytest.mark.parametrize("hangs", [hang, hold_the_interpreter, ignore_signals])
def test_a_member_is_ended_when_its_time_is_up(hangs: Any) -> None:
    began = monotonic()
    calls = [call(len, ""), call(hangs), call(len, "a")]
    result = run(*calls, limits={1: Limits(timeout=0.3)}, labels=["a", "slow", "c"])
    assert 0.3 <= monotonic() - began < 60
    assert statuses(result) == [DONE, FAILED, DONE]
    late = error(result, 1)
    assert isinstance(late, TaskTimeout)
    for words in ("'slow'", "0.3 s", "ended after 0.3"):
        assert words in str(late)
    assert result.outputs == ({1: ("so far", "")} if hangs is hold_the_interpreter else {})


def test_the_time_of_each_member_is_its_own() -> None:
    limits = {member: Limits(timeout=1.2) for member in range(5)}
    result = run(*[call(nap)] * 5, limits=limits)
    assert statuses(result) == [DONE] * 5


def nap() -> None:
    threading.Event().wait(0.3)


def test_the_time_of_each_attempt_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "attempts"
    limits = {0: Limits(timeout=1.2, retries=5)}
    assert value(run(call(nap_and_fail, path), limits=limits)) == 5


def nap_and_fail(path: Path) -> int:
    nap()
    return attempt(path, 5, fail)


def leave_children(path: Path) -> None:
    script = f"(setsid sleep 1000 & echo $! >> {path}); sleep 1000 & echo $! >> {path}; wait"
    subprocess.Popen(["sh", "-c", script])
    if os.fork() == 0:
        note(path, f"{os.getpid()}\n")
        hang()
    hang()


def test_all_that_a_member_has_started_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    result = run(call(leave_children, path), limits={0: Limits(timeout=1.0)})
    assert isinstance(error(result), TaskTimeout)
    pids = [int(each) for each in path.read_text().split()]
    assert len(pids) == 3
    for pid in pids:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# -- revoking and stopping ----------------------------------------------------------------


def write_pid_and_hold(path: Path) -> None:
    path.write_text(f"{os.getpid()}\n")
    hold_the_interpreter()


def test_what_has_not_begun_can_be_revoked_also_while_the_interpreter_is_held(
    gate: Gate, tmp_path: Path
) -> None:
    held = call(write_pid_and_hold, tmp_path / "pid")
    running = Running(block(call(gate.pass_through), held, *[call(len, "")] * 3))
    gate.wait()
    gate.open()
    while running.run.claims.running < 1:
        running.run.tick()
    child = psutil.Process(read_pid(tmp_path / "pid"))
    assert running.run.revoke([0, 1, 2], CANCELLED) == [0, 1]
    running.run.defer_rest()
    # Both calls have returned, and the interpreter is still held: only this ends that.
    assert running.result is None
    child.kill()
    assert statuses(running.finish()) == [DONE, FAILED, CANCELLED, DEFERRED, DEFERRED]


@pytest.mark.parametrize("hangs", [hang, hold_the_interpreter])
def test_a_member_that_runs_is_stopped_and_nothing_else(gate: Gate, hangs: Any) -> None:
    links = {3: Link(needs=((LOCAL, 1),)), 4: Link(after=((LOCAL, 1),))}
    calls = [call(gate.pass_through), call(hangs), call(len, ""), call(len, ""), call(len, "")]
    running = Running(block(*calls, links=links, limits={1: Limits(retries=5)}))
    gate.wait()
    gate.open()
    while running.run.claims.running < 1:
        running.run.tick()
    assert running.run.stop_running(0) is False
    assert running.run.stop_running(2) is False
    assert running.run.stop([1]) == []
    assert running.run.stop_running(1) is True
    assert statuses(running.finish()) == [DONE, CANCELLED, DONE, SKIPPED, DONE]


def test_everything_is_stopped_at_once(gate: Gate) -> None:
    running = Running(block(call(len, ""), call(gate.pass_through), *[call(len, "")] * 1000))
    gate.wait()
    running.run.stop_all()
    assert statuses(running.finish()) == [DONE] + [CANCELLED] * 1001


def test_what_is_over_is_not_stopped() -> None:
    running = Running(block(call(len, ""), call(len, "")))
    running.finish()
    assert running.run.stop([0, 1]) == [0, 1]


def test_a_stop_tells_the_truth_also_when_a_member_is_just_over(tmp_path: Path) -> None:
    count, path = 3000, tmp_path / "log"
    running = Running(block(*[call(note, path, "x")] * count))
    stopped: set[int] = set()
    refused: set[int] = set()
    while running.result is None and len(stopped) < 10:
        member = max(running.run.claims.running, 0)
        (stopped if running.run.stop_running(member) else refused).add(member)
    found = statuses(running.finish())
    assert found == [CANCELLED if member in stopped else DONE for member in range(count)]
    # No member ran twice, and some of the stopped members had written before.
    assert count - len(stopped) <= len(path.read_text()) <= count


def test_a_member_that_waits_for_another_attempt_is_stopped(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ChildPool()
    running: list[IsolatedRun] = []
    take = pool.take

    def take_late() -> Any:
        if running[0].claims.running == 0:
            assert running[0].stop([0]) == []
        return take()

    monkeypatch.setattr(pool, "take", take_late)
    running.append(
        IsolatedRun(block(call(crash), call(len, ""), limits={0: Limits(retries=9)}), [], pool=pool)
    )
    assert statuses(running[0]()) == [CANCELLED, DONE]
    pool.close()


def test_what_is_left_is_deferred_where_there_is_no_time_for_another_child() -> None:
    calls = [call(len, ""), call(hang), *[call(len, "")] * 3]
    result = run(*calls, budget=0.2, limits={1: Limits(timeout=0.4)})
    assert statuses(result) == [DONE, FAILED, DEFERRED, DEFERRED, DEFERRED]


def test_a_large_block_runs_as_a_whole() -> None:
    count = 20_000
    result = run(*[call(len, "abc")] * count)
    assert statuses(result) == [DONE] * count
    assert value(result, count - 1) == 3


def test_large_values_come_back_whole() -> None:
    result = run(call(bytes, 30_000_000), call(len, ""), share_limit=1 << 30)
    assert value(result) == bytes(30_000_000)


# -- output -------------------------------------------------------------------------------


def write_and_go_on(size: int, gate: Gate) -> None:
    os.write(1, b"head" + b"x" * size)
    gate.pass_through()
    os.write(1, b"tail")


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["over", "late"])
def test_a_writer_does_not_fill_the_disk(gate: Gate, ends: str) -> None:
    size = 30_000_000
    limits = {0: Limits(timeout=60.0 if ends == "over" else 2.0)}
    running = Running(block(call(write_and_go_on, size, gate), call(say, "b"), limits=limits))
    gate.wait()
    child = running.run._child
    assert child is not None
    while running.run._outputs.are_large(child.files):
        running.run.tick()
    if ends == "over":
        gate.open()
    result = running.finish()
    assert result.statuses[1] == DONE
    out, _ = result.outputs[0]
    assert out.startswith("headxxx")
    assert "bytes dropped" in out
    assert out.endswith("xxxtail" if ends == "over" else "xxxx")
    assert len(out) < 2000
    assert result.outputs[1] == ("b", "")


def write_pieces(count: int, size: int) -> None:
    for _ in range(count):
        os.write(1, b"x" * size)
    os.write(1, b"tail")


def test_what_is_written_while_a_file_is_shortened_is_not_lost() -> None:
    count, size = 4000, 16_384
    running = Running(block(call(write_pieces, count, size)))
    while running.result is None:
        running.run.tick()
    out, _ = running.finish().outputs[0]
    assert out.endswith("xxxtail")
    (dropped,) = re.findall(r"(\d+) bytes dropped", out)
    assert int(dropped) + running.run.spec.output_limit == count * size + len("tail")


def close_all_and_open(directory: Path, raises: bool) -> bytes:
    os.closerange(3, 4096)
    for number in range(40):
        os.write(os.open(directory / str(number), os.O_WRONLY | os.O_CREAT, 0o600), b"mine")
    if raises:
        raise ValueError
    return bytes(10_000_000)


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_is_written_to_the_files_of_a_member_that_has_closed_all_others(
    tmp_path: Path, raises: bool
) -> None:
    result = run(call(len, "abc"), call(close_all_and_open, tmp_path, raises), call(len, "ab"))
    assert statuses(result) == [DONE, FAILED, DONE]
    assert isinstance(error(result, 1), TaskCrashed)
    assert "has closed files that its process needs" in str(error(result, 1))
    assert {each.read_bytes() for each in tmp_path.iterdir()} == {b"mine"}


# -- journals -----------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [call(len, ""), call(crash)], ids=["well", "badly"])
def test_the_child_goes_on_with_the_journal_of_the_slot(tmp_path: Path, ends: Call) -> None:
    slot = Journal(tmp_path / "slot", 1000)
    calls = [call(len, "a"), ends, call(say, "b")]
    found = IsolatedRun(block(*calls, journaled=True), [])
    slot.begin("topic", 7)
    found.journal = slot
    result = found()
    assert found.journal is slot
    (trace,) = read_journals(tmp_path)
    assert (trace.topic, trace.block, trace.running) == ("topic", 7, 2)
    assert [trace.entries[n][:3] for n in range(3)] == [
        (n, result.statuses[n], result.values[n]) for n in range(3)
    ]
    assert trace.entries[2][4] == ("b", "")
    slot.begin("topic", 8)
    slot.record((0, DONE, b"v", 0.0, None, *NOT_MEASURED))
    assert [trace.block for trace in read_journals(tmp_path)] == [7, 8]
    slot.close()


def test_one_child_goes_on_with_the_journals_of_several_slots(tmp_path: Path) -> None:
    slots = [Journal(tmp_path / name, 1000) for name in ("one", "another")]
    pids, results = set(), []
    for number, slot in enumerate((slots[0], slots[1], slots[1], slots[0])):
        found = IsolatedRun(block(call(os.getpid), call(say, str(number)), journaled=True), [])
        slot.begin("topic", number)
        found.journal = slot
        results.append(found())
        pids.add(pickling.loads(results[-1].values[0] or b""))
    assert len(pids) == 1
    traces = sorted(read_journals(tmp_path), key=lambda trace: trace.block)
    assert [trace.block for trace in traces] == [0, 1, 2, 3]
    for trace, result in zip(traces, results, strict=True):
        assert [trace.entries[n][2] for n in range(2)] == result.values
        assert trace.entries[1][4] == (str(trace.block), "")
    for slot in slots:
        slot.close()


# -- children -----------------------------------------------------------------------------


def test_a_child_is_kept_for_the_next_block() -> None:
    assert value(run(call(os.getpid))) == value(run(call(os.getpid)))


def test_a_child_that_cannot_be_started_fails_the_member_and_defers_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = ChildPool()

    def take() -> Any:
        raise ChildLost("no room")

    monkeypatch.setattr(pool, "take", take)
    calls = [call(len, ""), call(len, ""), call(len, "")]
    links = {0: Link(needs=((0, 0),))}
    failed = IsolatedRun(block(*calls), [], pool=pool)()
    assert statuses(failed) == [FAILED, DEFERRED, DEFERRED]
    assert isinstance(error(failed), TaskCrashed)
    assert "no room" in str(error(failed))
    given = [BlockResult(bytes([FAILED]), [b""])]
    skipped = IsolatedRun(block(*calls, links=links), given, pool=pool)()
    assert statuses(skipped) == [SKIPPED, DEFERRED, DEFERRED]


def test_an_interpreter_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ChildPool()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    result = IsolatedRun(block(call(len, "")), [], pool=pool)()
    assert "could not be run in a child process: it ended at once" in str(error(result))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    result = IsolatedRun(block(call(len, "")), [], pool=pool)()
    assert "FileNotFoundError" in str(error(result))
    pool.close()


@pytest.mark.slow
@in_own_process
def test_nothing_is_left_over_after_many_kills() -> None:
    def count() -> tuple[int, int, int]:
        gc.collect()
        this = psutil.Process()
        return this.num_fds(), threading.active_count(), len(this.children(recursive=True))

    def kill_one() -> None:
        IsolatedRun(block(call(len, ""), call(os._exit, 1)), [], pool=pool)()
        wait_until(lambda: not pool._starting)

    pool = ChildPool()
    kill_one()
    before = count()
    for _ in range(50):
        kill_one()
    wait_until(lambda: all(now <= then for now, then in zip(count(), before, strict=True)))
    kept = len(psutil.Process().children())
    pool.close()
    wait_until(lambda: len(psutil.Process().children()) < kept)


SCRIPT = """
import sys
sys.path[:] = {path!r}
import os, threading
from daskbatch.serialization import pickling
from daskbatch.worker.entry import run_block
from support.payloads import call, spec
from unit.worker.isolation.test_isolated_run import tell_and_hang
run_block(pickling.dumps(spec(call(tell_and_hang), isolated=True, output_limit=0)))
"""


def tell_and_hang(to: int) -> None:
    with open(f"/proc/{os.getppid()}/fd/{to}", "w") as file:
        print(os.getpid(), file=file)
    hang()


def test_children_end_with_their_worker() -> None:
    script = SCRIPT.format(path=sys.path).replace("tell_and_hang)", "tell_and_hang, 1)")
    with killed_if_failed(
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    ) as worker:
        assert worker.stdout is not None
        end = os.pidfd_open(int(worker.stdout.readline()))
        worker.kill()
    poll = select.poll()
    poll.register(end, select.POLLIN)
    assert poll.poll(60_000)
    os.close(end)


def test_a_member_may_take_long_to_load_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    # Imports do not count as the member's time; but there is a limit for these, too.
    slow, slower = ((pickling.dumps(Slow(seconds)), call(len, "")[1]) for seconds in (0.6, 60.0))
    assert value(run(slow, limits={0: Limits(timeout=0.2)})) == 0
    monkeypatch.setattr(deadline, "_LOADING_SECONDS", 0.1)
    assert isinstance(error(run(slower, limits={0: Limits(timeout=0.2)})), TaskTimeout)


def load_slowly(seconds: float) -> Any:
    threading.Event().wait(seconds)
    return len


class Slow:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __reduce__(self) -> Any:
        return load_slowly, (self.seconds,)


def test_a_child_is_told_once_what_prepares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    send_request = ChildProcess.send_request

    def note_size(child: ChildProcess, claims: Any, data: bytes) -> None:
        sizes.append(len(data))
        send_request(child, claims, data)

    monkeypatch.setattr(ChildProcess, "send_request", note_size)
    setup = pickling.dumps((len, (b"x" * 1_000_000,)))
    for expected in (3, 5):
        result = run(call(abs, -expected), inputs=[setup], setup=0, topic="prepared")
        assert value(result) == expected
    assert sizes[1] < 100_000 < 1_000_000 < sizes[0]
    killed = run(call(os.kill, 0, 0), call(os._exit, 1), call(abs, -7), inputs=[setup], setup=0)
    assert statuses(killed) == [DONE, FAILED, DONE], "another child is told again"

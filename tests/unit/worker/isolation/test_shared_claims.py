"""Two processes share the claims on a block's members, and neither can block the other."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.own_process import in_own_process

from daskbatch.worker.execution.claims import RUN
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.isolation import shared_claims
from daskbatch.worker.isolation.shared_claims import BlockHalted, SharedClaims

DONE, FAILED, SKIPPED, CANCELLED, DEFERRED = Status


@contextmanager
def other(shared: SharedClaims, count: int, program: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in another process that has the same claims."""
    start = f"""
import sys
sys.path[:] = {sys.path!r}
from daskbatch.worker.isolation.shared_claims import SharedClaims
claims = SharedClaims({count}, {shared.file})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", start + program],
        pass_fds=[shared.file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_whoever_comes_first_has_a_member() -> None:
    shared = SharedClaims(4)
    assert shared.claim(0) == RUN
    assert shared.revoke([0, 1], CANCELLED) == [0]
    assert shared.revoke(range(4), DEFERRED) == [0]
    assert [shared.claim(member) for member in (1, 2, 3)] == [CANCELLED, DEFERRED, DEFERRED]
    assert [shared.given(member) for member in range(4)] == [RUN, CANCELLED, DEFERRED, DEFERRED]


def test_what_nobody_has_was_given_nothing() -> None:
    assert SharedClaims(1).given(0) == DONE


def test_it_says_which_member_runs_and_since_when() -> None:
    shared = SharedClaims(3)
    assert shared.running == -1
    shared.claim(1)
    began = shared.began
    assert (shared.running, shared.attempt, shared.called) == (1, 0, False)
    shared.mark_called()
    assert shared.called
    assert shared.began >= began
    shared.begin_retry()
    assert (shared.running, shared.attempt, shared.called) == (1, 1, False)


def test_once_halted_nothing_begins_until_another_goes_on() -> None:
    shared = SharedClaims(3)
    shared.claim(0)
    with shared.locked() as held:
        assert held
        shared.halt()
    with pytest.raises(BlockHalted):
        shared.claim(1)
    with pytest.raises(BlockHalted):
        shared.begin_retry()
    assert shared.revoke([1], CANCELLED) == []
    assert shared.claim(1) == CANCELLED
    shared.reset()
    assert shared.claim(2) == RUN


def test_two_processes_see_the_same() -> None:
    shared = SharedClaims(3)
    shared.revoke([2], CANCELLED)
    with other(
        shared, 3, "print(claims.claim(0), claims.claim(2), flush=True); input()"
    ) as process:
        assert line(process) == f"{RUN} {CANCELLED:d}"
        assert shared.running == 0
        assert shared.revoke([0, 1], DEFERRED) == [0]


def test_each_of_many_members_is_run_or_revoked_and_never_both() -> None:
    count = 20_000
    shared = SharedClaims(count)
    claim = f"""
input()
print("".join("x" if claims.claim(n) == -1 else "." for n in range({count})), flush=True)
"""
    with other(shared, count, claim) as process:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        begun, revoked, member = set(), set(), 0
        while member < count - 1:
            # The member that the other process begins next, as far as this process can see.
            member = min(max(member, shared.running) + 1, count - 1)
            (begun if shared.revoke([member], CANCELLED) else revoked).add(member)
        ran = line(process)
    assert len(ran) == count
    assert all(ran[member] == "x" for member in begun)
    assert {member for member in range(count) if ran[member] == "."} == revoked


def test_all_of_many_members_are_revoked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 20_000
    shared = SharedClaims(count)
    shared.claim(7)
    calls: list[int] = []
    lockf = fcntl.lockf
    monkeypatch.setattr(fcntl, "lockf", lambda *args: (calls.append(args[1]), lockf(*args))[1])
    assert shared.revoke(range(count), DEFERRED) == [7]
    # It takes the lock once for all of them.
    assert calls == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN]
    assert not shared.has_runnable(8)
    assert shared.has_runnable(7)


HOLD = """
with claims.locked():
    print("locked", flush=True)
    input()
"""


def test_a_lock_that_cannot_be_had_is_waited_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_claims, "_LOCK_TIMEOUT_SECONDS", 0.05)
    shared = SharedClaims(3)
    shared.revoke([2], CANCELLED)
    with other(shared, 3, HOLD) as process:
        assert line(process) == "locked"
        # A member that may have begun counts as begun; one that was revoked does not.
        assert shared.revoke([0, 1, 2], DEFERRED) == [0, 1]
        with shared.locked() as held:
            assert not held
        process.kill()
        process.wait()
        # The lock has ended with the process that had it.
        assert shared.revoke([0, 1, 2], DEFERRED) == []


def test_threads_of_a_process_take_turns() -> None:
    shared = SharedClaims(2)
    waited: list[list[int]] = []
    with shared.locked():
        thread = threading.Thread(target=lambda: waited.append(shared.revoke([0], DEFERRED)))
        thread.start()
        assert waited == []
    thread.join(30)
    assert waited == [[]]


@in_own_process
def test_a_board_that_was_closed_still_answers_and_has_no_file() -> None:
    before = len(os.listdir("/proc/self/fd"))
    shared = SharedClaims(3)
    shared.claim(0)
    shared.revoke([1], CANCELLED)
    shared.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert shared.revoke(range(3), DEFERRED) == [0]
    assert [shared.given(member) for member in range(3)] == [RUN, CANCELLED, DEFERRED]
    assert shared.running == 0
    shared.close()

"""Every implementation of `Claims` decides in the same way who has a member of a block."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from daskbatch.worker.execution.claims import RUN, Claims, LocalClaims
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.isolation.child_main import FlushingClaims
from daskbatch.worker.isolation.shared_claims import SharedClaims

COUNT = 2_000

#: The claims as the thread that runs members sees them, and as the one that revokes them does.
Ends = tuple[Claims, Claims]


class Frames:
    """Stands for the frames of a child process, which `FlushingClaims` flushes."""

    def flush(self) -> None:
        pass


def local() -> Ends:
    claims = LocalClaims()
    return claims, claims


def shared() -> Ends:
    claims = SharedClaims(COUNT)
    return claims, claims


def flushing() -> Ends:
    frames: Any = Frames()
    # The worker makes the file, and the child has another descriptor of it.
    watching = SharedClaims(COUNT)
    claims = FlushingClaims(COUNT, os.dup(watching.file), frames)
    return claims, claims


def mapped_twice() -> Ends:
    """One file that two processes have mapped, here by both ends in this process."""
    watching = SharedClaims(COUNT)
    return SharedClaims(COUNT, os.dup(watching.file)), watching


ONE_OBJECT = [local, shared, flushing]
each_kind = pytest.mark.parametrize("make", [*ONE_OBJECT, mapped_twice])


@each_kind
def test_a_member_that_is_claimed_cannot_be_revoked(make: Callable[[], Ends]) -> None:
    runner, watcher = make()
    assert runner.claim(3) == RUN
    assert watcher.revoke([3], Status.CANCELLED) == [3]
    assert watcher.revoke([3], Status.DEFERRED) == [3]
    assert watcher.given(3) == runner.given(3) == RUN


@each_kind
@pytest.mark.parametrize("status", [Status.CANCELLED, Status.DEFERRED, Status.SKIPPED])
def test_a_member_that_is_revoked_is_not_run(make: Callable[[], Ends], status: Status) -> None:
    runner, watcher = make()
    assert watcher.revoke([3], status) == []
    assert runner.claim(3) == status
    assert runner.claim(3) == status, "it stays so"
    assert watcher.given(3) == runner.given(3) == status


@each_kind
def test_the_first_status_stays(make: Callable[[], Ends]) -> None:
    runner, watcher = make()
    assert watcher.revoke([3], Status.CANCELLED) == []
    assert watcher.revoke([3], Status.DEFERRED) == []
    assert watcher.given(3) == Status.CANCELLED
    assert runner.claim(3) == Status.CANCELLED


@each_kind
def test_a_member_that_nobody_has_was_given_nothing(make: Callable[[], Ends]) -> None:
    runner, watcher = make()
    assert watcher.given(3) == Status.DONE
    assert runner.claim(3) == RUN, "asking has not given it anything"


@each_kind
def test_members_are_independent_and_any_iterable_names_them(make: Callable[[], Ends]) -> None:
    runner, watcher = make()
    for member in (7, 2, 5):
        assert runner.claim(member) == RUN
    assert watcher.revoke(iter([1, 2, 3]), Status.CANCELLED) == [2]
    assert watcher.revoke((each for each in (7, 6, 5)), Status.DEFERRED) == [7, 5]
    assert watcher.revoke(range(0), Status.DEFERRED) == []
    found = {member: watcher.given(member) for member in range(9)}
    revoked = {1: Status.CANCELLED, 3: Status.CANCELLED, 6: Status.DEFERRED}
    begun = dict.fromkeys((2, 5, 7), RUN)
    assert found == {**dict.fromkeys((0, 4, 8), Status.DONE), **revoked, **begun}


@pytest.mark.parametrize("make", ONE_OBJECT)
def test_each_member_is_run_or_revoked_and_never_both(make: Callable[[], Ends]) -> None:
    """A thread claims all members from the front while another revokes them from the back."""
    runner, watcher = make()
    start = threading.Barrier(2, timeout=30)
    claimed: list[int] = []
    begun: list[int] = []

    def run() -> None:
        start.wait()
        claimed.extend(runner.claim(member) for member in range(COUNT))

    thread = threading.Thread(target=run)
    thread.start()
    start.wait()
    for member in reversed(range(COUNT)):
        begun += watcher.revoke([member], Status.CANCELLED)
    thread.join(60)
    assert len(claimed) == COUNT
    assert sorted(begun) == [member for member, answer in enumerate(claimed) if answer == RUN]
    assert {*claimed} <= {RUN, Status.CANCELLED}

"""Many clients of one Batch: copies in other processes, and how the Batch and they end."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import pickle
import pickletools
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, LocalCluster
from support import clients
from support.clients import context, process
from support.waiting import read_pid, wait_for_file, wait_until

from daskbatch import (
    Batch,
    GraphError,
    LifecycleError,
    ServiceLost,
    SubmitAfterCloseError,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster that outlives Batches."""
    with LocalCluster(
        n_workers=2, threads_per_worker=3, processes=True, dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
def owner(cluster: LocalCluster) -> Iterator[Batch]:
    """A Batch on it."""
    batch = Batch(cluster)
    yield batch
    batch.terminate()


def copied(batch: Batch) -> Batch:
    copy: Batch = pickle.loads(pickle.dumps(batch))
    return copy


# -- many at once -----------------------------------------------------------------------


def test_eight_clients_submit_a_thousand_tasks_each_at_once() -> None:
    begin, answers, end = context.Barrier(8), context.Queue(), context.Event()
    batch = Batch(num_workers=2)
    processes = [
        context.Process(
            target=clients.run_squares, args=(batch, 1000 * n, 1000, begin, answers, end)
        )
        for n in range(8)
    ]
    for each in processes:
        each.start()
    found = [answers.get(timeout=90) for _ in processes]
    assert sorted(found) == [(number, True) for number in range(1, 9)]

    batch.close()
    with pytest.raises(TimeoutError, match=r"after 0.2 s: client 1 \(process \d+ on .*\) has not"):
        batch.join(timeout=0.2)
    end.set()
    batch.join(timeout=60)
    for each in processes:
        each.join(30)
    assert [each.exitcode for each in processes] == [0] * 8


def test_one_that_is_killed_counts_as_closed(tmp_path: Path) -> None:
    begin, answers, end = context.Barrier(1), context.Queue(), context.Event()
    batch = Batch(num_workers=4)
    with process(clients.run_for_ever, batch, tmp_path) as victim:
        wait_until((tmp_path / "thread.begun").exists)
        pids = [read_pid(tmp_path / f"{kind}.begun") for kind in ("process", "executable")]
        with process(clients.run_squares, batch, 0, 300, begin, answers, end):
            victim.kill()
            assert answers.get(timeout=60) == (2, True), "the others notice nothing"
            wait_until((tmp_path / "thread.stopped").exists)
            wait_until(lambda: not any(map(psutil.pid_exists, pids)))
            end.set()
            batch.close()
            batch.join(timeout=60)


def test_one_that_is_frozen_counts_as_crashed_after_a_time(owner: Batch, tmp_path: Path) -> None:
    with process(clients.run_for_ever_with_ttl, pickle.dumps(owner), tmp_path, "1 s") as victim:
        wait_until((tmp_path / "executable.begun").exists)
        wait_until((tmp_path / "thread.begun").exists)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGSTOP)
        try:
            owner.close()
            owner.join(timeout=30)
            wait_until((tmp_path / "thread.stopped").exists)
        finally:
            os.kill(victim.pid, signal.SIGCONT)
        wait_until((tmp_path / "told again").exists)
        victim.join(30)
        assert victim.exitcode == 0


def test_one_that_has_forked_before_it_is_killed(owner: Batch, tmp_path: Path) -> None:
    """The other process must not keep its connection open."""
    with process(clients.fork_and_run_for_ever, owner, tmp_path) as victim:
        wait_until((tmp_path / "forked").exists)
        assert victim.pid is not None
        forked = psutil.Process(victim.pid).children()
        try:
            victim.kill()
            wait_until((tmp_path / "task.stopped").exists)
            owner.close()
            owner.join(timeout=30)
            assert all(each.is_running() for each in forked)
        finally:
            for each in forked:
                each.kill()


def test_who_leaves_has_its_tasks_run_to_their_end(owner: Batch, tmp_path: Path) -> None:
    with process(clients.use_and_leave, owner, tmp_path / "done") as other:
        wait_until((tmp_path / "done.closed").exists)
        other.join(0.3)
        assert other.exitcode is None, "it waits for its task"
        (tmp_path / "done.go").touch()
        wait_until(lambda: other.exitcode is not None)
    assert (tmp_path / "done").exists()
    owner.close()
    owner.join(timeout=30)


def test_who_ends_without_closing_has_them_stopped(owner: Batch, tmp_path: Path) -> None:
    with process(clients.forget_to_close, owner, tmp_path / "task"):
        wait_until((tmp_path / "task.stopped").exists)
    owner.close()
    owner.join(timeout=30)


def test_the_others_go_on_without_the_creator(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as client:
        batch = Batch(client)
        copy = copied(batch)
        assert copy.client_id == 1
    # Its connection was lost, as in a crash.
    task = copy.function(pow, 2, 3)
    task.run(timeout=30)
    assert task.get() == 8
    copy.close()
    with pytest.raises(ServiceLost, match="there is no such Batch"):
        wait_until(lambda: copied(batch).client_id < 0)


def one_slot() -> LocalCluster:
    return LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0")


def test_first_come_first_served(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with one_slot() as cluster:
        batch = Batch(cluster)
        copies = [batch, copied(batch), copied(batch)]

        def there() -> int:
            return batch.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))

        copies[1].function(wait_for_file, tmp_path / "go").start()
        names = [f"{which}{turn}" for turn in range(3) for which in (2, 0, 1)]
        for name in names:
            before = there()
            copies[int(name[0])].function(clients.note, notes, name).start()
            wait_until(lambda before=before: there() > before)
        (tmp_path / "go").touch()
        for copy in copies:
            copy.fence(timeout=30)
            copy.close()
        batch.join(timeout=30)
    assert notes.read_text().split() == names


def test_programs_of_two_clients_take_turns(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with one_slot() as cluster:
        batch = Batch(cluster)
        copies = [batch, copied(batch), copied(batch)]
        # After the first call, which imports the module, all take equally long. It is learnt that
        # each is a block by itself.
        for copy in copies:
            copy.function(clients.note_slowly, notes, "x").run(timeout=30)
        notes.unlink()
        wait_until(lambda: _count_keys(batch) == 0)
        batch.function(wait_for_file, tmp_path / "go").start()
        wait_until(lambda: _count_keys(batch) == 1)
        for which in (1, 2):
            tasks = [
                copies[which].function(clients.note_slowly, notes, f"{which}{turn}")
                for turn in range(5)
            ]
            copies[which].compile(tasks).start()
        wait_until(lambda: _count_keys(batch) == 11)
        (tmp_path / "go").touch()
        for copy in copies:
            copy.fence(timeout=30)
            copy.close()
        batch.join(timeout=30)
    names = notes.read_text().split()
    assert sorted(names[:2] + names[-2:]) == ["10", "14", "20", "24"], names
    for which in "12":
        served = [name for name in names if name[0] == which]
        assert served == [f"{which}{turn}" for turn in range(5)]
    # One of them may be expected to take a little longer than the other.
    ahead = [sum(1 if name[0] == "1" else -1 for name in names[:end]) for end in range(10)]
    assert max(map(abs, ahead)) <= 1, names


def _count_keys(batch: Batch) -> int:
    return int(batch.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))


def test_a_client_that_has_lost_its_connection_leaves_nothing(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not come back as the same client of Dask, for which old results would stay."""
    batch = Batch(cluster.scheduler_address)
    lost = batch.client
    task = batch.function(bytes, 2_000_000)
    task.run(timeout=30)
    with Client(cluster, set_as_default=False) as other:

        def abort(dask_scheduler: Any, client: str) -> None:
            dask_scheduler.client_comms[client].abort()

        def there(dask_scheduler: Any, client: str) -> bool:
            return client in dask_scheduler.clients

        other.run_on_scheduler(abort, client=lost.id)
        wait_until(lambda: lost.status == "closed")
        wait_until(lambda: not other.run_on_scheduler(there, client=lost.id))
    with pytest.raises(ServiceLost):
        batch.function(abs, -1).run(timeout=30)
    batch.close()
    assert "reconnect" not in caplog.text.lower()


# -- the ways that a Batch can go -------------------------------------------------------


def test_through_a_queue(owner: Batch) -> None:
    queue, answers = context.Queue(), context.Queue()
    with process(clients.take_from, queue, answers):
        queue.put(owner)
        assert answers.get(timeout=30) == (1, 49)


def test_through_a_file(owner: Batch, tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(pickle.dumps(owner))
    program = """if True:
        import os, pickle, sys
        with open(sys.argv[1], "rb") as file:
            batch = pickle.load(file)
        task = batch.process("pwd")
        task.run(timeout=30)
        print(batch.client_id, task.stdout.get())
        batch.close()
    """
    said = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "batch"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.stdout.split() == ["1", os.getcwd()], said.stderr
    owner.close()
    owner.join(timeout=30)


def test_a_process_that_a_task_forks(owner: Batch) -> None:
    task = owner.function(clients.fork_and_square, owner)
    task.run(timeout=60)
    assert task.get() == (1, 49)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_of_the_creator(owner: Batch) -> None:
    forking = multiprocessing.get_context("fork")
    answers = forking.Queue()
    before = owner.function(len, bytes(11 << 20))  # Dask gets to know a thread for large things
    before.run(timeout=30)
    child = forking.Process(target=clients.square_there, args=(owner, answers))
    child.start()
    assert answers.get(timeout=30) == (1, 49)
    child.join(30)
    assert child.exitcode == 0
    assert before.get() == 11 << 20
    assert owner.client_id == 0
    owner.close()
    owner.join(timeout=30)


def test_a_pickle_is_an_address_and_an_identity(owner: Batch) -> None:
    texts = {
        arg
        for opcode, arg, _ in pickletools.genops(io.BytesIO(pickle.dumps(owner)))
        if isinstance(arg, str) and "UNICODE" in opcode.name
    }
    address = owner.client.scheduler.address
    assert texts - {"daskbatch.batch.batch", "_copy"} == {
        address,
        owner._context.identity.address.batch,
        os.getcwd(),
    }


# -- what copies are --------------------------------------------------------------------


def test_pickled_twice_it_is_two_clients_on_one_connection(owner: Batch) -> None:
    first, second = copied(owner), copied(copied(owner))
    assert "not used here" in repr(first)
    assert (first.client_id, second.client_id, owner.client_id) == (1, 2, 0)
    assert first.client is second.client is not owner.client
    task = first.function(pow, 2, 3)
    with pytest.raises(GraphError, match="belongs to another client of this Batch"):
        second.function(abs, task).start()
    with pytest.raises(GraphError, match="belongs to another client of this Batch"):
        second.compile([task])
    task.start()
    second.close()
    with pytest.raises(SubmitAfterCloseError):
        second.function(len, "")
    first.fence(timeout=30)
    assert task.state == "done"
    first.close()
    owner.close()
    owner.join(timeout=30)
    assert task.get() == 8


def test_used_by_many_threads_it_is_one_client(owner: Batch) -> None:
    found, numbers = clients.use_in_threads(copied(owner))
    assert found == [0, 1, 4, 9]
    assert numbers == {1}


def test_fence_waits_for_what_this_client_has_started(owner: Batch, tmp_path: Path) -> None:
    with copied(owner) as copy:
        owner.function(wait_for_file, tmp_path / "go").start()
        task = copy.function(pow, 2, 2)
        task.start()
        copy.fence(timeout=30)
        assert task.state == "done"
        with pytest.raises(TimeoutError):
            owner.fence(timeout=0.1)
        (tmp_path / "go").touch()


def test_only_the_creator_joins(owner: Batch) -> None:
    copy = copied(owner)
    for _ in range(2):
        with pytest.raises(
            LifecycleError, match="only the client that created a Batch can join it"
        ):
            copy.join()
        assert copy.client_id == 1
        copy.close()


def test_one_that_was_never_used_holds_up_nothing(owner: Batch) -> None:
    copy, closed = copied(owner), copied(owner)
    closed.close()
    closed.close()
    assert (copy.closed, closed.closed) == (False, True)
    with pytest.raises(SubmitAfterCloseError):
        closed.function(len, "")
    copy.fence()
    owner.close()
    owner.join(timeout=30)


def test_one_that_is_dropped_counts_as_closed(owner: Batch, tmp_path: Path) -> None:
    copy = copied(owner)
    copy.function(clients.touch_when_told, tmp_path / "done").start()
    del copy
    gc.collect()
    owner.close()
    with pytest.raises(TimeoutError):
        owner.join(timeout=0.3)
    (tmp_path / "done.go").touch()
    owner.join(timeout=30)
    assert (tmp_path / "done").exists(), "what it has started runs to its end"


def test_a_copy_that_terminates_gives_up_its_own(owner: Batch, tmp_path: Path) -> None:
    copy = copied(owner)
    task, own = copy.function(clients.spin, tmp_path / "task"), owner.function(pow, 2, 2)
    task.start()
    wait_until((tmp_path / "task.begun").exists)
    copy.terminate()
    copy.terminate()
    assert task.state == "cancelled"
    wait_until((tmp_path / "task.stopped").exists)
    own.run(timeout=30)
    owner.close()
    owner.join(timeout=30)


# -- the end, as copies see it ----------------------------------------------------------


@pytest.mark.parametrize("embedded", [True, False])
def test_terminate_ends_all(cluster: LocalCluster, tmp_path: Path, embedded: bool) -> None:
    batch = Batch(num_workers=1) if embedded else Batch(cluster)
    answers = context.Queue()
    with process(clients.wait_for_ever, batch, tmp_path / "task", answers):
        wait_until((tmp_path / "task.begun").exists)
        batch.terminate()
        assert answers.get(timeout=30) == ["ServiceLost", "nothing", "ServiceLost", "ServiceLost"]
    if not embedded:
        wait_until((tmp_path / "task.stopped").exists)


def test_used_after_the_end(cluster: LocalCluster) -> None:
    batch = Batch(cluster)
    used, unused = copied(batch), copied(batch)
    task = used.function(pow, 2, 2)
    assert used.client_id == 1
    used.close()
    batch.close()
    batch.join(timeout=30)
    with pytest.raises(SubmitAfterCloseError):
        task.start()
    with pytest.raises(ServiceLost, match="there is no such Batch at tcp://.*, or it has ended"):
        unused.function(len, "")
    with Batch(num_workers=1) as embedded:
        unused = copied(embedded)
    with pytest.raises(ServiceLost, match="no Dask scheduler answers"):
        unused.function(len, "")


def test_nobody_comes_while_the_last_leaves(owner: Batch) -> None:
    """A Batch ends in one step: a copy that is not a client by then cannot become one."""
    errors: list[BaseException] = []

    def come_and_go() -> None:
        try:
            while True:
                copy = copied(owner)
                copy.function(pow, 2, 2).run(timeout=30)
                copy.close()
        except ServiceLost as error:
            errors.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    for thread in threads:
        thread.start()
    owner.close()
    owner.join(timeout=60)
    for thread in threads:
        thread.join(30)
    assert len(errors) == 2


# -- copies that are not used ------------------------------------------------------------


def _numbers(batch: Batch) -> list[int]:
    """Return the numbers of the clients of a Batch that are registered and have not closed."""
    name = batch._context.identity.address.batch

    def find(dask_scheduler: object) -> list[int]:
        service = dask_scheduler.plugins["daskbatch-service"]  # type: ignore[attr-defined]
        return [each.number for each in service._clients.of_batch(name) if not each.closed]

    return list(batch.client.run_on_scheduler(find))


@pytest.mark.parametrize("how", ["closed", "ended", "killed"])
def test_one_that_was_unpickled_elsewhere_counts_without_being_used(
    owner: Batch, how: str, tmp_path: Path
) -> None:
    with process(clients.hold, owner, tmp_path, how) as child:
        wait_until(lambda: _numbers(owner) == [0, 1])
        owner.close()
        with pytest.raises(TimeoutError, match="client 1 .* has not closed"):
            owner.join(timeout=0.3)
        if how == "killed":
            child.kill()
        (tmp_path / "go").touch()
        owner.join(timeout=30)
        (tmp_path / "end").touch()


def test_one_that_was_unpickled_elsewhere_and_dropped_holds_up_nothing(
    owner: Batch, tmp_path: Path
) -> None:
    with process(clients.hold, owner, tmp_path, "dropped"):
        owner.close()
        owner.join(timeout=30)
        (tmp_path / "go").touch()


def test_each_that_was_unpickled_elsewhere_is_closed_for_itself(owner: Batch) -> None:
    begin, closed, end = context.Event(), context.Event(), context.Event()
    with process(clients.hold_several, pickle.dumps(owner), begin, closed, end):
        wait_until(lambda: sorted(_numbers(owner)) == [0, 1, 2, 3])
        begin.set()
        assert closed.wait(30)
        wait_until(lambda: len(_numbers(owner)) == 3)
        owner.close()
        with pytest.raises(TimeoutError):
            owner.join(timeout=0.3)
        end.set()
        owner.join(timeout=30)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_each_that_a_task_unpickles_is_closed_for_itself(owner: Batch, isolation: str) -> None:
    make = owner.options(isolation=isolation).function
    task = make(clients.close_one_of_two, pickle.dumps(owner))
    task.run(timeout=30)
    assert task.get() == (True, False, 1, 2, 8)
    task = make(clients.close_without_use, pickle.dumps(owner))
    task.run(timeout=30)
    assert task.get() == (True, False, 8)
    wait_until(lambda: _numbers(owner) == [0])


def test_what_dask_unpickles_is_not_registered(owner: Batch) -> None:
    kept = owner.client.submit(lambda batch: [batch], owner, pure=False)
    moved = owner.client.submit(lambda batches: repr(batches[0]), kept, pure=False)
    assert "not used here" in moved.result(30)
    owner.client.replicate([kept], n=2)
    assert "not used here" in repr(owner.client.run_on_scheduler(repr, owner))
    assert _numbers(owner) == [0]
    del kept, moved


def test_to_unpickle_one_of_a_cluster_that_is_gone_takes_no_time() -> None:
    with Batch(num_workers=1) as embedded:
        data = pickle.dumps(embedded)
    code = (
        "import pickle, sys; from daskbatch import ServiceLost\n"
        "copy = pickle.loads(sys.stdin.buffer.read())\n"
        "try: copy.function(len, '')\n"
        "except ServiceLost as error: print('ServiceLost')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == (b"ServiceLost\n", b"")

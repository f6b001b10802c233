"""Values that do not fit in memory go to disk and come back: twice the cluster's memory, too."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskbatch import Batch, DDict
from daskbatch.shared.data.codec import Value, pack, unpack
from daskbatch.shared.store.spill import SpillStore, StoredValue

#: The memory limit of a worker. It has some 150 MB of these once it has imported all it needs.
LIMIT = 400_000_000
SIZE = 20_000_000


def in_memory(value: Value) -> Value:
    """Return a value as it is received from a socket."""
    return tuple(memoryview(bytes(each)) for each in value) if isinstance(value, tuple) else value


def test_values_come_back_from_disk(tmp_path: Path) -> None:
    store = SpillStore(1000, tmp_path / "some where" / "ü")
    values = ["small", b"", b"x" * 5000, np.arange(10_000.0), [np.ones(5000), np.zeros(5000)], None]
    stored = [store.keep(number, in_memory(pack(value))) for number, value in enumerate(values)]
    memory, spilled = store.sizes()
    assert memory <= 1000
    assert spilled > 80_000
    for each, value in zip(stored, values, strict=True):
        found = unpack(each.value)
        assert type(found) is type(value)
        if isinstance(value, list):
            assert all(np.array_equal(a, b) for a, b in zip(found, value, strict=True))
        else:
            assert np.array_equal(found, value)


def test_what_nobody_has_any_more_leaves_nothing_on_disk(tmp_path: Path) -> None:
    store = SpillStore(1000, tmp_path / "store")
    stored = [store.keep(number, b"x" * 500) for number in range(20)]
    assert len(os.listdir(tmp_path / "store")) > 10
    last = stored.pop()
    stored.clear()
    store.tidy()
    assert store.sizes() == (last.size, 0)
    assert not (tmp_path / "store").exists()
    assert last.value == b"x" * 500


def test_the_oldest_go_first_and_nothing_goes_while_there_is_room(tmp_path: Path) -> None:
    store = SpillStore(3000, tmp_path / "store")
    stored = [store.keep(number, b"x" * 500) for number in range(3)]
    assert [each.file for each in stored] == [None] * 3
    stored += [store.keep(number, b"x" * 500) for number in range(3)]
    assert [each.file is None for each in stored] == [False] * 3 + [True] * 3


def test_a_disk_that_takes_nothing_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    store = SpillStore(1000, tmp_path / "file" / "store")
    first = store.keep(1, b"x" * 500)
    with pytest.raises(OSError, match="file"):
        store.keep(2, b"y" * 5000)
    assert first.value == b"x" * 500


def test_many_threads_keep_and_read_at_once(tmp_path: Path) -> None:
    store = SpillStore(20_000, tmp_path / "store")
    wrong: list[object] = []

    def work(number: int) -> None:
        kept: list[tuple[StoredValue, bytes]] = []
        for turn in range(200):
            value = bytes([number, turn % 256]) * 300
            kept.append((store.keep(turn, value), value))
            if len(kept) > 20:
                del kept[turn % 20]
            wrong.extend(each for each, value in kept[::5] if each.value != value)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.sizes() == (0, 0)


def put(d: DDict, number: int) -> None:
    d[number] = np.full(SIZE, number, "u1")


def is_right(d: DDict, number: int) -> bool:
    found = d[number]
    return found.shape == (SIZE,) and bool((found == number).all())


def test_twice_the_memory_of_the_cluster_goes_in_and_comes_out() -> None:
    count = 2 * 2 * LIMIT // SIZE
    with (
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=2, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]
        Batch(client) as batch,
    ):
        before = client.run(os.getpid)
        d = batch.ddict()
        # The client writes half of it, tasks the other half.
        for number in range(count // 2):
            put(d, number)
        batch.compile([batch.function(put, d, number) for number in range(count // 2, count)]).run()
        assert sum(each["spilled"] for each in d.stats()) > 2 * LIMIT
        assert sum(each["bytes"] for each in d.stats()) < 2 * LIMIT * 0.31
        assert all(is_right(d, number) for number in range(0, count, 2))
        program = batch.compile(
            [batch.function(is_right, d, number) for number in range(1, count, 2)]
        )
        program.run()
        assert all(program.result.get())
        assert client.run(os.getpid) == before
        d.clear()
        assert [(each["bytes"], each["spilled"]) for each in d.stats()] == [(0, 0), (0, 0)]


def test_what_was_not_kept_is_not_counted_when_it_goes(tmp_path: Path) -> None:
    store = SpillStore(1000, tmp_path / "store")
    kept = store.keep("a", b"x" * 500)
    StoredValue(store, "b", b"x" * 500)
    assert store.sizes() == (kept.size, 0)

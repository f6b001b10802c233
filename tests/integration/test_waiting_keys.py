"""A task does not wait behind a long one while another worker has a free slot."""

from __future__ import annotations

from pathlib import Path

from distributed import LocalCluster
from support.waiting import touch, wait_for_file, wait_until, wait_until_running

from daskbatch import Batch


def test_a_call_of_a_short_function_moves_away_from_one_that_lasts(tmp_path: Path) -> None:
    go, other, there = tmp_path / "go", tmp_path / "other", tmp_path / "there"
    touch(there)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Batch(cluster) as batch,
    ):
        for n in range(8):  # from then on Dask expects that a call takes a moment
            batch.client.submit(wait_for_file, there, key=f"wait_for_file-{n}").result(timeout=60)
        try:
            # Dask expects half a second of this one, so that it puts both calls elsewhere.
            future = batch.client.submit(wait_for_file, other, key="other-task")
            wait_until(lambda: any(batch.client.processing().values()))
            both = [batch.function(wait_for_file, go) for _ in range(2)]
            batch.compile(both).start()
            wait_until(lambda: max(map(len, batch.client.processing().values())) == 2)
            touch(other)
            wait_until_running(*both)
            assert len({task.info.worker for task in both}) == 2
        finally:
            touch(other)
            touch(go)
        batch.fence(timeout=60)
        assert [task.get() for task in both] == ["go", "go"]
        assert future.result(timeout=60) == "other"

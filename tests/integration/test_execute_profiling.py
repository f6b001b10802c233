"""Profiling across a cluster: all processes, merged and separate; after it nothing remains."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster
from support.profiled import (
    burn,
    hide_yappi,
    hold,
    is_profiling,
    let_go,
    profile_directories,
    show_yappi,
)
from support.scaling import scale
from support.waiting import wait_until

from daskbatch import Batch, BatchError, LifecycleError, SpecError
from daskbatch.execute import (
    CpuProfiling,
    ExecutionContext,
    Job,
    MemoryProfiling,
    RmiTask,
)

yappi = pytest.importorskip("yappi")


@pytest.fixture
def ctx(shared_batch: Batch) -> Iterator[ExecutionContext]:
    """A context on the two workers of one thread that tests share."""
    with ExecutionContext(shared_batch) as context:
        yield context
    shared_batch.fence(timeout=60)


def burn_everywhere(ctx: ExecutionContext) -> None:
    """Have each worker, and a child of one, burn some time."""
    for worker in ctx.workers:
        list(ctx.execute(Job(ctx, [RmiTask(ctx, 0, burn)]), workers=[worker]))
    ctx.batch.options(isolation="process").function(burn).run(timeout=60)


def profiling_anywhere(ctx: ExecutionContext) -> bool:
    answers = ctx.batch.client.run(is_profiling)
    child = ctx.batch.options(isolation="process").function(is_profiling)
    child.run(timeout=60)
    return any(answers.values()) or child.get()


# -- CPU ----------------------------------------------------------------------------------


def test_performs_cpu_profiling_across_the_cluster_with_yappi(ctx: ExecutionContext) -> None:
    """'Perform CPU profiling across the cluster with yappi'; children included."""
    profiling = ctx.cpu_profiling
    assert isinstance(profiling, CpuProfiling)
    profiling.start()
    burn_everywhere(ctx)
    profiling.stop()
    (merged,) = [stat for stat in profiling.get_stats() if stat.name == "burn"]
    assert merged.ncall == 3
    apart = dict(profiling.get_stats(per_worker=True))
    assert sorted(apart) == ctx.workers
    calls = sorted(
        sum(stat.ncall for stat in stats if stat.name == "burn") for stats in apart.values()
    )
    assert calls == [1, 2]


def test_stats_are_equal_after_the_stop(ctx: ExecutionContext) -> None:
    profiling = ctx.cpu_profiling
    profiling.start()
    burn_everywhere(ctx)
    profiling.stop()
    first, second = profiling.get_stats(), profiling.get_stats()
    assert [(s.full_name, s.ncall, s.ttot) for s in first] == [
        (s.full_name, s.ncall, s.ttot) for s in second
    ]


def test_stats_are_there_while_it_runs(ctx: ExecutionContext) -> None:
    profiling = ctx.cpu_profiling
    profiling.start()
    burn_everywhere(ctx)
    assert [stat.ncall for stat in profiling.get_stats() if stat.name == "burn"] == [3]
    profiling.stop()


def test_print_stats_takes_all_of_the_parameters(ctx: ExecutionContext) -> None:
    profiling = ctx.cpu_profiling
    profiling.start()
    burn_everywhere(ctx)
    profiling.stop()

    def printed(**how: object) -> list[str]:
        out = io.StringIO()
        profiling.print_stats(file=out, **how)  # type: ignore[arg-type]
        return out.getvalue().splitlines()

    head, *rows = printed(max_rows=10, include="daskbatch")
    assert head.split() == ["name", "ncall", "tsub", "ttot", "tavg"]
    assert len(rows) == 10
    assert all(row.startswith("daskbatch.") for row in rows)
    assert len(printed(max_rows=None)) > 101 or len(printed(max_rows=None)) == len(printed())
    rows = printed(include=["support.profiled"], exclude=["support.other"])[1:]
    assert all(row.startswith("support.profiled:") for row in rows)
    assert ["burn", "3"] in [row.split()[1:3] for row in rows]
    assert not any("daskbatch" in line for line in printed(exclude=["daskbatch"]))
    names = [line.split()[0] for line in printed(sort_by="name", columns=[("name", 200)])[1:]]
    assert names == sorted(names)
    _, *rows = printed(sort_by="ncall", sort_dir="asc", columns=[("ncall", 9)])
    calls = [int(row) for row in rows]
    assert calls == sorted(calls)
    for synonym in ("subtime", "tottime", "tavg"):
        assert len(printed(sort_by=synonym)) > 10
    heads = [line for line in printed(per_worker=True) if line.startswith("Worker ")]
    assert len(heads) == 2
    assert any("/" in line for line in printed(strip_dirs=False)[1:])
    wide = printed(max_rows=5, columns=[("name", 20), ("ncall", 5)])
    assert all(len(line) <= 27 for line in wide)


def test_print_stats_goes_to_stdout_by_default(
    ctx: ExecutionContext, capsys: pytest.CaptureFixture[str]
) -> None:
    profiling = ctx.cpu_profiling
    profiling.start()
    profiling.stop()
    profiling.print_stats(1)
    assert capsys.readouterr().out.startswith("name")


def test_what_is_wrong_is_said(ctx: ExecutionContext) -> None:
    profiling, memory = ctx.cpu_profiling, ctx.memory_profiling
    for ask in (profiling.get_stats, profiling.print_stats, memory.take_snapshot, memory.print_top):
        with pytest.raises(LifecycleError, match="start"):
            ask()
    for wrong in (
        {"sort_by": "speed"},
        {"sort_dir": "up"},
        {"columns": [("colour", 5)]},
        {"include": "a", "strip_dirs": False},
    ):
        with pytest.raises(SpecError):
            profiling.print_stats(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError):
        memory.print_top(group_by="colour")


# -- memory -------------------------------------------------------------------------------


def test_performs_memory_profiling_on_the_cluster_with_tracemalloc(ctx: ExecutionContext) -> None:
    """'Perform memory profiling on the cluster with tracemalloc'; children included."""
    profiling = ctx.memory_profiling
    assert isinstance(profiling, MemoryProfiling)
    profiling.start()
    before = profiling.take_snapshot()
    for worker in ctx.workers:
        list(ctx.execute(Job(ctx, [RmiTask(ctx, 0, hold, (3 << 20,))]), workers=[worker]))
    child = ctx.batch.options(isolation="process").function(hold, 5 << 20)
    child.run(timeout=60)
    out = io.StringIO()
    found = profiling.print_top("filename", 1, compare_to=before, file=out)  # type: ignore[arg-type]
    first = out.getvalue().splitlines()[0]
    assert first.startswith("#1: support.profiled")
    assert isinstance(found, tracemalloc.Snapshot)
    held = sum(
        stat.size
        for stat in found.statistics("filename")
        if stat.traceback[0].filename.endswith("profiled.py")
    )
    assert 11 << 20 <= held < 12 << 20
    apart = profiling.take_snapshot(per_worker=True)
    assert [worker for worker, _ in apart] == ctx.workers  # type: ignore[misc]
    profiling.stop()
    for worker in ctx.workers:
        list(ctx.execute(Job(ctx, [RmiTask(ctx, 0, let_go)]), workers=[worker]))


def test_print_top_takes_all_of_the_parameters(ctx: ExecutionContext) -> None:
    profiling = ctx.memory_profiling
    profiling.start()
    for worker in ctx.workers:
        list(ctx.execute(Job(ctx, [RmiTask(ctx, 0, hold, (1 << 20,))]), workers=[worker]))

    def printed(**how: object) -> list[str]:
        out = io.StringIO()
        profiling.print_top(file=out, **how)  # type: ignore[arg-type]
        return out.getvalue().splitlines()

    assert printed()[0].startswith("#1: support.profiled:")
    assert len([line for line in printed(limit=3) if line.startswith("#")]) == 3
    assert printed(limit=3)[-1].startswith("Total allocated size:")
    assert all("support" in line for line in printed(include="support") if line.startswith("#"))
    assert not any("support" in line for line in printed(exclude="support"))
    assert "/profiled.py" in printed(strip_dirs=False)[0]
    for group in ("filename", "traceback"):
        assert "profiled" in "".join(printed(group_by=group)[:3])
    assert len([line for line in printed(per_worker=True) if line.startswith("Worker ")]) == 2
    snapshot = profiling.take_snapshot()
    with pytest.raises(SpecError, match="per_worker"):
        printed(compare_to=snapshot, per_worker=True)
    profiling.stop()
    for worker in ctx.workers:
        list(ctx.execute(Job(ctx, [RmiTask(ctx, 0, let_go)]), workers=[worker]))


# -- the end ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "drop", "context", "batch"])
def test_nothing_is_left_of_a_profiler(shared_batch: Batch, how: str) -> None:
    with ExecutionContext(shared_batch) as ctx:
        client = shared_batch.client
        inner = Batch(client)
        context = ExecutionContext(inner)
        cpu, memory = context.cpu_profiling, context.memory_profiling
        for each in (cpu, memory):
            each.start()
        burn_everywhere(context)
        assert profiling_anywhere(ctx)
        if how == "stop":
            cpu.stop()
            memory.stop()
        elif how == "drop":
            del cpu, memory, each
            gc.collect()
        elif how == "context":
            context.stop()
        else:
            inner.terminate()
        wait_until(lambda: not profiling_anywhere(ctx))
        wait_until(lambda: not any(client.run(profile_directories).values()))
        context.stop()
        inner.terminate()


def test_workers_that_join_are_profiled() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        ExecutionContext(cluster) as ctx,
    ):
        profiling = ctx.cpu_profiling
        profiling.start()
        scale(cluster, 2)
        wait_until(lambda: ctx.worker_count == 2)
        wait_until(lambda: all(ctx.batch.client.run(is_profiling).values()))
        burn_everywhere(ctx)
        profiling.stop()
        assert [stat.ncall for stat in profiling.get_stats() if stat.name == "burn"] == [3]


def test_a_cluster_in_this_process_that_closes_stops_its_profilers() -> None:
    """The workers are threads of this process: what they leave on would stay on."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        ExecutionContext(cluster) as ctx,
    ):
        profiling = ctx.memory_profiling
        profiling.start()
        assert tracemalloc.is_tracing()
        list(ctx.execute(Job(ctx, [RmiTask(ctx, n, hold, (1 << 20,)) for n in range(2)])))
        held = [
            stat
            for stat in profiling.take_snapshot().statistics("lineno")  # type: ignore[union-attr]
            if stat.traceback[0].filename.endswith("profiled.py")
        ]
        assert sum(stat.size for stat in held) < 3 << 20  # two workers, one process: counted once
        let_go()
        cluster.close()
        wait_until(lambda: not tracemalloc.is_tracing())


def test_a_worker_that_cannot_profile_leaves_no_other_on(
    ctx: ExecutionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx.batch.client.run(hide_yappi, workers=[ctx.workers[0].address])
    try:
        with pytest.raises(BatchError, match=r"cannot profile.*daskbatch\[profiling\]"):
            ctx.cpu_profiling.start()
        wait_until(lambda: not any(ctx.batch.client.run(is_profiling).values()))
    finally:
        ctx.batch.client.run(show_yappi)


LEFT_ON = """
from daskbatch import Batch
from daskbatch.execute import ExecutionContext

batch = Batch(num_workers=1)
profiling = ExecutionContext(batch).memory_profiling
profiling.start()
batch.options(isolation="process").function(abs, -1).run()
print(len(profiling.take_snapshot().traces) > 0)
"""


def test_a_program_that_ends_without_a_stop_leaves_no_files(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LEFT_ON],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert run.stdout == "True\n", run.stderr
    wait_until(lambda: not list(tmp_path.rglob("daskbatch-*")))

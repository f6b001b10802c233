"""Dask's dashboard shows the user's tasks, and /daskbatch what the programs of all clients do."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dask.utils import key_split
from distributed import LocalCluster
from distributed.dashboard.scheduler import applications, template_variables
from support.browser import WatchedPage
from support.cluster_info import workers_of
from support.waiting import HANG_SECONDS, wait_for_file, wait_until

from daskbatch import Batch, BatchPoolExecutor, CompiledTask

SECONDS = HANG_SECONDS


def same(x: Any, *_: Any) -> Any:
    return x


def slow(*_: Any) -> bytes:
    time.sleep(0.06)
    return bytes(5000)  # more than what travels along edges that only order


def fail(*_: Any) -> None:
    print("reading <b>31</b> columns")
    raise ValueError("no column <img src=x onerror=alert(1)>")


def wait_for(path: str, *_: Any) -> None:
    wait_for_file(Path(path))


@pytest.fixture(scope="module", autouse=True)
def closed_pages_collect_no_garbage() -> Iterator[None]:
    """Have Bokeh collect no garbage for each page that was closed.

    It does so on the scheduler's event loop, which is in this process. With the heap of thousands
    of tests this takes a second for each page, and the tests close sixty of them at once.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bokeh.document.document.gc", SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster


@pytest.fixture
def batch(cluster: LocalCluster) -> Iterator[Batch]:
    with Batch(cluster=cluster) as batch:
        yield batch
        batch.terminate()


def make_program(batch: Batch, directory: Path, name: str = "climate") -> CompiledTask:
    """Return a program of five kinds of tasks, in which kinds wait for each other in a circle."""
    load = [batch.function(same, n, name="load") for n in range(6)]
    clean = [batch.function(same, each, name="clean") for each in load]
    again = [batch.function(same, each, name="load") for each in clean]
    write = [
        batch.function(same, n, writes=[batch.write(directory, "a")], name=("one", "two")[n % 2])
        for n in range(4)
    ]
    bad = batch.function(fail, clean[0], name="<i>compare</i>")
    after = batch.function(same, bad, name="publish")
    return batch.compile([*load, *clean, *again, *write, bad, after], name=name, check=None)


DONE = {"load": 12, "clean": 6, "one": 2, "two": 2}
FAILED = "task__i_compare_i_"


def on_scheduler(batch: Batch, function: Any, *args: Any) -> Any:
    """Return what a function returns on the scheduler; its parameter is `dask_scheduler`."""
    return batch.client.run_on_scheduler(function, *args)


def counts(batch: Batch) -> dict[str, dict[str, int]]:
    """Return the number of keys and tasks by name and state, as Dask's pages have it."""

    def look(dask_scheduler: Any) -> Any:
        return {
            name: {state: n for state, n in prefix.states.items() if n and state != "forgotten"}
            for name, prefix in dask_scheduler.task_prefixes.items()
        }

    found: dict[str, dict[str, int]] = on_scheduler(batch, look)
    return found


def over(batch: Batch, name: str) -> int:
    states = counts(batch).get(name, {})
    assert all(count > 0 for count in states.values())
    return states.get("memory", 0) + states.get("released", 0)


def require_no_circle(batch: Batch) -> None:
    def look(dask_scheduler: Any) -> Any:
        groups = dask_scheduler.task_groups.items()
        return {name: [each.name for each in group.dependencies] for name, group in groups}

    needs = on_scheduler(batch, look)
    assert not any(name in before for name, before in needs.items())
    TopologicalSorter(needs).prepare()


class Records(logging.Handler):
    """Keeps what is logged as a warning or worse, and all that has a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # Dask's pages of profiles fetch them in the background, and fail if the page is closed
        # before: it has no document then.
        if "'NoneType' object has no attribute 'add_next_tick_callback'" in text:
            return
        if record.exc_info or record.levelno >= logging.ERROR or "Traceback" in str(record.msg):
            self.found.append(text)


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Check that the scheduler, which is in this process, logs no traceback."""
    handler = Records()
    loggers = [logging.getLogger(name) for name in ("distributed", "bokeh", "tornado")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert handler.found == []


def get(batch: Batch, page: str) -> str:
    """Return a page of the dashboard."""
    link = batch.dashboard_link.removesuffix("status") + page
    with urllib.request.urlopen(link, timeout=SECONDS) as answer:
        assert answer.status == 200, page
        return str(answer.read().decode())


def get_menu(batch: Batch, cluster: LocalCluster) -> None:
    """Open all pages of the menu of Dask's dashboard."""
    with nothing_logged():
        for page in template_variables(cluster.scheduler)["pages"]:
            assert "Traceback" not in get(batch, page)


# -- Dask's own pages -------------------------------------------------------------------------


def test_names_and_counts_are_those_of_the_tasks(batch: Batch, tmp_path: Path) -> None:
    program = make_program(batch, tmp_path)
    program.run()
    for name, count in DONE.items():
        wait_until(lambda name=name, count=count: over(batch, name) == count, name)  # type: ignore[misc]
    wait_until(lambda: counts(batch)[FAILED] == {"erred": 1})
    assert not counts(batch).get("publish")
    shown = {name for name, states in counts(batch).items() if states}
    assert {name for name in shown if "daskbatch" not in name} == {*DONE, FAILED}
    require_no_circle(batch)

    def erred(dask_scheduler: Any) -> Any:
        return [
            (key, len(task.dependents), task.exception_text, len(task.erred_on))
            for key, task in dask_scheduler.tasks.items()
            if task.state == "erred"
        ]

    ((key, dependents, text, workers),) = on_scheduler(batch, erred)
    assert key_split(key) == FAILED
    assert (dependents, workers) == (0, 1)
    assert text == "ValueError: no column <img src=x onerror=alert(1)>"
    assert "no column" in get(batch, "info/main/exceptions.html")


def test_blocks_that_wait_for_tokens_and_values_make_no_circle(
    batch: Batch, tmp_path: Path
) -> None:
    batch.function(slow, 0, name="warm_up").run()  # long tasks are blocks by themselves
    start = tmp_path / "start"
    begin = batch.function(wait_for, str(start), name="begin")
    state = [batch.write(tmp_path, "state")], [batch.read(tmp_path, "state")]
    steps = [begin]
    for n in range(4):
        steps.append(batch.function(slow, begin, n, writes=state[0], name="write"))
        read = [batch.function(slow, n, i, reads=state[1], name="read") for i in range(3)]
        steps += [*read, batch.function(slow, *read, name="join")]
    program = batch.compile(steps, check=None)
    with nothing_logged():
        program.start()
        wait_until(lambda: sum(counts(batch).get("read", {}).values()) == 12)
        require_no_circle(batch)
        get(batch, "groups")
        get(batch, "graph")
        start.touch()
        program.wait(SECONDS)
    wait_until(lambda: (over(batch, "write"), over(batch, "read")) == (4, 12))


def test_each_page_works_with_every_program(
    batch: Batch, cluster: LocalCluster, tmp_path: Path
) -> None:
    get_menu(batch, cluster)  # without tasks
    end = tmp_path / "end"
    table, queue = batch.ddict(), batch.queue()
    table["a"] = 1
    running = batch.function(wait_for, str(end), name="running")
    gang = batch.job(wait_for, str(end), num_procs=3, name="gang")
    waiting = batch.function(same, running, name="waiting")
    shared = batch.function(
        same, 1, reads=[batch.read(table, "a")], writes=[batch.write(queue)], name="shared"
    )
    program = batch.compile([running, gang, waiting, shared], check=None)
    program.start()
    wait_until(lambda: running.state == "running")
    get_menu(batch, cluster)
    end.touch()
    program.wait(SECONDS)
    make_program(batch, tmp_path).run()
    get_menu(batch, cluster)


def test_all_other_pages_work(batch: Batch, tmp_path: Path) -> None:
    make_program(batch, tmp_path).run()
    with nothing_logged():
        for page in applications:
            if "gpu" not in page and "rmm" not in page:
                get(batch, page.strip("/"))


def test_tasks_that_did_not_run_are_not_counted(batch: Batch, tmp_path: Path) -> None:
    start = tmp_path / "start"
    first = batch.function(wait_for, str(start), name="first")
    rest = [batch.function(same, first, n, name="cancelled") for n in range(20)]
    program = batch.compile([first, *rest], check=None)
    program.start()
    wait_until(lambda: sum(counts(batch).get("cancelled", {}).values()) == 20)
    wait_until(lambda: first.state == "running")
    for each in rest:
        each.cancel()
    start.touch()
    program.wait(SECONDS)
    wait_until(lambda: not counts(batch).get("cancelled"))
    wait_until(lambda: over(batch, "first") == 1)


def test_calls_of_an_executor_are_counted(batch: Batch) -> None:
    with BatchPoolExecutor(cluster=batch.client, name="survey") as executor:
        assert list(executor.map(abs, range(-100, 0))) == [*range(100, 0, -1)]
        wait_until(lambda: over(batch, "survey_abs") == 100)
        with pytest.raises(ValueError):
            executor.submit(int, "x").result(SECONDS)
        wait_until(lambda: counts(batch).get("survey_int") == {"erred": 1})
        require_no_circle(batch)


def test_tasks_of_open_blocks_are_in_the_task_stream(batch: Batch) -> None:
    batch.client.get_task_stream()  # as the page does, it begins to record

    def shown(dask_scheduler: Any) -> Any:
        rows = dask_scheduler.plugins["task-stream"].rectangles(0, workers={})
        return {
            key: (worker, duration)
            for key, worker, duration in zip(
                rows["key"], rows["worker"], rows["duration"], strict=True
            )
            if key[0] == "grow"
        }

    runs: list[set[int]] = []

    def one_is_shown() -> bool:
        step: list[Any] = [batch.function(same, n, name="grow") for n in range(4)]
        tasks = list(step)
        for _ in range(10):
            step = [
                batch.function(same, step[n].result, step[n - 1].result, name="grow")
                for n in range(4)
            ]
            tasks += step
        batch.compile(tasks).run()
        runs.append({task._record.number for task in tasks})
        numbers = {number for _, number in on_scheduler(batch, shown)}
        return any(run <= numbers for run in runs)

    # The client learns that somebody looks when it next reports on tasks.
    wait_until(one_is_shown)
    workers = set(workers_of(batch.client))
    found = on_scheduler(batch, shown).values()
    assert {worker for worker, _ in found} <= workers
    assert all(0 <= duration < SECONDS * 1000 for _, duration in found)
    assert "Traceback" not in get(batch, "tasks")


def test_nothing_of_a_client_that_has_gone_is_shown(cluster: LocalCluster, tmp_path: Path) -> None:
    with Batch(cluster=cluster) as stays, Batch(cluster=cluster) as goes:
        make_program(goes, tmp_path).run()
        goes.function(same, 1, name="load").run()
        stays.function(same, 1, name="load").run()
        wait_until(lambda: over(stays, "load") == 14)
        goes.terminate()
        wait_until(lambda: over(stays, "load") == 1)
        wait_until(lambda: not counts(stays).get(FAILED))
        assert "stays" not in get(stays, "daskbatch")


# -- the page of daskbatch --------------------------------------------------------------------


def rows(page: Any, table: str) -> list[dict[str, str]]:
    """Return the rows of a table as they are drawn."""
    found: list[list[str]] = page.eval_on_selector_all(
        f"table.{table} tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return [dict(zip(found[0], cells, strict=True)) for cells in found[1:]]


def columns(page: Any, root: str, *names: str) -> list[list[Any]]:
    """Return the data of a part of the page that is drawn, all of one moment."""
    found: list[list[Any]] = page.evaluate(
        """([root, names]) => {
            const model = Bokeh.documents[0].get_model_by_name(root);
            const source = model.source || model.renderers[0].data_source;
            return names.map(name => [...source.data[name]]);
        }""",
        [root, names],
    )
    return found


def test_the_page_shows_what_goes_on(
    batch: Batch, cluster: LocalCluster, chromium: Any, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    table, queue = batch.ddict(name="<i>table</i>"), batch.queue()
    table.update({"a": 1, "b": 2})
    queue.put("x")
    program = make_program(batch, tmp_path, "<script>alert(1)</script>")
    program.run()
    running = batch.function(wait_for, str(end), name="long <b>")
    after = batch.function(same, running, name="after")
    running.start()
    after.start()
    watched = WatchedPage(chromium, 1300, 1000)
    page = watched.page
    with Batch(cluster=cluster) as other, nothing_logged():
        elsewhere = other.function(same, 1, name="elsewhere")
        elsewhere.run()
        page.goto(batch.dashboard_link.removesuffix("status") + "daskbatch")
        page.wait_for_function("window.Bokeh && Bokeh.documents.length > 0")
        wait_until(lambda: "long <b>" in [row["task"] for row in rows(page, "running")])
        wait_until(lambda: len({row["client"] for row in rows(page, "programs")}) == 2)
        assert page.locator("body", has_text="2 clients").count() == 1
        names, are_done, have_failed = columns(page, "progress", "name", "done", "failed")
        assert {"load", "clean", "one", "two", "<i>compare</i>", "publish", "long <b>"} <= {*names}
        done = dict(zip(names, are_done, strict=True))
        assert {name: done[name] for name in DONE} == DONE
        failed = dict(zip(names, have_failed, strict=True))
        assert {name: n for name, n in failed.items() if n} == {"<i>compare</i>": 1}
        (row,) = [row for row in rows(page, "programs") if "script" in row["program"]]
        assert row["program"] == "<script>alert(1)</script>"
        assert (row["state"], row["done"], row["failed"], row["skipped"]) == (
            *("failed", "22", "1", "1"),
        )
        assert "waits for 'long <b>'" in rows(page, "waiting")[0]["why"]
        wait_until(lambda: [row["items"] for row in rows(page, "shared")] == ["2", "1"])
        assert [row["kind"] for row in rows(page, "shared")] == ["DDict", "Queue"]
        assert rows(page, "shared")[0]["name"] == "<i>table</i>"
        # What is drawn as text is text: the names have no effect.
        failures = page.locator(".failures").inner_text()
        assert "<i>compare</i>" in failures
        assert "no column <img src=x onerror=alert(1)>" in failures
        assert "reading <b>31</b> columns" in failures
        assert page.locator("img[src='x'], .programs script, .programs i").count() == 0
        (states,) = columns(page, "timeline", "state")
        assert "running" in states
        assert page.locator(".navbar a[href='daskbatch']").count() == 1
        # Programs that the client no longer holds are not shown.
        del program
        wait_until(lambda: all("script" not in row["program"] for row in rows(page, "programs")))
    wait_until(lambda: page.locator("body", has_text="1 client").count() == 1)
    end.touch()
    after.wait(SECONDS)
    wait_until(lambda: rows(page, "running") == [])
    assert watched.errors == []
    page.close()


def test_nobody_is_asked_while_nobody_looks(batch: Batch, cluster: LocalCluster) -> None:
    task = batch.function(same, 1, name="load")
    task.run()
    plugin = cluster.scheduler.plugins["daskbatch-service"]
    dashboard = plugin._dashboard
    get(batch, "daskbatch")

    def is_shown_done() -> bool:
        # The first summary may be of a moment before: an earlier page has asked for it.
        ((client, summary),) = dashboard.clients()
        assert client.number == 0
        return summary is not None and summary.programs[0].counts() == {"done": 1}

    wait_until(is_shown_done)


def test_without_bokeh_all_else_works() -> None:
    program = """
import sys
sys.modules["bokeh"] = None
from distributed import LocalCluster
from daskbatch import Batch
with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
    with Batch(cluster=cluster) as batch:
        task = batch.function(abs, -7)
        task.run()
        print(task.get())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "7"), ran.stderr
    # Dask may log that a connection closed while the cluster ended; nothing may ask for bokeh.
    assert "bokeh" not in ran.stderr


def test_pages_of_an_embedded_cluster_are_loaded_on_demand() -> None:
    with Batch(num_workers=1) as batch:
        link = batch.client.dashboard_link
        # By value: to import this module loads the pages.
        has_pages = lambda: "bokeh" in sys.modules  # noqa: E731
        assert not batch.client.run_on_scheduler(has_pages)
        with ThreadPoolExecutor(4) as pool:  # all wait for the same pages
            pages = [link.replace("status", each) for each in ("status", "daskbatch", "", "tasks")]
            texts = list(pool.map(read_page, pages))
        assert all("Bokeh" in text and "daskbatch" in text for text in texts)
        assert batch.client.run_on_scheduler(has_pages)
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            read_page(link.replace("status", "no-such-page"))
        caught.value.close()  # it has a file


def read_page(link: str) -> str:
    with urllib.request.urlopen(link, timeout=SECONDS) as answer:
        return str(answer.read().decode())

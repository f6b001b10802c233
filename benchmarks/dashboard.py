"""What the open page /daskbatch costs the scheduler, at 10 000 tasks a second."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
import urllib.request
from collections.abc import Iterator

import psutil
from bokeh.client import pull_session
from common import WORKERS, Table

from daskbatch import Batch

TASKS_PER_SECOND = 10_000
SECONDS, ROUNDS = 5, 4


def noop(number: int) -> int:
    return number


def run_for(batch: Batch, seconds: int) -> None:
    """Run `TASKS_PER_SECOND` tasks in each of some seconds."""
    began = time.perf_counter()
    for second in range(1, seconds + 1):
        tasks = [batch.function(noop, number) for number in range(TASKS_PER_SECOND)]
        batch.compile(tasks).run()
        time.sleep(max(0.0, began + second - time.perf_counter()))


@contextlib.contextmanager
def open_page(link: str) -> Iterator[None]:
    """Show the page as a browser does: by a session that receives all its changes."""
    session = pull_session(url=link)
    try:
        yield
    finally:
        session.close()


def main() -> None:
    table = Table("the page /daskbatch")
    with Batch(num_workers=WORKERS) as batch:
        scheduler = psutil.Process(batch.client.run_on_scheduler(os.getpid))
        link = batch.client.dashboard_link.replace("status", "daskbatch")
        urllib.request.urlopen(link, timeout=60).close()  # the first request loads the pages
        with open_page(link):
            run_for(batch, 2)

        def part_of_time() -> float:
            before, began = scheduler.cpu_times(), time.perf_counter()
            run_for(batch, SECONDS)
            after = scheduler.cpu_times()
            used = after.user + after.system - before.user - before.system
            return 100 * used / (time.perf_counter() - began)

        closed, opened = [], []
        for _ in range(ROUNDS):
            closed.append(part_of_time())
            with open_page(link):
                opened.append(part_of_time())
    table.row("the scheduler's processor time, page closed", statistics.median(closed), "%")
    table.row("the same, page open", statistics.median(opened), "%")
    cost = statistics.median(o - c for o, c in zip(opened, closed, strict=True))
    table.row_at_most("cost of the page", cost, "%", 2.0)
    table.end()


if __name__ == "__main__":
    main()

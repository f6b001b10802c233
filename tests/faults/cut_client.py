"""A program whose host is cut off while all of its calls wait: `links` with ``--clients`` runs it.

It prints a line with the ids of its shared objects, and reads a line once the link works again,
whether or not that is in time. It prints how each call ends, as JSON, a line for each: the name of
the call, and "right", "wrong: ..." or "failed: ..." with a typed error.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from daskbatch import Batch, BatchError

TASKS = 20


def task_of_cut_client(number: int) -> int:
    time.sleep(0.1)
    return number


class Calls:
    """Calls in threads of their own; each reports how it ends."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def start(self, name: str, function: Callable[[], Any], right: Callable[[Any], bool]) -> None:
        """Begin a call; `right` says whether its result is as it must be."""

        def call() -> None:
            try:
                found = function()
                outcome = "right" if right(found) else f"wrong: {found!r}"
            except BatchError as error:
                outcome = f"failed: {type(error).__name__}: {error}"
            except BaseException as error:
                outcome = f"wrong: {error!r}"
            print(json.dumps([name, outcome]) + "\n", end="", flush=True)

        thread = threading.Thread(target=call, name=name)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait until all calls have ended."""
        for thread in self._threads:
            thread.join()


def use(batch: Batch, calls: Calls) -> None:
    """Begin calls that wait, say so, and end them once the link works again."""
    counts, keys = batch.ddict(replicas=2), batch.ddict(wait_for_keys=True)
    queue = batch.queue()
    counts["count"] = 0
    tasks = [batch.function(task_of_cut_client, number) for number in range(TASKS)]
    program = batch.compile(tasks)
    is_mended = threading.Event()

    def count() -> tuple[int, int]:
        done = 0
        while not is_mended.wait(0.02):
            counts.fetch_add("count")
            done += 1
        return done, counts["count"]

    program.start()
    calls.start("tasks", lambda: [task.get() for task in tasks], list(range(TASKS)).__eq__)
    calls.start("count", count, lambda found: found[0] == found[1])
    calls.start("queue", queue.get, "item".__eq__)
    calls.start("key", lambda: keys["key"], "value".__eq__)
    print(json.dumps([each._proxy.uid for each in (counts, keys, queue)]), flush=True)
    sys.stdin.readline()
    is_mended.set()
    calls.start("put", lambda: queue.put("item"), lambda found: found is None)
    calls.start("write", lambda: keys.__setitem__("key", "value"), lambda found: found is None)


def main() -> None:
    calls = Calls()
    with Batch(sys.argv[1]) as batch:
        while not batch.num_workers:
            time.sleep(0.05)
        use(batch, calls)
        calls.join()


if __name__ == "__main__":
    main()

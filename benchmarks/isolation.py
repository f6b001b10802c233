"""Times what isolation costs: short functions in children, compared with the same in threads.

Both run on the same two workers of one thread. Tasks with a timeout that never fires are compared
with tasks without one, too.
"""

from __future__ import annotations

from common import WORKERS, Table, seconds

from daskbatch import Batch

SIZES = (1_000, 5_000, 10_000)


def noop(number: int) -> int:
    return number


def run(batch: Batch, count: int, **options: object) -> None:
    configured = batch.options(**options)  # type: ignore[arg-type]
    tasks = [configured.function(noop, number) for number in range(count)]
    batch.compile(tasks).run()
    assert [task.result.get() for task in tasks] == list(range(count))


def main() -> None:
    kinds: dict[str, dict[str, object]] = {
        "thread": {"isolation": "thread"},
        "child": {"isolation": "process"},
        "timeout": {"isolation": "process", "timeout": 60.0},
    }
    rates: dict[tuple[str, int], float] = {}
    with Batch(num_workers=WORKERS) as batch:
        for options in kinds.values():
            run(batch, 1_000, **options)
        for count in SIZES:
            # They run in turn, so that other work of the machine slows all of them down.
            times: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(9):
                for kind, options in kinds.items():
                    times[kind].append(seconds(lambda n=count, o=options: run(batch, n, **o)))  # type: ignore[misc]
            for kind, found in times.items():
                rates[kind, count] = count / sorted(found)[len(found) // 2]

    table = Table("short functions in child processes: their rate over that in threads")
    for count in SIZES:
        last = count == SIZES[-1]
        table.row(
            f"{count} in children against in threads",
            rates["child", count] / rates["thread", count],
            least=1 / 3 if last else None,
        )
    for count in SIZES:
        table.row(
            f"{count} with a timeout that never fires against without",
            rates["timeout", count] / rates["child", count],
            least=0.9 if count == SIZES[-1] else None,
        )
    table.row("rate in children", rates["child", SIZES[-1]], "/s")
    table.row("rate in threads", rates["thread", SIZES[-1]], "/s")
    table.end()


if __name__ == "__main__":
    main()

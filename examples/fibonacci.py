"""Computes Fibonacci's numbers, each by a task that reads the two before it: through files, and
through a distributed dictionary. The order of the tasks follows from what they read and write.
"""

import tempfile
from pathlib import Path

from daskbatch import Batch, DDict

COUNT = 200


def add_files(directory: Path, n: int) -> None:
    """Write the n-th number to a file; read the two before it from theirs."""
    two_before = [int((directory / f"fib_{k}").read_text()) for k in (n - 2, n - 1)]
    (directory / f"fib_{n}").write_text(str(sum(two_before)))


def add_keys(numbers: DDict, n: int) -> None:
    """Write the n-th number under a key; read the two before it from theirs."""
    numbers[n] = numbers[n - 2] + numbers[n - 1]


def through_files(batch: Batch, directory: Path) -> list[int]:
    for n in (0, 1):
        (directory / f"fib_{n}").write_text(str(n))
    tasks = [
        batch.function(
            add_files,
            directory,
            n,
            reads=[batch.read(directory, f"fib_{n - 2}", f"fib_{n - 1}")],
            writes=[batch.write(directory, f"fib_{n}")],
        )
        for n in range(2, COUNT)
    ]
    batch.compile(tasks).run()
    return [int((directory / f"fib_{n}").read_text()) for n in range(COUNT)]


def through_a_ddict(batch: Batch) -> list[int]:
    numbers = batch.ddict()
    numbers.update({0: 0, 1: 1})
    tasks = [
        batch.function(
            add_keys,
            numbers,
            n,
            reads=[batch.read(numbers, n - 2, n - 1)],
            writes=[batch.write(numbers, n)],
        )
        for n in range(2, COUNT)
    ]
    batch.compile(tasks).run()
    found = numbers.get_many(range(COUNT))
    return [found[n] for n in range(COUNT)]


def main() -> None:
    with tempfile.TemporaryDirectory() as place, Batch() as batch:
        by_file, by_key = through_files(batch, Path(place)), through_a_ddict(batch)
    print("the first:", *by_key[:12])
    print("the last:", by_key[-1])
    print("the same through files:", by_file == by_key)


if __name__ == "__main__":
    main()

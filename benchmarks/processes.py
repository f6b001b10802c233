"""Compares runs of /bin/true with `xargs -P2`."""

from __future__ import annotations

import subprocess

from common import WORKERS, Table, seconds

from daskbatch import Batch

SIZES = (300, 1_000, 3_000)


def by_batch(batch: Batch, count: int) -> None:
    program = batch.compile([batch.process("/bin/true") for _ in range(count)])
    program.run()
    assert program.get() == [0] * count


def by_xargs(count: int) -> None:
    lines = "\n".join(map(str, range(count)))
    subprocess.run(
        ["xargs", f"-P{WORKERS}", "-n1", "/bin/true"], input=lines, text=True, check=True
    )


def main() -> None:
    table = Table("runs of /bin/true: our rate over that of xargs -P2")
    with Batch(num_workers=WORKERS) as batch:
        by_batch(batch, 50)
        for count in SIZES:
            ours = count / seconds(lambda n=count: by_batch(batch, n), 3)
            theirs = count / seconds(lambda n=count: by_xargs(n), 3)
            table.row(f"{count} runs", ours / theirs, least=0.5 if count == 1_000 else None)
    table.end()


if __name__ == "__main__":
    main()

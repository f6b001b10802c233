"""Merges the profiles of processes, over all workers or for each, and prints the parts.

Any thread may call these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import IO, TypeVar

from daskbatch.execute.profiling.cluster_profiler import WorkerProfile
from daskbatch.execute.workers.worker import Worker

P = TypeVar("P")


def merge(found: Iterable[WorkerProfile], merge_pieces: Callable[[Iterable[bytes]], P]) -> P:
    """Return one profile of all processes."""
    return merge_pieces(piece for _, pieces in found for piece in pieces)


def merge_per_worker(
    found: Iterable[WorkerProfile], merge_pieces: Callable[[Iterable[bytes]], P]
) -> list[tuple[Worker, P]]:
    """Return one profile for each worker: of its process and its children."""
    return [(worker, merge_pieces(pieces)) for worker, pieces in found]


def print_parts(
    parts: P | Sequence[tuple[Worker, P]], print_part: Callable[[P], object], out: IO[str]
) -> None:
    """Print one profile of all workers; or, of a sequence, the profile of each under its name."""
    if not isinstance(parts, list):
        print_part(parts)  # type: ignore[arg-type]
        return
    for worker, part in parts:
        print(f"Worker {worker.name} ({worker.address})", file=out)
        print_part(part)

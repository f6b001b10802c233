"""The programs of `data.py`, for any system that runs functions; needs NumPy alone.

`data_ray.py` runs them in an interpreter that has Ray and not daskbatch.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

LARGE = 10_000_000  # numbers: 80 MB
SMALL = 125_000  # numbers: 1 MB


class System(Protocol):
    """What runs functions."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in another process; references among the arguments are its inputs."""

    def get(self, reference: Any) -> Any:
        """Return what a call has returned."""

    def wait(self, reference: Any) -> None:
        """Wait until a call is over, and leave its value where it is."""

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Call a function with each of some items."""


def make(number: float, count: int = LARGE) -> Any:
    return np.full(count, float(number))


def make_small(number: float) -> Any:
    return np.full(SMALL, float(number))


def increase(array: Any) -> Any:
    return array + 1


def last(array: Any) -> float:
    return float(array[-1])


def same(array: Any) -> Any:
    return array


def total(*arrays: Any) -> float:
    return float(sum(array.sum() for array in arrays))


def make_frames(count: int, rows: int) -> list[Any]:
    import pandas as pd

    numbers = np.arange(rows)
    return [pd.DataFrame({"key": numbers % 100, "value": numbers * 1.5}) for _ in range(count)]


def group(frames: list[Any]) -> float:
    return float(sum(frame.groupby("key")["value"].sum().iloc[0] for frame in frames))


def make_dict(number: int) -> dict[int, str]:
    return {n: str(n + number) for n in range(300_000)}


def make_frame(number: int) -> Any:
    return make_frames(1, 500_000)[0]


def group_frames(*frames: Any) -> float:
    return group(list(frames))


def make_dicts(count: int) -> list[dict[int, str]]:
    return [make_dict(number) for number in range(count)]


def count_all(dicts: list[dict[int, str]]) -> int:
    return sum(map(len, dicts))


def count_items(*dicts: dict[int, str]) -> int:
    return sum(map(len, dicts))


def chain(system: System) -> None:
    run_chain(system, 20, LARGE)


def run_chain(system: System, hops: int, count: int) -> list[Any]:
    """Return the references: as long as they are there, others need other memory."""
    references = [system.submit(make, 0, count)]
    for _ in range(hops):
        references.append(system.submit(increase, references[-1]))
    assert system.get(system.submit(last, references[-1])) == hops
    return references


def fan_in(system: System) -> None:
    references = [system.submit(make, number) for number in range(8)]
    assert system.get(system.submit(total, *references)) == sum(range(8)) * LARGE


def map_in(system: System) -> None:
    arrays = [make_small(number) for number in range(200)]
    assert system.map(last, arrays) == list(range(200))


def map_out(system: System) -> None:
    assert [array[0] for array in system.map(make_small, list(range(200)))] == list(range(200))


def map_both(system: System) -> None:
    arrays = [make_small(number) for number in range(200)]
    assert [array[0] for array in system.map(same, arrays)] == list(range(200))


def frames(system: System) -> None:
    references = [system.submit(make_frame, number) for number in range(40)]
    assert system.get(system.submit(group_frames, *references)) > 0


def dicts(system: System) -> None:
    references = [system.submit(make_dict, number) for number in range(20)]
    assert system.get(system.submit(count_items, *references)) == 20 * 300_000


def frames_of_one(system: System) -> None:
    assert system.get(system.submit(group, system.submit(make_frames, 40, 500_000))) > 0


def dicts_of_one(system: System) -> None:
    assert system.get(system.submit(count_all, system.submit(make_dicts, 20))) == 20 * 300_000


def get_large(system: System) -> float:
    reference = system.submit(make, 3)
    system.wait(reference)
    began = time.perf_counter()
    array = system.get(reference)
    assert array[-1] == 3.0
    return time.perf_counter() - began


def put_large(system: System) -> float:
    array = make(4)
    began = time.perf_counter()
    assert system.get(system.submit(last, array)) == 4.0
    return time.perf_counter() - began


PROGRAMS: dict[str, Callable[[System], float | None]] = {
    "20 hops of 80 MB": chain,
    "8 arrays of 80 MB into one task": fan_in,
    "200 arguments of 1 MB by map": map_in,
    "200 results of 1 MB by map": map_out,
    "200 arguments and results of 1 MB": map_both,
    "40 frames of one task, grouped in another": frames_of_one,
    "20 dicts of 300 000 items of one task, counted in another": dicts_of_one,
    "40 frames of 40 tasks, grouped": frames,
    "20 dicts of 20 tasks, counted": dicts,
    "80 MB to the client": get_large,
    "80 MB as an argument": put_large,
}


def run_once(system: System, name: str) -> float:
    """Return the time of one run of a program. Seconds."""
    gc.collect()
    began = time.perf_counter()
    seconds = PROGRAMS[name](system)
    return time.perf_counter() - began if seconds is None else seconds

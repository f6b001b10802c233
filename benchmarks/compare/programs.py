"""The programs that all libraries run, as lists of calls.

A program is a list of `Call`s. An argument `Result(i)` stands for the result of the i-th call,
which comes earlier in the list. `expected` is what the last call returns: a library that returns
something else has no time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Result(NamedTuple):
    """Stands for the result of an earlier call."""

    index: int


class Call(NamedTuple):
    """A function and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """Calls, and what the last of them returns."""

    title: str
    calls: list[Call]
    expected: Any


def nothing(*_: Any) -> int:
    return 1


def add_one(value: int) -> int:
    return value + 1


def last_of(*values: Any) -> int:
    return len(values)


def spin(seconds: float, *values: int) -> int:
    """Use the CPU for a time; return one more than the largest value."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return max(values, default=0) + 1


def make_array(size: int) -> np.ndarray[Any, Any]:
    return np.ones(size // 8)


def add_to_array(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array + 1


def first_item(array: np.ndarray[Any, Any]) -> float:
    return float(array[0])


def flat(count: int = 5_000) -> Program:
    calls = [Call(nothing, (number,)) for number in range(count)]
    ends = tuple(Result(number) for number in range(count))
    return Program(f"{count:,} independent no-ops", [*calls, Call(last_of, ends)], count)


def chain(count: int = 500) -> Program:
    calls = [Call(add_one, (0,))]
    calls += [Call(add_one, (Result(number),)) for number in range(count - 1)]
    return Program(f"a chain of {count:,} calls", calls, count)


def stencil(width: int = 4, steps: int = 40, seconds: float = 0.001) -> Program:
    calls = [Call(spin, (seconds,)) for _ in range(width)]
    for step in range(1, steps):
        before = (step - 1) * width
        for column in range(width):
            near = range(max(0, column - 1), min(width, column + 2))
            calls.append(Call(spin, (seconds, *(Result(before + each) for each in near))))
    ends = tuple(Result(len(calls) - width + column) for column in range(width))
    calls.append(Call(spin, (0.0, *ends)))
    return Program(f"a stencil of {width} x {steps} calls of 1 ms", calls, steps + 1)


def arrays(hops: int = 10, size: int = 40_000_000) -> Program:
    calls = [Call(make_array, (size,))]
    calls += [Call(add_to_array, (Result(number),)) for number in range(hops)]
    calls.append(Call(first_item, (Result(hops),)))
    return Program(f"{hops} hops of an array of {size // 1_000_000} MB", calls, hops + 1.0)


def gather(count: int = 8, size: int = 20_000_000) -> Program:
    calls = [Call(make_array, (size,)) for _ in range(count)]
    calls.append(Call(last_of, tuple(Result(number) for number in range(count))))
    return Program(f"{count} arrays of {size // 1_000_000} MB into one call", calls, count)


def workflow(speed: float = 20_000) -> Program:
    """Montage as WfCommons makes it: an example runs it by files, this program by results."""
    instance = Path(__file__).parents[2] / "examples" / "wfcommons_montage.json"
    content = json.loads(instance.read_text("utf-8"))["workflow"]
    parents = {each["id"]: each["parents"] for each in content["specification"]["tasks"]}
    seconds = {each["id"]: each["runtimeInSeconds"] for each in content["execution"]["tasks"]}
    positions: dict[str, int] = {}
    depths: list[int] = []
    calls: list[Call] = []
    for name in TopologicalSorter(parents).static_order():
        before = [positions[each] for each in parents[name]]
        arguments = (seconds[name] / speed, *(Result(each) for each in before))
        positions[name] = len(calls)
        calls.append(Call(spin, arguments))
        depths.append(max((depths[each] for each in before), default=0) + 1)
    calls.append(Call(spin, (0.0, *(Result(number) for number in range(len(calls))))))
    total = sum(seconds.values()) / speed
    title = f"WfCommons: Montage, {len(parents)} calls of {total / len(parents):.3f} s on average"
    return Program(title, calls, max(depths) + 1)


#: The programs that are graphs of calls, by their names.
GRAPHS = {each.__name__: each for each in (flat, chain, stencil, workflow, arrays, gather)}

"""Runs programs of `data_programs.py` with Ray: reads their names, and prints the seconds of each.

`data.py` starts it with the interpreter that the environment variable RAY_PYTHON names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import ray
from data_programs import run_once


class Ray:
    def __init__(self) -> None:
        self._remotes: dict[Callable[..., Any], Any] = {}

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        remote = self._remotes.setdefault(function, ray.remote(function))
        return remote.remote(*args)

    def get(self, reference: Any) -> Any:
        return ray.get(reference)

    def wait(self, reference: Any) -> None:
        ray.wait([reference], fetch_local=False)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        values: list[Any] = ray.get([self.submit(function, item) for item in items])
        return values


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=6 << 30)
    system = Ray()
    for line in sys.stdin:
        print(run_once(system, line.strip()), flush=True)
    ray.shutdown()

"""Tasks may use the interpreters of Python 3.14 (PEP 734), and print in them."""

from __future__ import annotations

import sys

import pytest

from daskbatch import Batch

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="needs Python 3.14")


def powers() -> list[int]:
    from concurrent.futures import InterpreterPoolExecutor  # type: ignore[attr-defined]

    with InterpreterPoolExecutor(2) as pool:
        return list(pool.map(pow, [2, 3, 4], [2, 2, 2]))


def say(text: str) -> int:
    from concurrent import interpreters  # type: ignore[attr-defined]

    made = interpreters.create()
    try:
        made.exec(f"print({text!r}, flush=True)")
        return int(made.call(len, (1, 2, 3)))
    finally:
        made.close()


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_pool_of_interpreters_in_a_task(batch: Batch, isolation: str) -> None:
    task = batch.options(isolation=isolation).function(powers)
    task.run(timeout=60)
    assert task.get() == [4, 9, 16]


def test_what_an_interpreter_prints_is_output_of_an_isolated_task(batch: Batch) -> None:
    task = batch.options(isolation="process").function(say, "from an interpreter")
    task.run(timeout=60)
    assert task.get() == 3
    assert task.stdout.get().strip() == "from an interpreter"

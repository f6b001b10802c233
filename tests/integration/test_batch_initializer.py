"""What an initializer of a Batch sets holds in its tasks; a subclass of Batch arrives as itself."""

from __future__ import annotations

import decimal
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskbatch import Batch, ServiceLost, SpecError, as_executor

SECONDS = 60


def set_libraries_up(digits: int, level: int, *, raising: str = "raise") -> None:
    decimal.getcontext().prec = digits
    logging.getLogger("of the tasks").setLevel(level)
    np.seterr(divide=raising)


def third() -> str:
    return str(decimal.Decimal(1) / 3)


def level_of_logger() -> int:
    return logging.getLogger("of the tasks").getEffectiveLevel()


def divide_by_zero() -> str:
    try:
        np.array([1.0]) / 0
    except FloatingPointError:
        return "raised"
    return "ignored"


def all_settings(_: int) -> tuple[str, int, str]:
    return third(), level_of_logger(), divide_by_zero()


@pytest.fixture(scope="module")
def prepared() -> Any:
    arguments = 5, logging.ERROR
    with Batch(num_workers=2, initializer=set_libraries_up, initargs=arguments) as batch:
        yield batch


@pytest.mark.parametrize("isolation", ["thread", "process", "fresh"])
def test_settings_of_libraries_hold_in_every_task(prepared: Batch, isolation: str) -> None:
    count = 1 if isolation == "fresh" else 8  # each task starts a child then
    options = prepared.options(isolation=isolation)
    tasks = [options.function(all_settings, number) for number in range(count)]
    program = prepared.compile([*tasks, options.function(third), options.function(level_of_logger)])
    program.run(SECONDS, check=True)
    *found, text, level = program.get()
    assert set(found) == {("0.33333", logging.ERROR, "raised")}
    assert (text, level) == ("0.33333", logging.ERROR)


def test_they_hold_in_the_map_of_an_executor_of_the_batch(prepared: Batch) -> None:
    executor = as_executor(prepared)
    found = list(executor.map(all_settings, range(6), chunksize=2, timeout=SECONDS))
    assert found == [("0.33333", logging.ERROR, "raised")] * 6


def look(number: int) -> tuple[int, str]:
    return number, third()


def test_they_hold_on_the_ranks_of_a_job(prepared: Batch) -> None:
    job = prepared.job(look, 7, num_procs=2)
    job.run(SECONDS, check=True)
    assert job.get() == [(7, "0.33333")] * 2


def fail(text: str) -> None:
    raise ValueError(text)


def test_an_initializer_that_fails_is_the_error_of_each_task() -> None:
    with Batch(num_workers=1, initializer=fail, initargs=("not ready",)) as batch:
        for isolation in ("thread", "process"):
            task = batch.options(isolation=isolation).function(third)
            task.run(SECONDS)
            with pytest.raises(ServiceLost, match="not ready"):
                task.get()


def test_an_initializer_must_be_callable() -> None:
    with pytest.raises(SpecError, match="initializer="):
        Batch(initializer="set_up")  # type: ignore[arg-type]


class Labelled(Batch):
    """A Batch with an attribute and a method of its own."""

    def __init__(self, *args: Any, label: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.label = label

    def shout(self) -> str:
        return self.label.upper()


def use(batch: Any) -> tuple[str, str, str, int]:
    inner = batch.function(pow, 3, 2)
    inner.run()
    return type(batch).__qualname__, type(batch).__module__, batch.shout(), inner.get()


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_subclass_of_batch_arrives_as_itself(batch: Batch, isolation: str) -> None:
    address = str(batch.client.scheduler_info()["address"])
    with Labelled(address, label="mine ü") as own:
        task = own.options(isolation=isolation).function(use, own)
        task.run(SECONDS)
        assert task.get() == ("Labelled", __name__, "MINE Ü", 9)


def test_a_subclass_of_batch_is_unpickled_as_itself(batch: Batch) -> None:
    address = str(batch.client.scheduler_info()["address"])
    with Labelled(address, label="one") as own:
        copy = pickle.loads(pickle.dumps(own))
        assert type(copy) is Labelled
        assert copy.shout() == "ONE"
        copy.close()


SCRIPT = """
import decimal
from daskbatch import Batch

class Own(Batch):
    label = "of the class"
    def shout(self):
        return self.label.upper()

def prepare(digits):
    decimal.getcontext().prec = digits

def use(batch):
    inner = batch.function(third)
    inner.run()
    return type(batch) is Own, batch.label, batch.shout(), inner.get()

def third():
    return str(decimal.Decimal(1) / 3)

with Own(initializer=prepare, initargs=(4,)) as batch:
    batch.label = "of this one"
    for isolation in "thread", "process":
        task = batch.options(isolation=isolation).function(use, batch)
        task.run()
        print(*task.get(), sep=", ")
"""


def test_both_of_a_script(prepared: Batch, tmp_path: Path) -> None:
    script = tmp_path / "ä script.py"
    script.write_text(SCRIPT)
    address = str(prepared.client.scheduler_info()["address"])
    environment = {**os.environ, "DASKBATCH_CLUSTER": address}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=200, env=environment
    )
    assert not done.returncode, done.stderr
    assert done.stdout.splitlines() == ["True, of this one, OF THIS ONE, 0.3333"] * 2

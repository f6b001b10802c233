"""Options take what is a text, a number or a path by its protocol; messages say what to do."""

from __future__ import annotations

import asyncio
import enum
import os
import pickle
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest
from distributed import LocalCluster

from daskbatch import (
    Batch,
    BatchWarning,
    DDict,
    GraphError,
    ProcessFailed,
    SpecError,
    as_executor,
)

SECONDS = 60


class Word(enum.StrEnum):
    NAME = "a name"
    THREAD = "thread"
    SHARED = "shared-by-word"
    VARIABLE = "DASKBATCH_TEST"


class Count(enum.IntEnum):
    TWO = 2


class Place:
    """A path by its protocol.

    Parameters
    ----------
    path : str
        The path.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)

    def __fspath__(self) -> str:
        return self._path


@pytest.mark.parametrize("count", [Count.TWO, np.int64(2), np.uint8(2), 2])
@pytest.mark.parametrize("number", [Count.TWO, np.float32(2), np.int16(2), 2.0])
def test_numbers(batch: Batch, count: Any, number: Any) -> None:
    task = batch.options(retries=count, priority=number, timeout=number).function(len, "abc")
    task.run(timeout=SECONDS)
    assert task.get() == 3
    queue = batch.queue(maxsize=count)
    queue.close()


def test_texts(batch: Batch) -> None:
    make = batch.options(name=Word.NAME, isolation=Word.THREAD, retries=np.int64(0)).function
    task = make(len, "abc")
    task.run(timeout=SECONDS)
    assert (type(task.name), task.name, task.get()) == (str, "a name", 3)
    variables = {Word.VARIABLE: Word.NAME}
    task = batch.options(env=variables).function(os.getenv, "DASKBATCH_TEST")
    task.run(timeout=SECONDS)
    assert task.get() == "a name"
    shared = batch.ddict(name=Word.SHARED, shards=np.int64(1))
    shared["key"] = 1
    assert batch.ddict(name="shared-by-word")["key"] == 1
    shared.close()


def test_paths(batch: Batch, tmp_path: Path) -> None:
    place, source = Place(tmp_path), Place(tmp_path / "source")
    Path(source).write_text("content")
    task = batch.options(cwd=place).function(os.getcwd)
    tasks = [
        batch.process(Place("/bin/cat"), stdin=source, cwd=place, reads=batch.read(source)),
        batch.process("cat", source, reads=batch.read(place, Place("source"))),
    ]
    for each in (task, *tasks):
        each.run(timeout=SECONDS)
    assert task.get() == str(tmp_path)
    assert [each.stdout.get() for each in tasks] == ["content", "content"]
    assert batch.read(place) == batch.read(str(tmp_path))
    with batch.open(source) as file:
        assert file.read() == "content"


def test_a_set_of_tasks_has_no_order(batch: Batch) -> None:
    tasks = [batch.function(len, "a") for _ in range(2)]
    for wrong in (set(tasks), frozenset(tasks)):
        with pytest.raises(GraphError, match="has no order"):
            batch.compile(wrong)
    batch.compile(dict.fromkeys(tasks)).run(timeout=SECONDS)
    assert [task.get() for task in tasks] == [1, 1]


def test_objects_in_dasks_configuration_do_not_keep_a_batch_from_starting() -> None:
    from concurrent.futures import ThreadPoolExecutor

    objects: dict[str, Any] = {
        "pool": ThreadPoolExecutor(1),
        "test-objects": {"path": Path("a"), "set": {1}, "object": object(), "count": Count.TWO},
        "temporary-directory": Path("/tmp"),
    }
    with dask.config.set(objects), Batch(num_workers=1) as batch:
        task = batch.function(dask.config.get, "test-objects")
        task.run(timeout=SECONDS)
        assert task.get() == {"path": "a", "set": [1], "count": 2}


@pytest.mark.parametrize(
    "setting", ['"daskbatch.output-limit": "7B"', '"daskbatch": {"output-limit": "7B"}']
)
def test_a_first_use_within_a_block_of_settings_keeps_the_defaults(setting: str) -> None:
    code = f"""
import dask.config
with dask.config.set({{{setting}}}):
    import daskbatch.config as config
    assert config.get_bytes("output-limit") == 7
    assert config.get_bytes("share-limit") == 1 << 20
assert config.get_bytes("output-limit") == 10 << 20
assert config.get("cluster") is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=SECONDS)


# -- messages -------------------------------------------------------------------------------


def test_where_an_executable_was_looked_for(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "plain.sh").write_text("echo")
    (tmp_path / "odd.sh").write_text("#!/no/such/interpreter\n")
    (tmp_path / "odd.sh").chmod(0o755)
    for target, said in (
        ("./missing.sh", f"there is no {tmp_path}/missing.sh"),
        ("./plain.sh", f"{tmp_path}/plain.sh has no permission to be executed"),
        ("./odd.sh", f"{tmp_path}/odd.sh is there, but not the interpreter"),
        ("plain.sh", f"{tmp_path}/plain.sh is there: write ./plain.sh"),
        ("./", f"{tmp_path} is a directory"),
    ):
        task = batch.process(target, cwd=tmp_path)
        task.run(timeout=SECONDS)
        with pytest.raises(ProcessFailed) as caught:
            task.get()
        assert said in str(caught.value)


def test_a_batch_in_a_directory_that_was_deleted(tmp_path: Path) -> None:
    code = (
        # Python 3.13.0 cannot import the module `socket` in a directory that was deleted.
        "import os\nfrom daskbatch import Batch\n"
        "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "try: Batch()\n"
        "except FileNotFoundError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert "the current directory of this process has been deleted" in done.stdout, done.stderr


def test_an_asynchronous_cluster_object() -> None:
    async def use() -> None:
        options = {"n_workers": 0, "processes": False, "dashboard_address": ":0"}
        async with LocalCluster(**options, asynchronous=True) as cluster:
            with pytest.raises(SpecError, match="asynchronous cluster object"):
                Batch(cluster)

    asyncio.run(use())


def test_a_handle_is_no_part_of_a_text(batch: Batch) -> None:
    task = batch.function(len, "abc")
    for handle in (task.result, task.stdout, task.stderr):
        with pytest.raises(TypeError, match=r"give the handle itself .* \.get\(\)|get\(\)"):
            f"{handle}"
        assert "of <Task 'len'" in f"{handle!r}"


def test_a_generator_whose_state_is_sent_is_warned_of(batch: Batch) -> None:
    executor = as_executor(batch)
    with pytest.warns(BatchWarning, match="'rand' draw the same numbers") as caught:
        draws = list(executor.map(np.random.rand, [1] * 3))
    assert draws[0] == draws[1] == draws[2]
    assert caught[0].filename == __file__
    for function in (random.random, np.random.default_rng().normal):
        with pytest.warns(BatchWarning, match="draw the same numbers"):
            executor.submit(function).result(SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(executor.map("a".join, [["b", "c"]])) == ["bac"]
        assert list(executor.map(pickle.dumps, [1], chunksize=2)) == [pickle.dumps(1)]


def test_a_shared_dictionary_keeps_what_is_unhashable_out(batch: Batch) -> None:
    shared: DDict = batch.ddict()
    with pytest.raises(SpecError, match="must be hashable"):
        batch.read(shared, [1])
    shared.close()

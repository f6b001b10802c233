"""The notebooks run from the first to the last cell in a real kernel, as a reader runs them."""

from __future__ import annotations

import copy
import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.notebooks import code_cells, execute, outputs, read
from support.paths import NOTEBOOKS as DIRECTORY

NOTEBOOKS = sorted(DIRECTORY.glob("*.ipynb"))


def text_of(notebook: Any) -> str:
    """Return all that the cells of a notebook have printed."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def processes_in(directory: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(directory):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run a notebook, its first cell twice; return it and the directory that it ran in."""
    directory = tmp_path_factory.mktemp("notebook")
    notebook = read(request.param)
    first = notebook.cells.index(code_cells(notebook)[0])
    again = copy.deepcopy(notebook.cells[first])
    again.id += "-again"
    notebook.cells.insert(first + 1, again)
    execute(notebook, directory)
    return request.param, notebook, directory


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def test_its_outputs_are_stored(executed: tuple[Path, Any, Path]) -> None:
    path, notebook, directory = executed
    first, _again, *rest = outputs(notebook, directory)
    assert outputs(read(path)) == [first, *rest], "run `make notebooks`"


def test_every_cell_ran_and_nothing_complained(executed: tuple[Path, Any, Path]) -> None:
    _, notebook, _ = executed
    for cell in code_cells(notebook):
        assert cell.execution_count is not None
        for output in cell.outputs:
            assert output.output_type != "error", output
            assert output.get("name") != "stderr", output.text


def test_nothing_is_left_running(executed: tuple[Path, Any, Path]) -> None:
    _, _, directory = executed
    for _ in range(3000):
        left = processes_in(directory)
        if not left:
            break
        threading.Event().wait(0.01)
    assert not left


def test_the_first_one_shows_what_it_says(executed: tuple[Path, Any, Path]) -> None:
    path, notebook, directory = executed
    if path.stem != "1-first-batch":
        pytest.skip("this test is of the first notebook")
    said = text_of(notebook)
    assert "2 workers" in said
    assert "Askim: " in said
    assert "clean Esbjerg: " in said
    assert "the root of it: clean Esbjerg" in said
    assert "clean Askim again is done" in said
    assert "'clean Askim' (4) waits for 'measure Askim' (0)" in said
    pictures = [
        output.data["image/svg+xml"]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/svg+xml" in output.get("data", {})
    ]
    assert len(pictures) == 1
    assert "put together" in pictures[0]
    assert sorted(os.listdir(directory)) == ["first-batch"]


def test_the_one_of_jobs_shows_what_it_says(executed: tuple[Path, Any, Path]) -> None:
    path, notebook, _ = executed
    if path.stem != "5-parallel-job":
        pytest.skip("this test is of the notebook of jobs")
    said = text_of(notebook)
    assert "exit code 0\nrank 0 of 2 has added 50000 terms\npi is about 3.141593\nrank 1" in said
    assert "['2', '4']" in said
    assert "task 'simulate': rank 1 of 2: sh ended with exit code 3\n" in said
    assert "stderr of rank 0: rank 0 begins" in said
    assert "[0, 0]\nocean, rank 0\natmosphere, rank 1" in said
    assert "[25, 25]" in said

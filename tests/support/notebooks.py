"""Runs notebooks in a real kernel; as a program, stores the outputs in those of `notebooks/`.

``python -m support.notebooks [NAME ...]`` in `tests/`: runs each notebook, or the named ones, and
stores their outputs, as `make notebooks` does.
"""

from __future__ import annotations

import copy
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import nbclient
import nbformat
from support.paths import NOTEBOOKS

#: What is another thing in each run: addresses, times, ids.
_CHANGING = [
    (re.compile(r"http://[\w.:]+(/\w+)*"), "http://address"),
    (re.compile(r"\b\d+\.\d+ ?s\b"), "SECONDS s"),
]

#: What stands in stored outputs in place of the directory that a notebook ran in.
_DIRECTORY = "/home/me"


def read(path: Path) -> Any:
    """Read a notebook from its file."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    """Return the cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: Any, directory: Path) -> None:
    """Run a notebook in a directory, with the kernel of this very Python.

    Parameters
    ----------
    notebook : notebook
        Its outputs are replaced.
    directory : Path
        The working directory.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        variables = {
            # Whatever else the user has installed.
            "JUPYTER_DATA_DIR": elsewhere,
            "JUPYTER_PREFER_ENV_PATH": "1",
            "IPYTHONDIR": elsewhere,
        }
        with mock.patch.dict(os.environ, variables):
            nbclient.NotebookClient(
                notebook,
                timeout=100,
                kernel_name="python3",
                resources={"metadata": {"path": str(directory)}},
            ).execute()


def outputs(notebook: Any, directory: Path | None = None) -> list[list[tuple[str, str]]]:
    """Return what each cell shows, without what differs between runs.

    Parameters
    ----------
    notebook : notebook
        It has run.
    directory : Path, optional
        The directory that it ran in.

    Returns
    -------
    list of list of (str, str)
        For each code cell its outputs: their kind and their text. Of a picture or a form only the
        kind.
    """
    place = str(directory) if directory else _DIRECTORY
    return [
        [(kind, text.replace(place, _DIRECTORY)) for kind, text in map(_shown, _merged(cell))]
        for cell in code_cells(notebook)
    ]


def _merged(cell: Any) -> list[Any]:
    """Join what was written to one stream in pieces."""
    merged: list[Any] = []
    for output in cell.outputs:
        last = merged[-1] if merged else None
        if last is not None and "text" in last and last.get("name") == output.get("name"):
            last["text"] += output["text"]
        else:
            merged.append(copy.copy(output))
    for output in merged:
        if "text" in output:  # a bar is drawn over itself: its last state remains
            output["text"] = re.sub(r"[^\n]*\r(?!\n)", "", output["text"])
    return merged


def _shown(output: Any) -> tuple[str, str]:
    if "text" in output:
        return output["name"], stable(output["text"])
    data = output.get("data", {})
    kinds = sorted(data)
    return " ".join(kinds), stable(data["text/plain"]) if kinds == ["text/plain"] else ""


def stable(text: str) -> str:
    """Return a text in which words replace what differs between runs."""
    for pattern, word in _CHANGING:
        text = pattern.sub(word, text)
    return text


def store(path: Path) -> None:
    """Run a notebook and store its outputs in its file."""
    notebook = read(path)
    with tempfile.TemporaryDirectory() as directory:
        execute(notebook, Path(directory))
        for cell in code_cells(notebook):
            cell.metadata.pop("execution", None)
            cell.outputs = _merged(cell)
            for output in cell.outputs:
                if "text" in output:
                    output.text = output.text.replace(directory, _DIRECTORY)
    nbformat.write(notebook, path)


def main() -> None:
    names = sys.argv[1:]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not names or path.stem in names:
            print(path.stem)
            store(path)


if __name__ == "__main__":
    main()

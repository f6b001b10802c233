"""Writes the picture of a graph to a file: as SVG, DOT or PNG, or in a format that Graphviz makes.

Graphviz's ``dot`` runs in a process, and is waited for. Any thread may call `draw`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from daskbatch.errors import SpecError
from daskbatch.report.graphs.dot import to_dot
from daskbatch.report.graphs.picture import Picture
from daskbatch.report.graphs.png import write_png
from daskbatch.report.graphs.svg import to_svg
from daskbatch.report.whole_file import write_whole


def draw(picture: Picture, path: Path) -> Path:
    """Draw a picture into a file; return the path.

    Parameters
    ----------
    picture : Picture
        What is drawn.
    path : Path
        The file; its suffix chooses the format.

    Raises
    ------
    SpecError
        The format is unknown, needs what is not installed, or is not fit for so large a picture.
    OSError
        The file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".dot":
        write_whole(path, to_dot(picture))
    elif suffix == ".svg":
        write_whole(path, to_svg(picture))
    elif suffix != ".png" or not _draw_by_pillow(picture, path):
        _draw_by_graphviz(picture, path, suffix.removeprefix("."))
    return path


def _draw_by_pillow(picture: Picture, path: Path) -> bool:
    """Draw a PNG; return False if Pillow is not installed."""
    try:
        write_png(picture, path)
    except ImportError:
        return False
    return True


def _draw_by_graphviz(picture: Picture, path: Path, file_format: str) -> None:
    dot = shutil.which("dot")
    if dot is None:
        pillow = "Pillow (the extra daskbatch[dashboard]) or " if file_format == "png" else ""
        raise SpecError(
            f"to draw {path.name}, {pillow}Graphviz's 'dot' must be installed; {path.stem}.svg and "
            f"{path.stem}.dot can be made without it"
        )
    done = subprocess.run(
        [dot, f"-T{file_format}", "-o", path],
        input=to_dot(picture),
        text=True,
        encoding="utf-8",
        capture_output=True,
    )
    if done.returncode:
        raise SpecError(f"Graphviz cannot draw {path.name}: {done.stderr.strip()}")

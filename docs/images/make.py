"""Makes the pictures of docs/looking-at-a-run.md: ``python docs/images/make.py``.

Needs Chromium and the extra ``test``. The pictures are kept in the repository, so that pages show
them without either. Run it in the project's directory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from PIL import Image  # noqa: E402
from support.browser import WatchedPage, start_chromium  # noqa: E402

from daskbatch import Batch, CompiledTask  # noqa: E402


def work(seconds: float, output: Path | None = None, *_: object) -> float:
    """Work for some seconds, and write a file."""
    time.sleep(seconds)
    if output is not None:
        output.write_text("data")
    return seconds


def stumble(_: float) -> None:
    """Fail with some output."""
    print("reading 31 columns")
    raise ValueError("the input has no column 'mass'")


def make_program(batch: Batch, directory: Path) -> CompiledTask:
    """Return a program of some ten kinds of tasks."""
    raw, clean = directory / "raw.zip", directory / "clean"
    clean.mkdir(parents=True)
    csv = [clean / f"{n}.csv" for n in range(6)]
    write, read = batch.write, batch.read
    tasks = [batch.function(work, 0.15, raw, writes=[write(raw)], name="download")]
    for n in range(6):
        access = {"reads": [read(raw)], "writes": [write(csv[n])]}
        tasks.append(batch.function(work, 0.1 + 0.05 * n, csv[n], name="clean", **access))
    fits = [
        batch.function(work, 0.2 + 0.03 * n, reads=[read(csv[n])], name="fit") for n in range(6)
    ]
    tasks += fits
    tasks.append(batch.function(work, 0.1, raw, writes=[write(raw)], name="download again"))
    bad = batch.function(stumble, fits[5], name="compare")
    plot = batch.function(work, 0.2, None, *fits, name="plot")
    page = batch.function(work, 0.1, None, plot, bad, name="publish")
    return batch.compile([*tasks, bad, plot, page], name="climate", check=None)


def picture_dashboard(batch: Batch, directory: Path, browser: Any) -> None:
    """Make the picture of the page /daskbatch while a program runs."""
    table, queue = batch.ddict(name="parameters"), batch.queue(name="results")
    table.update({f"p{n}": b"x" * 10_000 for n in range(300)})
    queue.put(b"y" * 5000)
    calibration = make_program(batch, directory / "1")
    calibration.run()
    batch.function(work, 60.0, name="monitor").start()
    climate = [
        batch.function(work, 0.5 + n % 5 / 2, writes=[batch.write(directory, str(n))], name=name)
        for n, name in enumerate(["clean"] * 12 + ["fit"] * 40)
    ]
    plots = [
        batch.function(
            work, 1.0, None, *climate, reads=[batch.read(directory, str(n))], name="plot"
        )
        for n in range(5)
    ]
    page = batch.function(work, 1.0, None, *plots, name="publish")
    program = batch.compile([*climate, *plots, page], name="survey", check=None)
    program.start()
    watched = WatchedPage(browser, 1250, 900)
    watched.page.goto(batch.dashboard_link.removesuffix("status") + "daskbatch")
    time.sleep(13)
    watched.page.screenshot(path=HERE / "dashboard.png")
    Image.open(HERE / "dashboard.png").quantize(64).save(HERE / "dashboard.png", optimize=True)
    assert not watched.errors, watched.errors
    program.cancel()


def main() -> None:
    """Run a program, and make the pictures."""
    with tempfile.TemporaryDirectory() as name, Batch(num_workers=4) as batch:
        directory = Path(name)
        program = make_program(batch, directory)
        program.run()
        assert len(program.failures) == 1
        report = program.report(directory / "report.html")
        program.visualize(HERE / "graph.png", files=True)
        steps = [batch.function(work, 0.0, name="simulate")]
        for _ in range(999):
            steps.append(batch.function(work, 0.0, None, steps[-1], name="simulate"))
        checks = [batch.function(work, 0.0, None, step, name="check") for step in steps]
        last = batch.function(work, 0.0, None, *checks, name="summary")
        batch.compile([*steps, *checks, last]).visualize(HERE / "graph-by-name.png")
        form = directory / "form.html"
        form.write_text(f"<!doctype html><body>{program._repr_html_()}", encoding="utf-8")
        with start_chromium() as browser:
            picture_dashboard(batch, directory, browser)
            for page, picture, size in (
                (report, "report.png", (1000, 1400)),
                (form, "notebook.png", (1000, 420)),
            ):
                watched = WatchedPage(browser, *size)
                watched.open_file(page)
                watched.page.screenshot(path=HERE / picture)
                # Few colours: the pictures are kept in the repository.
                Image.open(HERE / picture).quantize(48).save(HERE / picture, optimize=True)
                assert not watched.errors, watched.errors


if __name__ == "__main__":
    main()

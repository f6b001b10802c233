"""What a notebook displays is updated while it runs, and no longer."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import IPython
import IPython.display
import nbformat
import pytest
from nbclient import NotebookClient
from support.waiting import wait_until

from daskbatch.batch.reporting import live_display
from daskbatch.batch.reporting.live_display import THREAD_NAME, show


class Shown:
    """An object that runs until `count` forms were made."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.made = 0

    def _repr_html_(self) -> str:
        self.made += 1
        return f"<b>form {self.made}</b>"

    def __repr__(self) -> str:
        return "<Shown>"


class Handle:
    def __init__(self) -> None:
        self.forms: list[str] = []
        self.broken = False

    def update(self, form: dict[str, str], raw: bool) -> None:
        assert raw
        if self.broken:
            raise OSError("the front end is gone")
        self.forms.append(form["text/html"])


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """Stand in for a kernel of IPython, with very short intervals."""
    handle = Handle()

    def display(form: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert form["text/plain"] == "<Shown>"
        handle.forms.append(form["text/html"])
        return handle

    class Shell:
        kernel = object()

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(IPython, "get_ipython", Shell)
    monkeypatch.setattr(live_display, "_MIN_INTERVAL_SECONDS", 0.001)
    return handle


def updating() -> bool:
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())


def test_a_display_is_updated_until_the_end(handle: Handle) -> None:
    shown = Shown(5)
    show(shown, lambda shown: shown.made < 5)
    wait_until(lambda: not updating())
    # The last form was made after the end.
    assert handle.forms == [f"<b>form {n}</b>" for n in range(1, 7)]


def test_what_is_over_is_displayed_once(handle: Handle) -> None:
    show(Shown(1), lambda shown: False)
    assert not updating()
    assert handle.forms == ["<b>form 1</b>"]


def test_a_display_does_not_keep_its_object(handle: Handle) -> None:
    shown = Shown(0)
    reference = weakref.ref(shown)
    show(shown, lambda shown: True)
    del shown
    gc.collect()
    wait_until(lambda: not updating())
    assert reference() is None


def test_updates_end_with_the_front_end(handle: Handle) -> None:
    shown = Shown(0)
    show(shown, lambda shown: True)
    handle.broken = True
    wait_until(lambda: not updating())


def test_a_terminal_shows_the_text_once(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    show(Shown(0), lambda shown: True)
    assert not updating()


def test_a_notebook_shows_the_last_form() -> None:
    source = """
import threading
from daskbatch.batch.reporting.live_display import THREAD_NAME, show

class Shown:
    over = False
    def _repr_html_(self):
        return f"<b>over: {self.over}</b>"
    def _ipython_display_(self):
        show(self, lambda shown: not shown.over)

shown = Shown()
shown
"""
    wait = """
shown.over = True
for thread in threading.enumerate():
    if thread.name == THREAD_NAME:
        thread.join(30)
"""
    cells = [nbformat.v4.new_code_cell(each) for each in (source, wait)]
    notebook: Any = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output["data"]["text/html"] == "<b>over: True</b>"

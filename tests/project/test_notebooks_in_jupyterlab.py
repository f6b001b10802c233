"""The notebooks run in JupyterLab, in a browser, and show the outputs that are stored.

JupyterLab is in the extra ``notebooks``, and not among what the tests install: without it, or
without Chromium, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.browser import start_chromium
from support.notebooks import code_cells, outputs, read
from support.paths import NOTEBOOKS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jupyterlab") is None,
    reason="JupyterLab is not installed: pip install '.[notebooks]'",
)

_LIMIT_SECONDS = 120

#: Returns the prompts of all code cells, such as "[3]:".
_PROMPTS = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]
    .map(prompt => prompt.textContent.trim())"""


@contextmanager
def jupyterlab(directory: Path) -> Iterator[str]:
    """Serve a directory by JupyterLab; yield the address, with its token."""
    token = secrets.token_hex(16)
    runtime = directory / ".runtime"
    environment = {
        **os.environ,
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(directory / ".config"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(directory / ".ipython"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--IdentityProvider.token={token}"]
    with open(directory / "jupyterlab.log", "wb") as log:
        server = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + _LIMIT_SECONDS
        while not (files := list(runtime.glob("jpserver-*.json"))):
            assert server.poll() is None, (directory / "jupyterlab.log").read_text()
            assert time.monotonic() < end, (directory / "jupyterlab.log").read_text()
            threading.Event().wait(0.05)
        port = json.loads(files[0].read_text())["port"]
        yield f"http://127.0.0.1:{port}/lab/tree/NAME?token={token}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=_LIMIT_SECONDS)


def run_all_cells(page: Any, count: int) -> None:
    """Click on "Run All Cells", and wait until each code cell has run."""
    page.locator(".jp-CodeCell").nth(count - 1).wait_for(state="attached")
    page.get_by_text("Kernel status: Idle").first.wait_for(state="attached")  # it is ready
    end = time.monotonic() + _LIMIT_SECONDS
    while set(page.evaluate(_PROMPTS)) == {"[ ]:"}:  # the command is not enabled at once
        assert time.monotonic() < end
        for button in page.locator(".jp-Dialog .jp-mod-accept").all():
            print("JupyterLab asks:", page.locator(".jp-Dialog").inner_text())
            button.click()  # for example which kernel to use, if it has not started yet
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.keyboard.press("Escape")
        page.wait_for_timeout(2000)
    expected = [f"[{number}]:" for number in range(1, count + 1)]
    while (prompts := page.evaluate(_PROMPTS)) != expected:
        assert time.monotonic() < end, prompts
        page.wait_for_timeout(100)


def saved_outputs(path: Path, directory: Path) -> Any:
    """Return the outputs of a notebook that JupyterLab saves, or None while it writes the file."""
    try:
        return outputs(read(path), directory)
    except ValueError:  # not JSON yet
        return None


@pytest.mark.timeout(500)
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_shows_in_jupyterlab_what_is_stored(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    notebook = read(path)
    for cell in code_cells(notebook):  # so that only this run can show anything
        cell.outputs, cell.execution_count = [], None
    copy.write_text(json.dumps(notebook), encoding="utf-8")
    count = len(code_cells(notebook))
    with jupyterlab(tmp_path) as address, start_chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(1000 * _LIMIT_SECONDS)
        page.goto(address.replace("NAME", path.name))
        run_all_cells(page, count)
        assert not page.locator(".jp-RenderedText[data-mime-type*=stderr]").count()
        page.keyboard.press("Control+s")
        end = time.monotonic() + _LIMIT_SECONDS
        while (found := saved_outputs(copy, tmp_path)) != outputs(read(path)):
            assert time.monotonic() < end, found
            page.wait_for_timeout(100)

"""Machine code is that of its source, and is loaded only where it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from daskbatch.memory import array_functions, machine_code
from daskbatch.serialization import item_types


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("module", [array_functions, item_types], ids=lambda each: each.__name__)
def test_it_is_that_of_its_source(module: ModuleType, tmp_path: Path) -> None:
    assert module.__file__ is not None
    source = Path(module.__file__).with_suffix(".c")
    found = re.search(rf" \*   (gcc .*?){source.name}\n", source.read_text(), re.DOTALL)
    assert found is not None
    words = [each for each in found[1].split() if each not in ("\\", "*")]
    target = tmp_path / "code.o"
    subprocess.run([*words, str(source), "-o", str(target)], check=True)
    if module._CODE not in target.read_bytes():
        pytest.skip("another version of gcc has compiled it")


def on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))


def on_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")


def without_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)


@pytest.mark.parametrize("elsewhere", [on_another_machine, on_another_system, without_a_lock])
def test_it_is_not_loaded_where_it_does_not_run(
    elsewhere: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch)
    with pytest.raises(OSError, match="other"):
        machine_code.load(b"\xc3")

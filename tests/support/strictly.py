"""Runs a program with every Batch strict: ``python strictly.py program.py [arguments]``."""

from __future__ import annotations

import runpy
import sys
from typing import Any

from daskbatch import Batch

_make = Batch.__init__


def _make_strict(self: Batch, *args: Any, **kwargs: Any) -> None:
    _make(self, *args, **{"strict": True, **kwargs})


if __name__ == "__main__":
    Batch.__init__ = _make_strict  # type: ignore[method-assign]
    del sys.argv[0]
    sys.path[0] = sys.argv[0].rpartition("/")[0]
    runpy.run_path(sys.argv[0], run_name="__main__")

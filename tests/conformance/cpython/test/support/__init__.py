"""What these tests ask of CPython's `test.support`; its names, in a few lines each."""

from __future__ import annotations

import contextlib
import gc
import io
import sys
import sysconfig
import time
import unittest
from collections.abc import Callable, Iterator
from typing import Any

SHORT_TIMEOUT = 30.0
LONG_TIMEOUT = 100.0
PIPE_MAX_SIZE = 4 * 1024 * 1024 + 1
Py_GIL_DISABLED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
verbose = False

gc_collect = gc.collect


def _as_it_is(function: Any) -> Any:
    return function


cpython_only = unittest.skipUnless(sys.implementation.name == "cpython", "CPython only")


def requires_resource(resource: str) -> Callable[[Any], Any]:
    return _as_it_is


def requires_gil_enabled(why: str = "") -> Callable[[Any], Any]:
    return unittest.skipIf(Py_GIL_DISABLED, why)


def skip_if_sanitizer(why: str = "", **kinds: bool) -> Callable[[Any], Any]:
    return _as_it_is


def check_sanitizer(**kinds: bool) -> bool:
    return False


def get_c_recursion_limit() -> int:
    return 10_000


def reap_children() -> None:
    """Leave the children: a cluster goes on from test to test."""


@contextlib.contextmanager
def captured_stderr() -> Iterator[io.StringIO]:
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        yield stream


def sleeping_retry(seconds: float, why: str = "") -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.01)
    raise AssertionError(why or f"not within {seconds} s")

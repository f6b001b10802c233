"""Threads that finalizers start do not hold up the end of the interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
from daskbatch.threads import start_unless_ending

class Late:
    def __del__(self):
        print(start_unless_ending(print, name="late"), flush=True)

late = Late()
"""

#: A value whose memory is in use by a reader when its last holder is deleted.
VALUE = """
import os
from daskbatch.memory import segment

class Late:
    def __init__(self):
        self.held = segment.store([b"value"], [5])
        self.reader = os.dup(segment.open_range(self.held.reference))

late = Late()
"""


@pytest.mark.parametrize("text", [START, VALUE], ids=["thread", "value"])
def test_a_finalizer_at_the_very_end(text: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", text], timeout=60, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in ("", "False\n")

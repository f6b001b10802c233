"""A small file system for tests that fill it. Only root may make one: else the test is skipped.

It is in memory. ``SMALL_DISK=btrfs`` or ``SMALL_DISK=ext4`` in the environment has the tests use
one of this kind, in a file, if the system has ``mkfs`` for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: How much space is left free by `SmallDisk.fill`.
_PAGE_BYTES = 4096

#: The least size of a file system in a file: btrfs accepts nothing smaller.
_LEAST_IMAGE_BYTES = 20 << 20


class SmallDisk:
    """A file system in memory.

    Parameters
    ----------
    path : Path
        Where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filling = path / "filling"

    def fill(self, spare: int = 0) -> None:
        """Write until the disk is full, and then free `spare` bytes again."""
        with contextlib.suppress(OSError), self._filling.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(_PAGE_BYTES))
        if spare:
            with self._filling.open("ab") as file:
                file.truncate(file.tell() - spare)

    def free(self) -> None:
        """Remove what `fill` has written."""
        self._filling.unlink()


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[SmallDisk]:
    """Yield a file system of some size; skip the test where none can be mounted."""
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("this test fills a tmpfs, which only Linux has")
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if kind := os.environ.get("SMALL_DISK"):
        image = path.with_name(f"{path.name}.image")
        with image.open("wb") as file:
            file.truncate(max(size, _LEAST_IMAGE_BYTES))
        options = ["--mixed"] if kind == "btrfs" else []
        subprocess.run([f"mkfs.{kind}", "-q", *options, image], check=True)
        mount = ["mount", "-o", "loop", str(image), str(path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)

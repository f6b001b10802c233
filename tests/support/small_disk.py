"""A small file system for tests that fill it. Only root may make one: else the test is skipped.

It is in memory, if the test names no other kind. ``SMALL_DISK=btrfs`` (or ``ext4``, ``xfs``) in the
environment has these tests use a file system of this kind, in a file.
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

_PAGE_BYTES = 4096

#: How a file system in a file is made, the least size that it accepts, and how much of what it
#: says is free it needs itself.
_MAKERS = {
    "ext4": (["mkfs.ext4", "-q"], 8 << 20, 0),
    "btrfs": (["mkfs.btrfs", "-q", "--mixed"], 32 << 20, 8 << 20),
    "xfs": (["mkfs.xfs", "-q"], 300 << 20, 0),
}


class SmallDisk:
    """A file system that a test fills.

    Parameters
    ----------
    path : Path
        A directory of it, which is empty at first.
    is_in_memory : bool
        Whether space that is freed can be used at once.
    """

    def __init__(self, path: Path, is_in_memory: bool) -> None:
        self.path = path
        self._is_in_memory = is_in_memory
        self._filling = path / "filling"

    def fill(self, spare: int = 0) -> None:
        """Write until the disk is full, and then free `spare` bytes again."""
        # To shorten a file needs space where a file system copies on write.
        spared = self.path / "spared"
        if spare:
            spared.write_bytes(bytes(spare))
        self._write_all()
        if not self._is_in_memory:
            # What a file system has set aside for its own use may be free again.
            self._sync()
            self._write_all()
        if spare:
            spared.unlink()
            self._sync()

    def free(self) -> None:
        """Remove what `fill` has written."""
        self._filling.unlink()
        self._sync()

    def leave(self, size: int) -> None:
        """Take the space of a file system in a file, but for some bytes."""
        found = os.statvfs(self.path)
        excess = found.f_bavail * found.f_frsize - size
        if excess > 0:
            with (self.path.parent / "excess").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, excess)
            self._sync()

    def _write_all(self) -> None:
        with contextlib.suppress(OSError), self._filling.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(_PAGE_BYTES))

    def _sync(self) -> None:
        """Have the file system write what it has in memory."""
        if not self._is_in_memory:
            subprocess.run(["sync", "-f", self.path], check=True)


@contextlib.contextmanager
def small_disk(path: Path, size: int, kind: str | None = None) -> Iterator[SmallDisk]:
    """Yield a file system with some free space; skip the test where none can be mounted."""
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("this test fills a file system that it mounts, which it can do on Linux only")
    kind = kind or os.environ.get("SMALL_DISK", "tmpfs")
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if kind != "tmpfs":
        command, least, own_bytes = _MAKERS[kind]
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        image = path.with_name(f"{path.name}.image")
        with image.open("wb") as file:
            file.truncate(least + 2 * size)
        subprocess.run([*command, str(image)], check=True, stdout=subprocess.DEVNULL)
        mount = ["mount", "-o", "loop", str(image), str(path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        if kind == "tmpfs":
            yield SmallDisk(path, is_in_memory=True)
            return
        directory = path / "dir"
        directory.mkdir()
        disk = SmallDisk(directory, is_in_memory=False)
        disk.leave(size + own_bytes)
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)

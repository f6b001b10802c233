"""Which file systems keep the space that was allocated for a file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.small_disk import small_disk

from daskbatch.memory.file_systems import keeps_allocated_space


@pytest.mark.parametrize(("kind", "keeps"), [("ext4", True), ("btrfs", False)])
def test_a_container_is_as_the_file_system_below_it(tmp_path: Path, kind: str, keeps: bool) -> None:
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this system has no overlays")
    with small_disk(tmp_path / "dïsk", 16 << 20, kind) as disk:
        assert keeps_allocated_space(disk.path) is keeps
        for name in ("lower", "upper", "work", "merged"):
            (disk.path / name).mkdir()
        merged = disk.path / "merged"
        options = ",".join(f"{n}dir={disk.path / n}" for n in ("lower", "upper", "work"))
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
        subprocess.run(mount, check=True)
        try:
            assert keeps_allocated_space(merged) is keeps
            assert list(merged.iterdir()) == []
        finally:
            subprocess.run(["umount", str(merged)], check=True)


def test_files_in_memory_keep_their_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "memory", 1 << 20, "tmpfs") as memory:
        assert keeps_allocated_space(memory.path)


def test_a_directory_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        keeps_allocated_space(tmp_path / "nowhere")

"""Values that are moved to a disk which is full."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_disk import small_disk

from daskbatch.shared.store.spill import SpillStore

VALUE_BYTES = 100_000


def test_a_full_disk_fails_the_write_that_needed_it_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        store = SpillStore(VALUE_BYTES, disk.path / "values")
        kept = [store.keep(key, bytes([key]) * VALUE_BYTES) for key in range(3)]
        disk.fill(spare=VALUE_BYTES // 2)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                store.keep(3, bytes(VALUE_BYTES))
        assert [bytes(each.value) for each in kept] == [
            bytes([key]) * VALUE_BYTES for key in range(3)
        ]
        # Only whole values: what an attempt has written is free again.
        sizes = {each.stat().st_size for each in (disk.path / "values").iterdir()}
        assert all(size > VALUE_BYTES for size in sizes)
        disk.free()
        kept.append(store.keep(3, b"\3" * VALUE_BYTES))
        assert [bytes(each.value[:1]) for each in kept] == [b"\0", b"\1", b"\2", b"\3"]

"""Snapshots: records come back, damage is detected, and an old file is never half lost."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskbatch.errors import SpecError
from daskbatch.shared.data.snapshot import check_snapshot, read_snapshot, write_snapshot

Records = list[tuple[bytes, bytes, list[bytes]]]

FEW: Records = [(b"a", b"one", []), (b"", b"", []), (b"bc", b"two", [b"12345", b"", b"6"])]


def read(path: str | Path) -> Records:
    return [
        (key, value, [bytes(each) for each in buffers])
        for key, value, buffers in read_snapshot(path)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.snapshot"


# -- what comes back ----------------------------------------------------------------------


@pytest.mark.parametrize("records", [[], FEW], ids=["none", "some"])
def test_what_was_written_is_read(path: Path, records: Records) -> None:
    assert write_snapshot(path, records) == len(records)
    assert read(path) == records
    assert os.listdir(path.parent) == [path.name]


@given(st.lists(st.tuples(st.binary(), st.binary(), st.lists(st.binary(max_size=99), max_size=3))))
@settings(deadline=None, max_examples=50)
def test_whatever_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, records: Records
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    assert write_snapshot(path, records) == len(records)
    assert read(path) == records


@pytest.mark.parametrize("name", ["zwei Wörter", "状態.snapshot", "ü" * 100, "x" * 250, "🙂" * 60])
def test_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ein Ordner – hier" / name
    path.parent.mkdir()
    write_snapshot(str(path), FEW)
    assert read(str(path)) == FEW
    assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.empty((0, 3)),
        np.array(5),
    ],
    ids=["C", "Fortran", "empty", "scalar"],
)
def test_arrays_travel_out_of_band_and_can_be_written_to(path: Path, array: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    value = pickle.dumps(array, 5, buffer_callback=buffers.append)
    write_snapshot(path, [(b"key", value, buffers)])
    ((_, value, contents),) = read_snapshot(path)
    back = pickle.loads(value, buffers=contents)
    assert np.array_equal(back, array)
    back += 1
    assert not np.array_equal(back, array) or not array.size


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, pickle.PickleBuffer])
def test_buffers_of_all_kinds(path: Path, kind: Any) -> None:
    write_snapshot(path, [(b"key", b"value", [kind(b"content")])])
    assert read(path) == [(b"key", b"value", [b"content"])]


def test_one_value_at_a_time_is_in_memory(path: Path) -> None:
    size = 2**23

    def records() -> Iterator[tuple[bytes, bytes, list[bytearray]]]:
        for number in range(8):
            yield bytes([number]), b"", [bytearray(size)]

    tracemalloc.start()
    try:
        assert write_snapshot(path, records()) == 8
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for _, _, (buffer,) in read_snapshot(path):
            assert len(buffer) == size
            del buffer, _
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written < 1.5 * size
    assert peak < 1.5 * size


# -- what is on disk, whatever happens ----------------------------------------------------


def test_an_old_file_is_replaced_and_keeps_its_mode(path: Path) -> None:
    write_snapshot(path, FEW)
    os.chmod(path, 0o600)
    write_snapshot(path, FEW[:1])
    assert read(path) == FEW[:1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_file_has_the_mode_of_any_new_file(path: Path) -> None:
    write_snapshot(path, FEW)
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_a_link_stays_one(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real"
    path.symlink_to(target)
    write_snapshot(path, FEW)
    assert path.is_symlink()
    assert read(target) == FEW


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_records_that_fail_leave_the_old_file(path: Path, error: type[BaseException]) -> None:
    def records() -> Iterator[tuple[bytes, bytes, list[bytes]]]:
        yield from FEW
        seen.extend(os.listdir(path.parent))
        raise error("midway")

    seen: list[str] = []
    write_snapshot(path, FEW[:1])
    with pytest.raises(error, match="midway"):
        write_snapshot(path, records())
    (unfinished,) = set(seen) - {path.name}
    assert path.name in unfinished
    assert unfinished.endswith(".unfinished")
    assert read(path) == FEW[:1]
    assert os.listdir(path.parent) == [path.name]


FILLS_THE_DISK = """
import resource, sys
from daskbatch.shared.data.snapshot import write_snapshot

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_snapshot(sys.argv[1], [(b"key", b"", [bytes(int(sys.argv[2]))] * 3)])
except OSError as error:
    print(error.errno)
"""


# More than the limit in one buffer, in several, and only when what was held back is flushed.
@pytest.mark.parametrize("size", [1_000_000, 40_000, 33_310])
def test_a_full_disk_leaves_the_old_file(path: Path, size: int) -> None:
    write_snapshot(path, FEW)
    run = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, path, str(size)], capture_output=True, text=True
    )
    assert (run.stdout.strip(), run.stderr) == (str(errno.EFBIG), "")
    assert read(path) == FEW
    assert os.listdir(path.parent) == [path.name]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_snapshot(tmp_path / "nowhere" / "file", FEW)
    path = str(tmp_path / "nowhere" / "file")
    assert str(caught.value) == f"[Errno {errno.ENOENT}] No such file or directory: {path!r}"
    asked: Iterator[Any] = iter(FEW)
    with pytest.raises(IsADirectoryError):
        write_snapshot(tmp_path, asked)
    assert list(asked) == FEW, "nothing was read for a file that cannot be"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("by_link", [False, True], ids=["itself", "by a link"])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_regular_file_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, by_link: bool
) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket must be short
    special = path = tmp_path / kind
    if by_link:
        path = tmp_path / "link"
        path.symlink_to(special)
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "pipe":
            os.mkfifo(special)
        else:
            listening.bind(kind)
        before = special.stat()
        asked: Iterator[Any] = iter(FEW)
        with pytest.raises(OSError, match="regular file") as caught:
            write_snapshot(path, asked)
        assert caught.value.filename == str(path)
        assert list(asked) == FEW, "nothing was read for a file that cannot be"
        with pytest.raises(OSError, match="regular file"):
            check_snapshot(path)  # it does not wait for a writer of a pipe
        assert special.stat() == before
    assert set(os.listdir(tmp_path)) == {path.name, special.name}


# -- damaged files ------------------------------------------------------------------------


def test_every_truncation_is_told(path: Path) -> None:
    write_snapshot(path, FEW)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SpecError, match="cut short|not a snapshot") as error:
            read(path)
        assert repr(str(path)) in str(error.value)
    path.write_bytes(whole + b"\0")
    with pytest.raises(SpecError, match="damaged"):
        read(path)


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_is_told_before_anything_wrong_is_handed_out(
    path: Path, bit: int
) -> None:
    write_snapshot(path, FEW)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        records = []
        with pytest.raises(SpecError):
            for record in read_snapshot(path):
                records.append(record)
        assert records == FEW[: len(records)]


def test_records_that_are_missing_or_exchanged_are_told(path: Path) -> None:
    records: Records = [(bytes([number]), b"value", []) for number in range(3)]
    write_snapshot(path, [])
    head = path.stat().st_size - 13
    write_snapshot(path, records)
    whole = path.read_bytes()
    size = (len(whole) - head - 13) // 3
    start, one, two, rest = (
        *(whole[:head], whole[head : head + size]),
        *(whole[head + size : head + 2 * size], whole[head + 2 * size :]),
    )
    for wrong in (start + two + one + rest, start + two + rest, start + one + one + two + rest):
        path.write_bytes(wrong)
        with pytest.raises(SpecError, match="damaged"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"something else", pickle.dumps({}), b"\x89PNG\r\n"])
def test_another_file_is_no_snapshot(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for look in (read, check_snapshot):
        with pytest.raises(SpecError, match="not a snapshot"):
            look(path)


def test_another_version_is_told(path: Path) -> None:
    write_snapshot(path, [])
    content = path.read_bytes()
    version = content.index(b"\n") + 1
    path.write_bytes(content[:version] + b"\x07" + content[version + 1 :])
    for look in (read, check_snapshot):
        with pytest.raises(SpecError, match="format 7"):
            look(path)


def test_no_file_is_the_error_of_any_missing_file(path: Path) -> None:
    for look in (read, check_snapshot):
        with pytest.raises(FileNotFoundError):
            look(path)


def test_the_file_is_closed_when_the_reader_stops_early(path: Path) -> None:
    write_snapshot(path, FEW)
    records = read_snapshot(path)
    assert next(records)[0] == b"a"
    records.close()  # type: ignore[attr-defined]
    assert str(path) not in [file.path for file in psutil.Process().open_files()]

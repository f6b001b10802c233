"""Writes pickled keys and values to one file, whole or not at all, and reads them back.

Only one record at a time is in memory, and no index, however many keys there are. The file is::

    magic, version
    for each record    b"R", the sizes, a checksum, key, value, buffers, a checksum
    at the end         b"E", the number of records, a checksum

Each checksum covers all content before it, so that no unchecked record is returned.

A zip file would need an index of all keys in memory, and SQLite a copy of each value. The functions
may be called by any thread.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path
from pickle import PickleBuffer
from typing import TypeAlias

from daskbatch.errors import SpecError

#: The types of a value's buffers.
AnyBuffer: TypeAlias = bytes | bytearray | memoryview | PickleBuffer

#: What a file begins with, the version of its format, and what a record and the end begin with.
_MAGIC = b"\x89daskbatch snapshot\n"
_VERSION = 1
_RECORD, _END = b"R", b"E"

_NUMBER = struct.Struct("<I")  # the version, the checksums
_COUNT = struct.Struct("<Q")
_SIZES = struct.Struct("<QQI")  # of the key, of the value; the number of buffers

#: How many characters of the file's name are in the name of the temporary file, so that users
#: recognize it.
_NAME_PREFIX_CHARS = 40


def write_snapshot(
    path: str | os.PathLike[str], records: Iterable[tuple[bytes, bytes, Sequence[AnyBuffer]]]
) -> int:
    """Write records to a file, which replaces an old one once it is complete.

    Parameters
    ----------
    path : path
        The file.
    records : iterable of (bytes, bytes, sequence of buffers)
        Pickled keys, pickled values, and the buffers that belong to the values.

    Returns
    -------
    int
        The number of records.

    Raises
    ------
    OSError
        The file could not be written; an old one is as it was.
    """
    target = Path(os.path.realpath(path))
    _require_regular_file(path)
    unfinished = target.with_name(
        f".{target.name[:_NAME_PREFIX_CHARS]}.{secrets.token_hex(8)}.unfinished"
    )
    try:
        count = _write_whole(target, unfinished, records)
    except OSError as error:
        if error.filename == str(unfinished):  # a name that the caller does not know
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise
    _sync_directory(target.parent)
    return count


def _write_whole(
    target: Path,
    unfinished: Path,
    records: Iterable[tuple[bytes, bytes, Sequence[AnyBuffer]]],
) -> int:
    file = open(unfinished, "xb")  # noqa: SIM115 - an error is handled before it is closed
    try:
        with suppress(FileNotFoundError):
            os.chmod(file.fileno(), target.stat().st_mode & 0o777)
        writer = _Writer(file)
        count = writer.write_all(records)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(unfinished, target)
    except BaseException:
        # `close` tries to write what is still buffered, and may fail for the same reason.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            unfinished.unlink()
        raise
    return count


def check_snapshot(path: str | os.PathLike[str]) -> None:
    """Check that a file begins as a snapshot does.

    Raises
    ------
    SpecError
        The file does not.
    OSError
        The file could not be read.
    """
    _require_regular_file(path)
    with open(path, "rb") as file:
        _Reader(file, os.fspath(path)).check_head()


def read_snapshot(
    path: str | os.PathLike[str],
) -> Iterator[tuple[bytes, bytes, list[bytearray]]]:
    """Read the records of a file, each when the caller asks for it.

    Parameters
    ----------
    path : path
        A file that `write_snapshot` has written.

    Yields
    ------
    tuple of bytes, bytes, list of bytearray
        A pickled key, a pickled value, and the buffers that belong to the value.

    Raises
    ------
    SpecError
        The file is not a snapshot, or of another version, cut short or damaged.
    OSError
        The file could not be read.
    """
    with open(path, "rb") as file:
        reader = _Reader(file, os.fspath(path))
        reader.check_head()
        count = 0
        while (record := reader.read_record()) is not None:
            count += 1
            yield record
            # A record may be large: it must not stay in memory while the next one is read.
            del record
        reader.check_end(count)


def _require_regular_file(path: str | os.PathLike[str]) -> None:
    """Raise OSError if the path exists and is not a regular file, but a pipe, for example."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def _sync_directory(directory: Path) -> None:
    """Write a directory to disk, so that a renaming survives a crash of the machine."""
    try:
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        # Not every file system can do this, and a directory may be writable but not readable.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


class _Writer:
    """Writes a snapshot to an open file, and computes its checksums."""

    def __init__(self, file: BufferedWriter) -> None:
        self._file = file
        self._checksum = 0

    def write_all(self, records: Iterable[tuple[bytes, bytes, Sequence[AnyBuffer]]]) -> int:
        self._write(_MAGIC + _NUMBER.pack(_VERSION))
        count = 0
        for key, value, buffers in records:
            self._write_record(key, value, [PickleBuffer(each).raw() for each in buffers])
            count += 1
            del key, value, buffers
        self._write(_END + _COUNT.pack(count))
        self._write_checksum()
        return count

    def _write_record(self, key: bytes, value: bytes, buffers: Sequence[memoryview]) -> None:
        sizes = b"".join(_COUNT.pack(each.nbytes) for each in buffers)
        self._write(_RECORD + _SIZES.pack(len(key), len(value), len(buffers)) + sizes)
        self._write_checksum()
        self._write(key)
        self._write(value)
        for buffer in buffers:
            self._write(buffer)
        self._write_checksum()

    def _write(self, data: bytes | memoryview) -> None:
        self._checksum = zlib.crc32(data, self._checksum)
        self._file.write(data)

    def _write_checksum(self) -> None:
        self._file.write(_NUMBER.pack(self._checksum))


class _Reader:
    """Reads a snapshot from an open file, and checks its checksums."""

    def __init__(self, file: BufferedReader, name: str) -> None:
        self._file = file
        self._name = name
        self._remaining = os.fstat(file.fileno()).st_size
        self._checksum = 0

    def check_head(self) -> None:
        magic = self._file.read(len(_MAGIC))
        self._remaining -= len(magic)
        self._checksum = zlib.crc32(magic)
        if not magic or not _MAGIC.startswith(magic):
            raise self._error("is not a snapshot of a DDict")
        if magic != _MAGIC:
            raise self._error("is cut short")
        version: int = _NUMBER.unpack(self._read(_NUMBER.size))[0]
        if version != _VERSION:
            raise self._error(
                f"is a snapshot of format {version}; this version of daskbatch reads {_VERSION}"
            )

    def read_record(self) -> tuple[bytes, bytes, list[bytearray]] | None:
        """Read the next record; None at the end."""
        tag = self._read(1)
        if tag == _END:
            return None
        if tag != _RECORD:
            raise self._error("is damaged")
        key_size, value_size, buffers = _SIZES.unpack(self._read(_SIZES.size))
        sizes = struct.unpack(f"<{buffers}Q", self._read(buffers * _COUNT.size))
        self._check()
        key, value = self._read(key_size), self._read(value_size)
        contents = [self._read_into(size) for size in sizes]
        self._check()
        return key, value, contents

    def check_end(self, count: int) -> None:
        (expected,) = _COUNT.unpack(self._read(_COUNT.size))
        self._check()
        if expected != count or self._remaining:
            raise self._error("is damaged")

    def _check(self) -> None:
        expected = self._checksum
        if _NUMBER.unpack(self._read(_NUMBER.size))[0] != expected:
            raise self._error("is damaged")
        self._checksum = expected  # checksums cover the content, not the checksums before them

    def _read(self, size: int) -> bytes:
        self._expect(size)
        data = self._file.read(size)
        if len(data) != size:
            raise self._error("is cut short")
        self._checksum = zlib.crc32(data, self._checksum)
        return data

    def _read_into(self, size: int) -> bytearray:
        self._expect(size)
        data = bytearray(size)
        with memoryview(data) as view:
            done = 0
            while done < size:
                got = self._file.readinto(view[done:])
                if not got:
                    raise self._error("is cut short")
                done += got
        self._checksum = zlib.crc32(data, self._checksum)
        return data

    def _expect(self, size: int) -> None:
        # A damaged size must not allocate memory for bytes that cannot be there.
        if size > self._remaining:
            raise self._error("is cut short or damaged")
        self._remaining -= size

    def _error(self, what: str) -> SpecError:
        return SpecError(f"{self._name!r} {what}")

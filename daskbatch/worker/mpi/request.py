"""Describes a call to the ranks that run it, and lays its data out so that a host needs it once.

The data of a call (its function, its arguments, its large buffers) is one sequence of bytes, in
which a `RankRequest` says where each piece begins. On the host of the worker it is a file without
a name, which each rank maps for itself: a rank that changes an array changes its own copy of the
pages alone. The functions are pure, except that `Layout.write` makes a file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from daskbatch.worker.execution.block import NO_LIMITS, BlockSpec, Limits, Link
from daskbatch.worker.isolation.unnamed_file import new_file, write_file
from daskbatch.worker.mpi.rank_function import PackedCall

#: Where each piece of the data begins: at a multiple of this, as arrays need it.
_ALIGNMENT_BYTES = 64

#: Larger data goes through a file.
MAX_INLINE_BYTES = 1 << 15

#: A piece of the data: where it begins, and its size.
Piece = tuple[int, int]


class RankRequest(NamedTuple):
    """What each rank is to run.

    Parameters
    ----------
    topic, label : str
        The client, and what messages call the task.
    path : sequence of str
        The worker's `sys.path`.
    cwd : str, optional
        The working directory.
    context : tuple, optional
        The fields of the task's `TaskContext`, without the slot.
    function, setup, data : Piece
        Where the fields of a `PackedCall` are in the data.
    values : tuple of Piece or str
        Likewise; a text is here itself.
    buffers : tuple of Piece
        Likewise.
    size : int
        The size of the data.
    """

    topic: str
    label: str
    path: Sequence[str]
    cwd: str | None
    context: tuple[str, Any, str, bytes | None, str] | None
    function: Piece
    setup: Piece | None
    data: Piece
    values: tuple[Piece | str, ...]
    buffers: tuple[Piece, ...]
    size: int


class Layout:
    """Places pieces one after another. Used by one thread."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes | memoryview]] = []
        self.size = 0

    def add(self, content: bytes | memoryview) -> Piece:
        """Place a piece; return where it is."""
        start = -(-self.size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self.pieces.append((start, content))
        self.size = start + len(content)
        return start, len(content)

    def joined(self) -> bytes:
        """Return all pieces in one sequence of bytes."""
        data = bytearray(self.size)
        for start, content in self.pieces:
            data[start : start + len(content)] = content
        return bytes(data)

    def write(self) -> int:
        """Return the descriptor of a new file that holds all pieces; the caller closes it."""
        file = new_file()
        try:
            os.ftruncate(file, self.size)
            for start, content in self.pieces:
                os.lseek(file, start, os.SEEK_SET)
                write_file(file, content)
        except BaseException:
            os.close(file)
            raise
        return file


def make_request(
    call: PackedCall,
    topic: str,
    label: str,
    path: Sequence[str],
    cwd: str | None,
    context: tuple[str, Any, str, bytes | None, str] | None,
) -> tuple[RankRequest, Layout]:
    """Return the request for a call, and the layout of its data."""
    layout = Layout()
    request = RankRequest(
        topic=topic,
        label=label,
        path=path,
        cwd=cwd,
        context=context,
        function=layout.add(call.function),
        setup=None if call.setup is None else layout.add(call.setup),
        data=layout.add(call.data),
        values=tuple(each if isinstance(each, str) else layout.add(each) for each in call.values),
        buffers=tuple(layout.add(each) for each in call.buffers),
        size=0,
    )
    return request._replace(size=layout.size), layout


def map_file(file: int, size: int) -> memoryview:
    """Map the data of a call; what this process changes, no other process sees."""
    return memoryview(mmap.mmap(file, size, access=mmap.ACCESS_COPY))


def as_block(request: RankRequest, data: memoryview) -> tuple[BlockSpec, list[memoryview]]:
    """Return the block of one member that a rank runs, and the contents of its large buffers."""
    cut = [data[start : start + size] for start, size in request.buffers]
    values = tuple(
        each if isinstance(each, str) else data[each[0] : each[0] + each[1]]
        for each in request.values
    )
    limits = NO_LIMITS if request.cwd is None else Limits(cwd=request.cwd)
    linked = bool(values or cut)
    spec = BlockSpec(
        block=0,
        topic=request.topic,
        functions=[_bytes(data, request.function)],
        calls=[(0, _bytes(data, request.data))],
        labels=[request.label],
        links={0: Link(values=values, buffers=tuple(range(len(cut))))} if linked else {},  # type: ignore[arg-type]
        limits={} if limits is NO_LIMITS else {0: limits},
        isolated=True,
        journaled=False,
        budget=float("inf"),
        share_limit=1 << 62,
        inline_limit=0,
        output_limit=0,
        setup=None if request.setup is None else _bytes(data, request.setup),
    )
    return spec, cut


def _bytes(data: memoryview, piece: Piece) -> bytes:
    return bytes(data[piece[0] : piece[0] + piece[1]])

"""Large buffers in memory that all processes of the host map, as parts of messages and stores.

Within `by_reference`, a `SharedBuffer` is pickled as the place of its memory, and the receiver
holds that memory; else it is pickled with its content. Any number of threads may call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pickle import PickleBuffer
from typing import Any

from daskbatch.memory import segment
from daskbatch.memory.segment import Reference, Segment

#: Smaller buffers are sent: opening and mapping memory takes longer.
MIN_SHARED_BYTES = 1 << 18

#: Whether buffers and stored values are pickled as references, for a process of the same host.
_by_reference: ContextVar[bool] = ContextVar("daskbatch_by_reference", default=False)


@contextmanager
def by_reference() -> Iterator[None]:
    """Within it, this thread pickles references to memory, and not the memory's content."""
    token = _by_reference.set(True)
    try:
        yield
    finally:
        _by_reference.reset(token)


def pickles_references() -> bool:
    """Return whether this thread is within `by_reference`."""
    return _by_reference.get()


class SharedBuffer:
    """A buffer in memory that all processes of the host can map. It never changes.

    Any number of threads may use it. It holds the memory until it is deleted.

    Parameters
    ----------
    held : Segment
        The memory.
    nbytes : int
        How many bytes the buffer has.
    """

    __slots__ = ("nbytes", "segment")

    def __init__(self, held: Segment, nbytes: int) -> None:
        self.segment = held
        self.nbytes = nbytes

    def mapped(self) -> memoryview:
        """Map it privately: the caller may change what it sees."""
        return segment.cut(segment.attach(self.segment.reference), [self.nbytes])[0]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if pickles_references():
            return adopt_buffer, (tuple(self.segment.reference), self.nbytes)
        return _received, (PickleBuffer(self.mapped()),)


def _received(content: Any) -> Any:
    return content


def share_buffer(content: memoryview) -> SharedBuffer | None:
    """Copy a buffer to shared memory; None if it is small, or no memory can be shared here.

    Raises
    ------
    OSError
        There is no memory.
    """
    if content.nbytes < MIN_SHARED_BYTES:
        return None
    held = segment.store([content], [content.nbytes])
    return None if held is None else SharedBuffer(held, content.nbytes)


def adopt_buffer(reference: tuple[Any, ...], nbytes: int) -> SharedBuffer:
    """Hold a buffer that another process has shared.

    Raises
    ------
    ValueGone
        It is gone.
    """
    return SharedBuffer(segment.adopt(Reference(*reference), made_here=True), nbytes)

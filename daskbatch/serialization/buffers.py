"""The large buffers among arguments: each is copied once, when the arguments are pickled.

Where the system allows it, the copy is in memory that every process of the host can map. Equal
buffers that are in use at the same time share one copy. Any number of threads may call.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator

from daskbatch.memory import segment
from daskbatch.memory.mapping import equal
from daskbatch.memory.segment import Segment

#: To find an equal buffer, this many pieces of this size are compared before all of it is.
_SAMPLES, _SAMPLE_BYTES = 16, 64


class Buffer:
    """A large buffer found among arguments. Any thread may use it; its content never changes.

    Parameters
    ----------
    digest : str
        Identifies it among all buffers.
    content : bytes, optional
        The content, if it is not in a segment.
    held : Segment, optional
        The memory that has the content.
    size : int
        How many bytes it has.
    """

    __slots__ = ("__weakref__", "_content", "digest", "segment", "size")

    def __init__(self, digest: str, content: bytes | None, held: Segment | None, size: int) -> None:
        self.digest = digest
        self.segment = held
        self.size = size
        self._content: bytes | memoryview | None = content

    @property
    def content(self) -> bytes | memoryview:
        """The content, which must not be changed."""
        if self._content is None:
            self._content = self._map().toreadonly()
        return self._content

    def _map(self) -> memoryview:
        assert self.segment is not None
        return segment.cut(segment.attach(self.segment.reference), [self.size])[0]

    def has(self, content: memoryview) -> bool:
        """Return whether this is its content."""
        mine = self._map() if self._content is None else memoryview(self._content)
        return equal(mine, content)


#: The buffers that are in use, by their content: the digest of all of it, or of samples.
_buffers: weakref.WeakValueDictionary[str, Buffer] = weakref.WeakValueDictionary()


def copy_buffer(raw: memoryview) -> Buffer:
    """Return a buffer with a copy of the content that some memory has now.

    Parameters
    ----------
    raw : memoryview
        Contiguous memory.

    Raises
    ------
    OSError
        There is no memory for it.
    """
    size = raw.nbytes
    raw = raw.cast("B") if raw.ndim != 1 or raw.format != "B" else raw
    samples = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
    for sample in _samples(raw):
        samples.update(sample)
    likely = _buffers.get(samples.hexdigest())
    if likely is not None and likely.size == size and likely.has(raw):
        return likely
    held = segment.store([raw], [size])
    if held is None:
        return make_buffer(bytes(raw))
    # Another thread may do the same at this moment: then there are two buffers of one content.
    made = _buffers[samples.hexdigest()] = Buffer(held.token.hex(), None, held, size)
    return made


def _samples(raw: memoryview) -> Iterator[memoryview]:
    """Yield pieces of a buffer, from all parts of it."""
    step = max(1, (raw.nbytes - _SAMPLE_BYTES) // (_SAMPLES - 1))
    for number in range(_SAMPLES):
        yield raw[number * step : number * step + _SAMPLE_BYTES]


def make_buffer(content: bytes) -> Buffer:
    """Return the buffer that holds these bytes; equal bytes share one buffer."""
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    buffer = _buffers.get(digest)
    if buffer is None:
        buffer = _buffers[digest] = Buffer(digest, content, None, len(content))
    return buffer

"""What becomes of a task on a worker, as it travels: a status and a few bytes.

Does not know how a task is run, or what a client makes of it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from enum import IntEnum

from daskbatch import pickling
from daskbatch.errors import SerializationError
from daskbatch.worker.block import Report


class Status(IntEnum):
    """What became of one member of a block."""

    #: It returned; its value is there.
    DONE = 0
    #: It raised; its exception is there.
    FAILED = 1
    #: It did not run: a task whose value or writes it needs did not succeed.
    SKIPPED = 2
    #: It did not run: it was cancelled first.
    CANCELLED = 3
    #: It did not run here and is free to run elsewhere.
    DEFERRED = 4


class BlockResult:
    """The outcomes of a block's members: the value of a Dask key.

    Parameters
    ----------
    statuses : bytes
        A `Status` for each member.
    values : sequence of bytes or None
        For each member its pickled value or its packed exception.
    outputs : mapping
        stdout and stderr of those members that wrote any.
    """

    __slots__ = ("outputs", "statuses", "values")

    def __init__(
        self,
        statuses: bytes,
        values: Sequence[bytes | None] = (),
        outputs: Mapping[int, tuple[str, str]] | None = None,
    ) -> None:
        self.statuses = statuses
        self.values = values
        self.outputs = outputs or {}

    def __reduce__(self) -> tuple[object, ...]:
        return BlockResult, (self.statuses, self.values, self.outputs)

    def as_report(self, block: int) -> Report:
        """Tell the same as a report of a whole block; how long its members ran is unknown."""
        durations = bytes(4 * len(self.statuses))
        return Report(block, 0, self.statuses, self.values, durations, self.outputs, -1, b"")

    def __sizeof__(self) -> int:
        # What Dask takes for the size of the key, and so spills and moves it by.
        return (
            sys.getsizeof(self.statuses)
            + sum(map(sys.getsizeof, self.values))
            + sum(sys.getsizeof(out) + sys.getsizeof(err) for out, err in self.outputs.values())
        )


def token(result: BlockResult) -> BlockResult:
    """Reduce a block's result to what an order-only edge carries: the statuses."""
    return BlockResult(result.statuses)


class RemoteTraceback(Exception):
    """The traceback of an exception on the worker, as the cause of the one raised here."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def pack_error(error: BaseException, label: str, hidden_frames: int = 1) -> bytes:
    """Pickle an exception and its traceback so that they surely can be unpickled.

    Parameters
    ----------
    error : BaseException
        With the traceback that it was caught with.
    label : str
        The task's name, for the message if the exception cannot travel.
    hidden_frames : int
        How many frames at the start of the traceback are ours and of no interest.
    """
    start = error.__traceback__
    for _ in range(hidden_frames):
        if start is not None and start.tb_next is not None:
            start = start.tb_next
    text = "".join(traceback.format_exception(type(error), error, start))
    for form in (error, _Rebuilt(error)):
        try:
            data = pickling.dumps((form, text))
            # Some come back, but with their arguments put through __init__ a second time.
            if str(pickling.loads(data)[0]) == str(error):
                return data
        except Exception:
            continue
    substitute = SerializationError(
        f"task {label} raised an exception that cannot be sent: {type(error).__name__}: {error}"
    )
    return pickling.dumps((substitute, text))


def unpack_error(data: bytes) -> BaseException:
    """Undo `pack_error`: the exception, with the worker's traceback as its cause."""
    error, text = pickling.loads(data)
    assert isinstance(error, BaseException)
    error.__cause__ = RemoteTraceback(text)
    return error


class _Rebuilt:
    """An exception whose own way of unpickling fails: its ``__init__`` wants more arguments."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self.error), self.error.args, vars(self.error).copy())


def _rebuild(
    kind: type[BaseException], args: tuple[object, ...], state: dict[str, object]
) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    return error

"""The records that travel between a client and a worker about a block of tasks.

Does not know how a block came about, or what runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: Where a member's predecessor is: in an input of the block, by its position, or in the
#: block itself, at position `LOCAL`; then which member.
Source = tuple[int, int]
LOCAL = -1


class BlockMember(NamedTuple):
    """One of the things that a task leaves behind, as an argument of another."""

    source: Source
    name: str


class Link(NamedTuple):
    """What a member takes from its predecessors.

    Parameters
    ----------
    needs : tuple of Source
        These must have succeeded: arguments, and what it reads.
    after : tuple of Source
        These must be over, however they ended.
    values : tuple
        For each slot of the arguments its part, or a pickled value, or a text.
    buffers : tuple of int
        The positions of the inputs that hold the arguments' large buffers.
    """

    needs: tuple[Source, ...] = ()
    after: tuple[Source, ...] = ()
    values: tuple[BlockMember | bytes | str, ...] = ()
    buffers: tuple[int, ...] = ()


class Limits(NamedTuple):
    """What else holds for a member."""

    retries: int = 0
    timeout: float | None = None
    cwd: str | None = None
    env: tuple[tuple[str, str], ...] = ()


class BlockSpec(NamedTuple):
    """A list of tasks to run one after another.

    Parameters
    ----------
    block : int
        Its number; unique for the client of `topic`.
    topic : str
        Where its reports go.
    functions : sequence of bytes or int
        The pickled functions; of a large one the position of the input that holds it.
    calls : sequence of (int, bytes)
        For each member the index of its function and its packed arguments. An index of -1
        is a barrier, which calls nothing.
    labels : sequence of str
        For each member what messages call it; a single one stands for all.
    links : mapping
        For those members that have predecessors or buffers.
    limits : mapping
        For those members that have any.
    isolated : bool
        Whether the members run in a child process.
    journaled : bool
        Whether their outcomes must not be forgotten when the worker dies: one may have
        written what may not be written again.
    budget : float
        After so many seconds what has not begun is deferred. If it is infinite, nothing is
        deferred either when a member waits.
    share_limit : int
        After a value of more bytes, likewise.
    inline_limit : int
        Larger values stay on the worker until somebody asks for them.
    output_limit : int
        How many bytes of each of stdout and stderr are kept for a member.
    setup : bytes or int, optional
        What prepares the process, as a function is given; see `worker.prepare`.
    """

    block: int
    topic: str
    functions: Sequence[bytes | int]
    calls: Sequence[tuple[int, bytes]]
    labels: Sequence[str]
    links: Mapping[int, Link]
    limits: Mapping[int, Limits]
    isolated: bool
    journaled: bool
    budget: float
    share_limit: int
    inline_limit: int
    output_limit: int
    setup: bytes | int | None = None

    def label(self, member: int) -> str:
        """Say what messages call a member."""
        return repr(self.labels[member if len(self.labels) > 1 else 0])


class Report(NamedTuple):
    """What has become of some members of a running block.

    Parameters
    ----------
    block : int
        The block's number.
    start : int
        The member that the sequences below begin with.
    statuses : bytes
        A `Status` each.
    values : sequence of bytes or None
        The pickled values and packed exceptions; None for one that stays on the worker.
    durations : bytes
        Seconds each, an array of C floats.
    outputs : mapping
        stdout and stderr of those members that wrote any; None for what stays on the worker.
    running : int
        The member that runs now, or -1.
    rest : bytes
        A `Status` each for the members behind the one that runs, once they are deferred.
    expired : bool
        Whether the block's time is up, told once; the member that runs may take long.
    """

    block: int
    start: int
    statuses: bytes
    values: Sequence[bytes | None]
    durations: bytes
    outputs: Mapping[int, tuple[str, str] | None]
    running: int
    rest: bytes
    expired: bool = False

"""The records that travel between a client and a worker about a block of tasks.

The client sends a `BlockSpec`; the worker sends reports while the block runs. They never change.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from daskbatch.worker.execution.client_names import first_topic
from daskbatch.worker.execution.measures import Measures, MemberBegin

if TYPE_CHECKING:  # a child starts faster without it
    from daskbatch.worker.handshake import ServerAddress

#: Where the outcome of a member's predecessor is: the position of one of the block's inputs,
#: or `LOCAL` for the block itself; then the number of the member in that block.
Source = tuple[int, int]
LOCAL = -1


class BlockMember(NamedTuple):
    """A result, stdout or stderr of one member, as an argument of another.

    Parameters
    ----------
    source : Source
        The member.
    name : str
        "result", "stdout" or "stderr".
    """

    source: Source
    name: str


class Link(NamedTuple):
    """What a member takes from its predecessors.

    Parameters
    ----------
    needs : tuple of Source
        These must have succeeded: arguments, and what it reads.
    after : tuple of Source
        These must be over, whatever their outcomes.
    values : tuple
        For each placeholder in its arguments: the part of a member, a pickled value, or a
        text.
    buffers : tuple of int or bytes
        The arguments' large buffers: the positions of the inputs that hold them, or, if the
        client stores them on the host of all workers, the bytes of their `StoredValue`.
    """

    needs: tuple[Source, ...] = ()
    after: tuple[Source, ...] = ()
    values: tuple[BlockMember | bytes | str, ...] = ()
    buffers: tuple[int | bytes, ...] = ()


class Limits(NamedTuple):
    """The options of a member.

    Parameters
    ----------
    retries : int
        How often it may be tried again.
    timeout : float, optional
        Its time limit. Seconds.
    cwd : str, optional
        Its working directory, in a child process.
    env : tuple of (str, str)
        Environment variables, in a child process.
    """

    retries: int = 0
    timeout: float | None = None
    cwd: str | None = None
    env: tuple[tuple[str, str], ...] = ()


#: The limits of a member without options.
NO_LIMITS = Limits()


class DeclaredFiles(NamedTuple):
    """The files and directories that a member declares, as absolute paths.

    Parameters
    ----------
    reads, writes : tuple of str
        What it reads and writes; a directory stands for all below it.
    removes : tuple of str
        Those of `writes` by which a file is removed.
    keys : tuple of (str, str, bytes)
        In a strict Batch, the keys of dictionaries and the queues that it declares: ``"read"`` or
        ``"write"``, the name of the object, and the pickled tuple of keys; empty for the whole
        object.
    rules : int
        In a strict Batch, the position of its rules in `BlockSpec.strict`; else -1.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    keys: tuple[tuple[str, str, bytes], ...] = ()
    rules: int = -1


class BlockSpec(NamedTuple):
    """A block: a list of tasks, its members, to run one after another.

    Parameters
    ----------
    block : int
        Its number; unique for the client of `topic`.
    topic : str
        The client that receives its reports.
    functions : sequence of bytes or int
        The pickled functions; for a large one the position of the input that holds it.
    calls : sequence of (int, bytes)
        For each member the index of its function and its packed arguments. An index of -1
        is a barrier, which calls nothing.
    labels : sequence of str
        For each member what messages call it; a single one stands for all.
    links : mapping
        For those members that have predecessors or buffers.
    limits : mapping
        For those members that have options.
    isolated : bool
        Whether the members run in a child process.
    journaled : bool
        Whether their outcomes must be known even if the worker dies: a member may have
        written something that must not be written again.
    budget : float
        After this time, the members that have not begun are deferred. Seconds. If it is infinite,
        they are not deferred when a member waits either.
    share_limit : int
        Once the values of members exceed this in total, likewise. Bytes.
    inline_limit : int
        Larger values stay on the worker until the client asks for them. Bytes.
    output_limit : int
        How many bytes of each of stdout and stderr are kept for a member.
    setup : bytes or int, optional
        The pickled initializer and its arguments, or the position of the input that holds
        them; see `initialized_function`.
    fresh : bool
        Whether each member runs in a child process that nothing else uses, before or after.
    declared : mapping
        For those members that declare files: which.
    strict : sequence of bytes or int
        The pickled `strict_access.Rules` of members of a strict Batch; for large ones the position
        of the input that holds them.
    positions : bytes
        For each member its position among the tasks of the same name in its program, or -1: an
        array of C ints; empty if all are -1.
    surroundings : bytes, optional
        What the script has changed in its search path and environment; see `surroundings`.
    open : bool
        Whether the block begins without members, and receives them while it runs.
    streams : bool
        Whether the worker sends what members write while they write it.
    directory : str, optional
        The working directory of functions; None for that of the worker.
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
    fresh: bool = False
    positions: bytes = b""
    declared: Mapping[int, DeclaredFiles] = {}
    strict: Sequence[bytes | int] = ()

    def name(self, member: int) -> str:
        """Return the name of a member, with its position if other tasks share it."""
        name = self.labels[member if len(self.labels) > 1 else 0]
        position = array("i", self.positions)[member] if self.positions else -1
        return name if position < 0 else f"{name}[{position}]"

    surroundings: bytes | None = None
    open: bool = False
    streams: bool = False
    directory: str | None = None

    @property
    def namespace(self) -> str:
        """The namespace of its functions, if there is an initializer: one for the whole Batch."""
        return first_topic(self.topic)

    def label(self, member: int) -> str:
        """Return what messages call a member."""
        return repr(self.name(member))


class OutcomeReport(NamedTuple):
    """Reports that some members of a block are over.

    Parameters
    ----------
    block : int
        The block's number.
    start : int
        The first of the members; the sequences below begin with it.
    statuses : bytes
        A `Status` each.
    values : sequence of bytes or None
        The pickled values and packed exceptions; None for one that stays on the worker.
    durations : bytes
        How long each ran, in seconds: an array of C floats.
    outputs : mapping
        stdout and stderr of those members that wrote any; None for those that stay on the
        worker.
    measures : Measures, optional
        Where and when they ran, and what they used; None if that is not known.
    references : mapping
        For those values that the worker has stored for all processes of its host: the bytes of
        the `StoredValue`.
    """

    block: int
    start: int
    statuses: bytes
    values: Sequence[bytes | None]
    durations: bytes
    outputs: Mapping[int, tuple[str, str] | None]
    measures: Measures | None = None
    references: Mapping[int, bytes] = {}


class RunningReport(NamedTuple):
    """Reports that a member of a block has begun.

    Parameters
    ----------
    block : int
        The block's number.
    running : int
        The member that runs now.
    begin : MemberBegin, optional
        Where and when it has begun.
    """

    block: int
    running: int
    begin: MemberBegin | None = None


class ExpiredReport(NamedTuple):
    """Reports that a block has deferred its rest, while a member runs that may take long.

    A block sends this at most once.

    Parameters
    ----------
    block : int
        The block's number.
    running : int
        The member that runs now.
    rest : bytes
        A `Status` for each member behind the one that runs: DEFERRED, or CANCELLED for one
        that was revoked before.
    begin : MemberBegin, optional
        Where and when the member that runs has begun.
    """

    block: int
    running: int
    rest: bytes
    begin: MemberBegin | None = None


class MissingReport(NamedTuple):
    """Reports that declared files of a member were not there.

    Parameters
    ----------
    block : int
        The block's number.
    member : int
        The member.
    kind : str
        ``"input"`` for files that it reads, ``"output"`` for files that it writes.
    paths : tuple of str
        The files.
    """

    block: int
    member: int
    kind: str
    paths: tuple[str, ...]


class OpenedReport(NamedTuple):
    """Reports where an open block waits for its client to connect.

    Parameters
    ----------
    block : int
        The block's number.
    address : ServerAddress
        Where its client connects.
    """

    block: int
    address: ServerAddress


class ClosedReport(NamedTuple):
    """Reports that an open block takes no more members.

    Parameters
    ----------
    block : int
        The block's number.
    received : int
        How many members it has received; no later one will begin.
    gave_way : bool
        Whether it has closed since its time was up and something else wanted its slot.
    waits : bool
        Whether its last member waits for other tasks, and leaves the slot to them.
    """

    block: int
    received: int
    gave_way: bool = False
    waits: bool = False


class SilentPeerReport(NamedTuple):
    """Reports that an outcome of another open block has not arrived in time.

    Parameters
    ----------
    block : int
        The number of the block that has waited.
    peer : int
        The number of the other block.
    member : int
        The member of the other block.
    """

    block: int
    peer: int
    member: int


class OutputReport(NamedTuple):
    """Reports what a member has written to a stream.

    Parameters
    ----------
    block : int
        The block's number.
    member : int
        The member.
    attempt : int
        The number of the attempt, from 1.
    stream : int
        0 for stdout, 1 for stderr.
    begin : int
        The position of the data in the stream. Bytes.
    data : bytes
        What it has written there.
    is_whole : bool
        Whether this is a part of the text that is kept of a member that is over.
    """

    block: int
    member: int
    attempt: int
    stream: int
    begin: int
    data: bytes
    is_whole: bool = False


#: What a worker reports of a running block to the client, in the order of the events.
Report = (
    OutcomeReport
    | RunningReport
    | ExpiredReport
    | MissingReport
    | OutputReport
    | OpenedReport
    | ClosedReport
    | SilentPeerReport
)

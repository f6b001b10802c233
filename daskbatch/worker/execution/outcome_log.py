"""Records the outcomes of a block's members in order, and reports those that are new.

One thread at a time records; other threads may read what has been recorded meanwhile.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence

from daskbatch.serialization.stored_value import StoredValue
from daskbatch.worker.execution.block import OutcomeReport
from daskbatch.worker.execution.measures import UNKNOWN_CPU, Measures, MemberDetails
from daskbatch.worker.execution.outcome import BlockResult

#: A report ends once it has more than this many bytes of values.
_MAX_REPORT_BYTES = 512 * 1024


class OutcomeLog:
    """The outcomes of a block's members, from the first member on and without gaps.

    A run gets its log when it is made, and other runs of the same block may continue the same
    log. One thread at a time may call `record`. Other threads may meanwhile read the
    attributes up to `len(statuses)`, and one of them at a time may call `new_reports`.

    Parameters
    ----------
    statuses : iterable of int
        The statuses of the first members, if they are over already.
    values : iterable of bytes or None
        Their values.
    outputs : mapping
        Their outputs.

    Attributes
    ----------
    statuses : bytearray
        A `Status` for each member that is over.
    values : list of bytes or None
        The pickled values and packed exceptions.
    durations : array of float
        How long each ran, in seconds; 0 for a member that was over before this was made.
    ended : array of float
        When each ended, in seconds since the epoch; 0 if it is not known.
    cpu_seconds : array of float
        The processor time of each; `UNKNOWN_CPU` if it is not known.
    details : dict
        What is recorded only of some members.
    outputs : dict
        stdout and stderr of those members that wrote any.
    """

    __slots__ = (
        "_reported",
        "cpu_seconds",
        "details",
        "durations",
        "ended",
        "outputs",
        "statuses",
        "values",
    )

    def __init__(
        self,
        statuses: Iterable[int] = (),
        values: Iterable[bytes | None] = (),
        outputs: Mapping[int, tuple[str, str]] | None = None,
    ) -> None:
        self.statuses = bytearray(statuses)
        self.values = list(values)
        self.durations = array("f", bytes(4 * len(self.statuses)))
        self.ended = array("d", bytes(8 * len(self.statuses)))
        self.cpu_seconds = array("f", [UNKNOWN_CPU] * len(self.statuses))
        self.details: dict[int, MemberDetails] = {}
        self.outputs = dict(outputs or {})
        self._reported = 0

    def record(
        self,
        member: int,
        status: int,
        value: bytes | None,
        seconds: float,
        output: tuple[str, str] | None,
        ended: float = 0.0,
        cpu_seconds: float = UNKNOWN_CPU,
        details: MemberDetails | None = None,
    ) -> None:
        """Record the outcome of the next member.

        Parameters
        ----------
        member : int
            The member; its number is that of the members recorded before.
        status : int
            Its `Status`.
        value : bytes, optional
            Its pickled value or packed exception.
        seconds : float
            How long it ran.
        output : (str, str), optional
            Its stdout and stderr, if it wrote anything.
        ended, cpu_seconds : float
            When it ended, and its processor time; see `ended` and `cpu_seconds` above.
        details : MemberDetails, optional
            What is recorded only of some members.
        """
        self.values.append(value)
        self.durations.append(seconds)
        self.ended.append(ended)
        self.cpu_seconds.append(cpu_seconds)
        if details is not None:
            self.details[member] = details
        if output is not None:
            self.outputs[member] = output
        # Last: other threads take the length of `statuses` for that of all sequences.
        self.statuses.append(status)

    def drop_value(self, member: int) -> None:
        """Forget the value of a member that is over: no task needs it any longer."""
        self.values[member] = None

    def result(self) -> BlockResult:
        """Return all outcomes so far."""
        statuses = bytes(self.statuses)
        return BlockResult(statuses, self.values, self.outputs, empty=not statuses)

    def new_reports(
        self, block: int, stop: int, limit: int, worker: str = "", pid: int = 0
    ) -> list[OutcomeReport]:
        """Return reports of the outcomes since the last call.

        Parameters
        ----------
        block : int
            The block's number.
        stop : int
            The number of members to report on: later ones are left for the next call.
        limit : int
            Larger values and outputs are left out. Bytes.
        worker, pid : str, int
            The worker's address, and its process.
        """
        reports: list[OutcomeReport] = []
        while self._reported < stop:
            report = self._report(block, self._reported, stop, limit, worker, pid)
            reports.append(report)
            self._reported += len(report.statuses)
        return reports

    def report_again(self) -> None:
        """Have the next call of `new_reports` begin with the first member."""
        self._reported = 0

    def _measures(self, start: int, count: int, worker: str, pid: int) -> Measures:
        part = slice(start, start + count)
        details = self.details
        return Measures(
            worker,
            pid,
            self.ended[part].tobytes(),
            self.cpu_seconds[part].tobytes(),
            {i: details[start + i] for i in range(count) if start + i in details}
            if details
            else {},
            start,
        )

    def _report(
        self, block: int, start: int, stop: int, limit: int, worker: str, pid: int
    ) -> OutcomeReport:
        values: list[bytes | None] = []
        references: dict[int, bytes] = {}
        size = 0
        for member, value in enumerate(self.values[start:stop], start):
            inline = value is not None and len(value) <= limit
            if type(value) is StoredValue:
                inline = False
                references[member] = bytes(value)
            values.append(value if inline else None)
            if inline:
                size += len(value)  # type: ignore[arg-type]
                if size > _MAX_REPORT_BYTES:
                    stop = start + len(values)
                    break
        return OutcomeReport(
            block,
            start,
            bytes(self.statuses[start:stop]),
            values,
            self.durations[start:stop].tobytes(),
            _inline_outputs(self.outputs, range(start, stop), limit) if self.outputs else {},
            self._measures(start, stop - start, worker, pid),
            references,
        )


def _inline_outputs(
    outputs: Mapping[int, tuple[str, str]], members: Sequence[int], limit: int
) -> dict[int, tuple[str, str] | None]:
    """Return what members wrote; None for more than `limit` bytes."""
    found: dict[int, tuple[str, str] | None] = {}
    if outputs:
        for member in members:
            texts = outputs.get(member)
            if texts is not None:
                found[member] = texts if sum(map(_utf8_size, texts)) <= limit else None
    return found


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

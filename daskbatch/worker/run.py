"""Runs a block: its tasks one after another, an outcome for each.

Does not know Dask, nor any graph beyond what each member says that it takes.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from time import perf_counter
from types import CoroutineType
from typing import Any, Protocol

from daskbatch import pickling
from daskbatch.errors import (
    ProcessFailed,
    SerializationError,
    TaskCrashed,
    TaskError,
    TaskTimeout,
)
from daskbatch.worker.block import LOCAL, BlockSpec, Limits, Link, Part, Report, Source
from daskbatch.worker.capture import Capture, capturing
from daskbatch.worker.outcome import BlockResult, Status, pack_error, safe_str

#: What a claim on a member says when the runner has it; else it is a `Status`.
_RUN = -1

#: A report carries about this many bytes of values at most.
_REPORT_BYTES = 512 * 1024

_NO_LINK = Link()
_NO_LIMITS = Limits()


class Reporter(Protocol):
    """Told when a block begins and ends; it asks for the reports when it likes."""

    def begin(self, run: BlockRun) -> None: ...

    def end(self, run: BlockRun) -> None: ...


def run_block(payload: bytes, *inputs: Any, reporter: Reporter | None = None) -> BlockResult:
    """Run a block; never raises.

    Parameters
    ----------
    payload : bytes
        A pickled `BlockSpec`.
    *inputs : BlockResult or bytes
        The results of the blocks that this one depends on, and large buffers.
    reporter : Reporter, optional
        Who is told of the progress.
    """
    run = BlockRun(pickling.loads(payload), inputs)
    if reporter is None:
        return run()
    reporter.begin(run)
    try:
        return run()
    finally:
        reporter.end(run)


class BlockRun:
    """A block while it runs.

    The thread that calls it appends outcomes; others may meanwhile ask for a report,
    defer what has not begun, and revoke members. A member belongs to whoever claims it
    first, which `dict.setdefault` decides: it cannot be both run and given away.
    """

    def __init__(self, spec: BlockSpec, inputs: Sequence[Any]) -> None:
        self.spec = spec
        self.inputs = inputs
        self.began = perf_counter()
        self._functions: list[Callable[..., Any] | None] = [None] * len(spec.functions)
        self._claims: dict[int, int] = {}
        self._statuses = bytearray()
        self._values: list[bytes | None] = []
        self._durations = array("f")
        self._outputs: dict[int, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._reported = 0
        self._running = -1
        self._expired = False
        self._told_running = -1
        self._told_expired = False

    # -- the thread that runs the block ---------------------------------------------------

    def __call__(self) -> BlockResult:
        spec, claims, links = self.spec, self._claims, self.spec.links
        statuses, values, durations = self._statuses, self._values, self._durations
        deadline = self.began + spec.budget
        room = spec.share_limit
        last = perf_counter()
        with capturing(spec.output_limit) as capture:
            for member, (index, data) in enumerate(spec.calls):
                self._running = member
                link = links.get(member, _NO_LINK)
                status: int = Status.DONE if link is _NO_LINK else self._ready(link)
                value = None
                claim = claims.setdefault(member, _RUN)
                if claim != _RUN:
                    # What comes after it takes its being over for the being over of all that
                    # it waits for: if that was deferred, so is this, cancelled or not.
                    if status != Status.DEFERRED:
                        status = claim
                elif status == Status.DONE:
                    status, value = self._run(member, index, data, link, capture)
                    if capture.stdout.size or capture.stderr.size:
                        room -= capture.stdout.size + capture.stderr.size
                        self._outputs[member] = capture.texts()
                        capture.clear()
                    room -= len(value)
                now = perf_counter()
                values.append(value)
                durations.append(now - last)
                # Last, since a report takes its length for that of all.
                statuses.append(status)
                last = now
                if now > deadline or room < 0:
                    self.defer_rest()
        self._running = -1
        return BlockResult(bytes(statuses), values, self._outputs)

    def _status_of(self, source: Source) -> int:
        position, member = source
        if position == LOCAL:
            return self._statuses[member]
        status: int = self.inputs[position].statuses[member]
        return status

    def _ready(self, link: Link) -> int:
        """Say DONE if a member may run, else what becomes of it instead."""
        status = Status.DONE
        for source in link.needs:
            found = self._status_of(source)
            if found == Status.DEFERRED:
                return Status.DEFERRED
            if found:
                status = Status.SKIPPED
        for source in link.after:
            if self._status_of(source) == Status.DEFERRED:
                return Status.DEFERRED
        return status

    def _part(self, part: Part | bytes | str) -> bytes | str:
        if not isinstance(part, Part):
            return part
        (position, member), name = part
        values, outputs = (
            (self._values, self._outputs)
            if position == LOCAL
            else (self.inputs[position].values, self.inputs[position].outputs)
        )
        if name == "result":
            return values[member]  # type: ignore[return-value]
        texts: tuple[str, str] = outputs.get(member, ("", ""))
        return texts[name == "stderr"]

    def _run(
        self, member: int, index: int, data: bytes, link: Link, capture: Capture
    ) -> tuple[int, bytes]:
        if index < 0:
            return Status.DONE, _NONE
        attempts, timeout = self.spec.limits.get(member, _NO_LIMITS)
        while True:
            doing = "its function could not be loaded on the worker"
            try:
                function = self._functions[index]
                if function is None:
                    function = self._functions[index] = load_function(self.spec.functions[index])
                doing = "its arguments could not be loaded on the worker"
                if link is _NO_LINK:
                    args, kwargs = pickling.loads(data)
                else:
                    args, kwargs = self._arguments(data, link)
                doing = ""
                began = 0.0 if timeout is None else perf_counter()
                value = function(*args, **kwargs)
                if type(value) is CoroutineType:
                    value = asyncio.run(value)
                if timeout is not None and perf_counter() - began > timeout:
                    raise TaskTimeout(f"it ran for longer than its timeout of {timeout:g} s")
                doing = f"its {type(value).__name__} cannot be sent"
                return Status.DONE, pickling.dumps(value)
            except BaseException as raised:
                error = _as_task_error(raised, doing, self.spec.label(member))
                if attempts > 0:
                    attempts -= 1
                    capture.clear()
                    continue
                return Status.FAILED, pack_error(error, self.spec.label(member))

    def _arguments(self, data: bytes, link: Link) -> Any:
        values = [self._part(value) for value in link.values]
        buffers = [self.inputs[position] for position in link.buffers]
        return pickling.unpack(data, values, buffers)

    # -- other threads --------------------------------------------------------------------

    def defer_rest(self) -> None:
        """Give away the members that have not begun."""
        for member in range(self._running + 1, len(self.spec.calls)):
            self._claims.setdefault(member, Status.DEFERRED)
        self._expired = True

    def expire(self) -> None:
        """Give away the members that have not begun, if the budget is used up."""
        # One member at least, or a block would never get on where there is little time.
        if self._running < 0 or self._expired:
            return
        if perf_counter() - self.began > self.spec.budget:
            self.defer_rest()

    def revoke(self, members: Iterable[int], status: Status) -> list[int]:
        """Take members back; returns those that have begun, and so cannot be."""
        return [m for m in members if self._claims.setdefault(m, status) == _RUN]

    def revoke_all(self) -> None:
        """Cancel what has not begun."""
        self.revoke(range(len(self.spec.calls)), Status.CANCELLED)

    def reports(self) -> list[Report]:
        """Tell what has happened since the last call."""
        with self._lock:
            done, running = len(self._statuses), self._running
            rest = b""
            expired = self._expired and not self._told_expired and running >= 0
            if expired:
                self._told_expired = True
                claims = self._claims
                behind = range(running + 1, len(self.spec.calls))
                rest = bytes(max(claims[member], Status.DONE) for member in behind)
            # What is not sent now is to be had when the block is over. While a member runs
            # that may take some time; and by then little has been returned.
            limit = self.spec.share_limit if running >= 0 else self.spec.inline_limit
            reports = []
            while self._reported < done:
                reports.append(self._report(self._reported, done, limit))
                self._reported += len(reports[-1].statuses)
            if expired or running >= max(done, self._told_running + 1):
                self._told_running = running
                blank = Report(self.spec.block, done, b"", (), b"", {}, running, rest, expired)
                reports.append(blank)
            return reports

    def _report(self, start: int, stop: int, limit: int) -> Report:
        values: list[bytes | None] = []
        size = 0
        for value in self._values[start:stop]:
            inline = value is not None and len(value) <= limit
            values.append(value if inline else None)
            if inline:
                size += len(value)  # type: ignore[arg-type]
                if size > _REPORT_BYTES:
                    stop = start + len(values)
                    break
        outputs: dict[int, tuple[str, str] | None] = {}
        if self._outputs:
            for member in range(start, stop):
                texts = self._outputs.get(member)
                if texts is not None:
                    outputs[member] = texts if sum(map(_bytes_of, texts)) <= limit else None
        return Report(
            self.spec.block,
            start,
            bytes(self._statuses[start:stop]),
            values,
            self._durations[start:stop].tobytes(),
            outputs,
            -1,
            b"",
        )


_NONE = pickling.dumps(None)


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


@lru_cache(maxsize=256)
def load_function(data: bytes) -> Callable[..., Any]:
    """Unpickle a function, once for each that this process meets."""
    function: Callable[..., Any] = pickling.loads(data)
    return function


def _as_task_error(error: BaseException, doing: str, label: str) -> BaseException:
    """Make an error that names the task of what is none of its function's own."""
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        made: TaskError = TaskCrashed(
            f"task {label} called sys.exit({safe_str(error.code, repr)})", exitcode=code
        )
    elif isinstance(error, KeyboardInterrupt):
        made = TaskCrashed(f"task {label} was interrupted", exitcode=-signal.SIGINT)
    elif doing:
        said = f"{type(error).__name__}: {safe_str(error)}"
        made = SerializationError(f"task {label}: {doing}: {said}")
    elif isinstance(error, (ProcessFailed, TaskTimeout)):
        error.args = (f"task {label}: {error}",)
        return error
    else:
        return error
    return made.with_traceback(error.__traceback__)

"""Runs a block: its tasks one after another, with an outcome for each.

Does not know Dask, nor the graph: of a member's dependencies it knows what the member's `Link`
says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from time import perf_counter, thread_time
from types import CoroutineType
from typing import Any

from daskbatch.forking import end_forked_process, generation
from daskbatch.serialization import classes, loading, mirror, pickling, stored_value
from daskbatch.serialization.exceptions import pack_error
from daskbatch.serialization.plain_containers import find_large, is_plain_at_ends
from daskbatch.serialization.stored_value import StoredValue, is_slow_to_free
from daskbatch.worker.execution.block import (
    LOCAL,
    NO_LIMITS,
    BlockMember,
    BlockSpec,
    DeclaredFiles,
    Link,
    Source,
)
from daskbatch.worker.execution.capture import Capture, capturing
from daskbatch.worker.execution.claims import RUN, Claims, LocalClaims
from daskbatch.worker.execution.declared_files import (
    INPUT,
    OUTPUT,
    missing_error,
    missing_inputs,
    missing_outputs,
)
from daskbatch.worker.execution.executable import execute
from daskbatch.worker.execution.handover import drop_offer, take_offer
from daskbatch.worker.execution.initialized_function import InitializedFunction
from daskbatch.worker.execution.journal import NOT_MEASURED
from daskbatch.worker.execution.loaded_function import (
    LoadedFunction,
    load_anew,
    load_with_definitions,
)
from daskbatch.worker.execution.measures import MemberDetails, RunElsewhere, Usage
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.outcome_log import OutcomeLog
from daskbatch.worker.execution.output_stream import OutputPart
from daskbatch.worker.execution.progress import Progress
from daskbatch.worker.execution.returned_arrays import known_key, making_in_place, store
from daskbatch.worker.execution.task_context import active_context
from daskbatch.worker.execution.task_errors import (
    LOADING_ARGUMENTS,
    LOADING_FUNCTION,
    SENDING_RESULT,
    as_task_error,
)
from daskbatch.worker.mpi.job import run_job
from daskbatch.worker.mpi.rank_function import PackedCall, RankFunction

_NO_LINK = Link()
_PICKLED_NONE = pickling.dumps(None)

#: Processor time is read once at least this much time has passed: the system call takes as long as
#: a short member. Shorter members count as if they had computed all the time.
_MIN_MEASURED_SECONDS = 0.001


class BlockRun(Progress):
    """A block whose members are run one after another by the thread that calls it.

    The loop is the same for all runs. Subclasses override the hooks below it, which say how a
    function is called, and what else is done at certain points. `Progress` says what other
    threads may call.

    Parameters
    ----------
    spec : BlockSpec
        The block.
    inputs : sequence of BlockResult or bytes
        The results of the blocks that it depends on, and large buffers.
    claims : Claims, optional
        Decides which members are run; else a `LocalClaims`.
    log : OutcomeLog, optional
        Receives the outcomes, and may hold those of the first members already; else a new one.
    """

    def __init__(
        self,
        spec: BlockSpec,
        inputs: Sequence[Any],
        claims: Claims | None = None,
        log: OutcomeLog | None = None,
    ) -> None:
        super().__init__(
            spec,
            LocalClaims() if claims is None else claims,
            OutcomeLog() if log is None else log,
        )
        self.inputs = inputs
        self._functions: list[LoadedFunction | None] = [None] * len(spec.functions)
        #: Those functions that are expected to return large arrays: what stands for them.
        self._in_place: dict[int, bytes] = {}
        #: Whether a member's arguments are being loaded, and not used yet.
        self.loading = False
        #: When the running member has begun, by `perf_counter`; and how often it was tried again.
        self._member_began = self.began
        self._retried = 0
        #: What processes of the running member have used.
        self._usage: Usage | None = None
        #: Set by `_run` if another process has run the member.
        self._elsewhere: RunElsewhere | None = None
        #: Where the output of the running member is.
        self._output: Capture | None = None
        self._scope = loading.TaskScope(spec.topic, self)
        self._declared = spec.declared
        #: The declared paths that were there when the last member had succeeded.
        self._found: tuple[str, ...] = ()
        #: The generation of the process that runs the block: a member may fork.
        self._process = generation()

    def __call__(self) -> BlockResult:
        spec, claims, log, links = self.spec, self.claims, self.log, self.spec.links
        journal = self.journal
        deadline = self.began + spec.budget
        remaining_bytes = spec.share_limit
        remaining_stored = stored_value.block_limit()
        offset = self.epoch_offset
        measured = last = perf_counter()
        measured_cpu = self._cpu_clock()
        with (
            active_context(self.context, self.owns_process),
            loading.enter(self._scope),
            self._capturing() as capture,
        ):
            self._output = capture
            for member in self._members():
                # Of an open block: after the wait for the member.
                self._member_began = last + self.preparation
                self.running = member
                link = links.get(member, _NO_LINK)
                status: int = Status.DONE if link is _NO_LINK else self._ready(link)
                value: bytes | None = None
                output: tuple[str, str] | None = None
                ended, cpu, details = NOT_MEASURED
                claim = claims.claim(member)
                if journal is not None and self.journals_members:
                    journal.set_running(member)
                if claim != RUN:
                    # Once this member is over, the members behind it conclude that all that it
                    # waits for is over, too. So if one of those was deferred, this member is
                    # deferred, even if it was cancelled.
                    if status != Status.DEFERRED:
                        status = claim
                elif status == Status.DONE:
                    status, value = self._run(member, link, capture)
                    ended = 1.0
                    if self.preparation:
                        # The next members of this kind need not wait for this again.
                        last += self.preparation
                        self.preparation = 0.0
                    if capture.stdout.size or capture.stderr.size:
                        output = capture.texts()
                        remaining_bytes -= sum(map(len, output))
                        capture.clear()
                    if value is not None:
                        remaining_bytes -= len(value)
                        if type(value) is StoredValue:
                            remaining_stored -= value.stored_bytes
                now = perf_counter()
                seconds = now - last
                elsewhere = self._elsewhere
                if elsewhere is not None:
                    seconds, ended, cpu, details, _ = elsewhere
                    self._elsewhere = None
                elif ended:
                    ended, cpu = now + offset, seconds
                    if now - measured > _MIN_MEASURED_SECONDS:
                        spent = self._cpu_clock()
                        cpu = max(0.0, spent - measured_cpu - (last - measured))
                        measured, measured_cpu = now, spent
                    if self._usage is not None or self._retried or self.tried or self.owns_process:
                        details = self._details(member, seconds)
                        if self._usage is not None:
                            cpu = self._usage.cpu_seconds
                            self._usage = None
                        self._retried = 0
                if (
                    journal is not None
                    and spec.journaled
                    and member != self.interrupted
                    and not (elsewhere is not None and elsewhere.journaled)
                ):
                    kept = kept_value(value)
                    journal.record((member, status, kept, seconds, output, ended, cpu, details))
                log.record(member, status, value, seconds, output, ended, cpu, details)
                last = now
                if now > deadline or remaining_bytes < 0 or remaining_stored < 0:
                    self.defer_rest()
        self.running = -1
        mirror.end(self._scope)
        return log.result()

    # -- hooks ------------------------------------------------------------------------------

    #: Whether this process runs nothing else.
    owns_process = False

    #: Whether this run notes in the journal which member runs. Else the process does that runs it.
    journals_members = True

    #: Whether large values are stored in memory that other processes map.
    stores_values = True

    #: Returns the processor time of what runs the members, from any begin on.
    _cpu_clock = staticmethod(thread_time)

    def _details(self, member: int, seconds: float) -> MemberDetails:
        """Return what is recorded of a member that has just ended, and ran for some seconds."""
        usage = self._usage or Usage()
        attempts = self.tried.get(member, 0) + self._retried + 1
        return MemberDetails(attempts, usage.pid, usage.max_memory)

    def add_usage(self, usage: Usage) -> None:
        """Record what processes of the running member have used in one attempt."""
        self._usage = usage.after(self._usage)

    def read_output(self, member: int, name: str, position: int, most: int) -> OutputPart | None:
        capture, attempt = self._output, self._retried
        if capture is None or self.running != member or member < len(self.log.statuses):
            return None
        begin, data = capture.since(name, position, most)
        # The member may have ended or failed meanwhile, and what was read may be of another one.
        if self.running != member or self._retried != attempt or member < len(self.log.statuses):
            return None
        return OutputPart(self.tried.get(member, 0) + attempt + 1, begin, data)

    def _attempt_of(self, member: int) -> int:
        return self._retried + 1

    def _began_at(self, member: int) -> float:
        return self._member_began

    #: How long the running member has waited for what later ones find ready, such as ranks that
    #: have started. Its duration does not contain this. Seconds.
    preparation = 0.0

    def _members(self) -> Iterable[int]:
        """Return the members that are to run, in order."""
        return range(len(self.log.statuses), len(self.spec.calls))

    def _capturing(self) -> AbstractContextManager[Capture]:
        """Capture what members write, within a `with` statement."""
        return capturing(self.spec.output_limit)

    def _before_call(self) -> None:
        """Called when a member's function is about to be called."""

    def _call(
        self, member: int, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a member's function."""
        return function(*args, **kwargs)

    def _call_in_place(
        self,
        index: int,
        member: int,
        function: Callable[..., Any],
        args: Any,
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Call a member's function; the large arrays that it makes may be where values are."""
        key = self._in_place.get(index)
        if key is None:
            return self._call(member, function, args, kwargs)
        with making_in_place(key):
            return self._call(member, function, args, kwargs)

    def _may_retry(self, member: int) -> bool:
        """Return whether a member that has failed may be tried again, if attempts remain."""
        return True

    def _before_retry(self) -> None:
        """Called when a member is about to be tried again."""

    def _packed_error(self, error: BaseException, member: int, place: str) -> bytes:
        """Return the packed error of a member that has failed at a place; see `place`."""
        return pack_error(error, self.spec.label(member), heading=place)

    # -- one member -------------------------------------------------------------------------

    def _status_of(self, source: Source) -> int:
        """Return the status of a predecessor."""
        position, member = source
        if position == LOCAL:
            return self.log.statuses[member]
        result: BlockResult = self.inputs[position]
        # The client decides whether a lost outcome is produced again or given up. An open block
        # may have closed before it received the member.
        known = member < len(result.statuses)
        return result.statuses[member] if known else Status.DEFERRED

    def _ready(self, link: Link) -> int:
        """Return DONE if a member may run, else the status that it gets instead."""
        status = Status.DONE
        for source in link.needs:
            needed = self._status_of(source)
            if needed == Status.DEFERRED:
                return Status.DEFERRED
            if needed:
                status = Status.SKIPPED
        for source in link.after:
            if self._status_of(source) == Status.DEFERRED:
                return Status.DEFERRED
        for value in link.values:
            # A value that existed when this block was submitted may have been lost since.
            if isinstance(value, BlockMember):
                position, _ = value.source
                if position != LOCAL and self.inputs[position].lost:
                    return Status.DEFERRED
        return status

    def _part(self, part: BlockMember | bytes | str) -> bytes | str:
        """Return the value or text that fills a placeholder."""
        if not isinstance(part, BlockMember):
            return part
        (position, member), name = part
        values, outputs = (
            (self.log.values, self.log.outputs)
            if position == LOCAL
            else (self.inputs[position].values, self.inputs[position].outputs)
        )
        if name == "result":
            return values[member]  # type: ignore[return-value]
        texts: tuple[str, str] = outputs.get(member, ("", ""))
        return str(texts[name == "stderr"])

    def _run(self, member: int, link: Link, capture: Capture) -> tuple[int, bytes | None]:
        """Run a member, with its retries; return its status, and its value or exception."""
        index, data = self.spec.calls[member]
        if index < 0:
            return Status.DONE, _PICKLED_NONE
        attempts = retries = self.spec.limits.get(member, NO_LIMITS).retries
        context = self.context
        value: Any = None
        process = self._process
        self.slow_arguments = None
        while True:
            if context is not None:
                context.next_task()
            doing = LOADING_FUNCTION
            try:
                loaded = self._functions[index]
                if loaded is None:
                    loaded = self._functions[index] = self._load(index)
                function, definitions = loaded
                if self._scope.function is not definitions:
                    definitions.apply(classes.serial_of)
                    mirror.begin(self._scope, definitions)
                doing = LOADING_ARGUMENTS
                self.loading = True
                slow: list[Any] = []
                if type(function) is RankFunction:
                    # This process must not unpickle the arguments of ranks.
                    args, kwargs = (self._packed_call(function, data, link),), {}
                elif link is _NO_LINK:
                    args, kwargs = pickling.loads(data)
                else:
                    args, kwargs, slow = self._arguments(data, link)
                drop_offer()
                self.loading = False
                doing = ""
                declared = self._declared.get(member) if self._declared else None
                found, self._found = self._found, ()
                if declared is not None:
                    # What the member before has left, a moment ago, is not looked for again.
                    known = found == declared.reads and not self.preparation
                    if not known and (missing := missing_inputs(declared)):
                        self._report_missing(member, declared, INPUT, missing)
                    if declared.rules >= 0 and not _runs_elsewhere(function):
                        function = self._watched(member, declared, function)
                self._before_call()
                if self._in_place and index in self._in_place:
                    value = self._call_in_place(index, member, function, args, kwargs)
                else:
                    value = self._call(member, function, args, kwargs)
                if process != generation():
                    end_forked_process(None)
                if type(value) is CoroutineType:
                    # Not at the top: a child starts faster without it.
                    import asyncio

                    value = self._call_in_place(index, member, asyncio.run, (value,), {})
                if context is not None and context.resources:
                    # The task is over once the tasks that it has submitted are over.
                    self._call(member, context.finish, (), {})
                if declared is not None:
                    if missing := missing_outputs(declared):
                        self._report_missing(member, declared, OUTPUT, missing)
                    elif not declared.removes:
                        self._found = declared.writes
                elif slow:
                    # Other objects may do something when they are freed: the task ends after that.
                    self.slow_arguments = [each for each in slow if is_plain_at_ends(each)] or None
                if value is None:
                    return Status.DONE, _PICKLED_NONE
                doing = SENDING_RESULT
                if not self.stores_values:
                    return Status.DONE, pickling.dumps(value)
                if type(value) in pickling.PLAIN:
                    return Status.DONE, stored_value.dumps(value, self.spec.inline_limit)
                box, value = [value], None
                try:
                    return Status.DONE, self._store(index, box)
                except BaseException:
                    value = box[0] if box else None
                    raise
            except BaseException as raised:
                self.loading = False
                if process != generation():  # the function has forked: this is its child
                    end_forked_process(raised)
                if context is not None and context.resources:
                    context.give_up()
                error = as_task_error(raised, doing, self.spec.label(member), value)
                if attempts > 0 and self._may_retry(member):
                    attempts -= 1
                    self._retried += 1
                    self._before_retry()
                    capture.clear()
                    continue
                place = self.place(member, retries - attempts)
                return Status.FAILED, self._packed_error(error, member, place)

    def _store(self, index: int, box: list[Any]) -> bytes:
        """Store the only object in a list, which a function has returned."""
        function = self._content(self.spec.functions[index])
        stored = store(box, function, self.spec.inline_limit, watched=not self.owns_process)
        if type(stored) is StoredValue:
            self._note_known(index, function)
        return stored

    def _note_known(self, index: int, function: bytes) -> None:
        key = known_key(function)
        if key is None:
            self._in_place.pop(index, None)
        else:
            self._in_place[index] = key

    def _report_missing(
        self, member: int, declared: DeclaredFiles, kind: str, missing: tuple[str, ...]
    ) -> None:
        """Report declared files that are not there; in a strict Batch raise that."""
        if declared.rules >= 0:
            raise missing_error(kind, self.spec.label(member), missing)
        self.notice(member, kind, missing)

    def _watched(
        self, member: int, declared: DeclaredFiles, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return a function whose accesses are compared with what a member declares."""
        # Not at the top: few tasks are strict, and a child starts faster without it.
        from daskbatch.worker.execution.strict_access import Watch, WatchedFunction, load_rules

        rules = load_rules(self._content(self.spec.strict[declared.rules]))
        watch = Watch(self.spec.name(member), declared, rules)
        return WatchedFunction(function, watch, self.owns_process)

    def _load(self, index: int) -> LoadedFunction:
        data = self._content(self.spec.functions[index])
        self._note_known(index, data)
        if self.spec.setup is None:
            return load_with_definitions(data)
        function, definitions = load_anew(data)
        if type(function) is RankFunction:
            return function, definitions
        setup = self._content(self.spec.setup)
        return InitializedFunction(self.spec.namespace, setup, function), definitions

    def _content(self, given: bytes | int) -> bytes:
        """Return data that is given itself, or by the position of the input that holds it."""
        return self.inputs[given] if isinstance(given, int) else given

    def _packed_call(self, function: RankFunction, data: bytes, link: Link) -> PackedCall:
        setup = None if self.spec.setup is None else self._content(self.spec.setup)
        values = [self._part(value) for value in link.values]
        allocation = None if self.context is None else self.context.allocation
        if allocation is not None and len(allocation.hosts) > 1:
            values = [
                each if isinstance(each, str) else stored_value.carried(each) for each in values
            ]
        buffers = [self._buffer(each) for each in link.buffers]
        return PackedCall(function.data, setup, data, values, buffers)

    def _buffer(self, given: int | bytes) -> bytes | memoryview:
        """Return the content of a large buffer; the task may change it if it can be written to."""
        content: bytes = self.inputs[given] if isinstance(given, int) else given
        if isinstance(content, bytes) and stored_value.is_stored(content):
            return pickling.loads(content)  # type: ignore[no-any-return]
        return content

    def _arguments(self, data: bytes, link: Link) -> tuple[Any, Any, list[Any]]:
        """Return the positional and keyword arguments, and those that take long to free."""
        given = [self._part(value) for value in link.values]
        values = take_offer(given)
        buffers = [self._buffer(each) for each in link.buffers]
        with pickling.within(None if self.spec.setup is None else self.spec.namespace):
            args, kwargs = pickling.unpack(data, values, buffers)
        is_slow = any(map(is_slow_to_free, given))
        return args, kwargs, find_large((*args, *kwargs.values())) if is_slow else []


def kept_value(value: bytes | None) -> bytes | None:
    """Return what a journal keeps of a value: nothing if the value ends with the worker."""
    return None if type(value) is StoredValue else value


def _runs_elsewhere(function: Callable[..., Any]) -> bool:
    """Return whether a function of daskbatch starts other processes, which do the work."""
    return function is execute or function is run_job or type(function) is RankFunction

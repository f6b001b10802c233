"""The user's handle of one task: starts it, waits for it, returns its results.

A `Task` reads its `TaskRecord`, and only the dispatcher of its client changes the record once the
task is started. All methods may be called by several threads, except as `Task` notes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from numbers import Integral
from typing import Any

from daskbatch.batch.attentive_wait import wait_attentively
from daskbatch.batch.context import BatchContext
from daskbatch.batch.copies import copy_record
from daskbatch.batch.debugging import run_here
from daskbatch.batch.futures import TaskFuture, future_of
from daskbatch.batch.handle import Handle
from daskbatch.batch.info import TaskInfo, task_info
from daskbatch.batch.result import failure_of, load_result
from daskbatch.batch.started_tasks import remember
from daskbatch.batch.why import why
from daskbatch.cluster.session import Session
from daskbatch.describe.access import Mode
from daskbatch.describe.job_call import is_job
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.recovery import value_lost
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import LifecycleError, SpecError
from daskbatch.observation.output_follower import FollowedTask, follow, tail
from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.timeouts import Deadline, parse_timeout
from daskbatch.worker.execution.output_stream import OutputPart
from daskbatch.worker.execution.ranked_text import RankedText
from daskbatch.worker.execution.task_context import waiting_in_loop

#: In place of a result that has not been unpickled yet.
_NOT_LOADED = object()


class Task:
    """A unit of work; made by the methods of a `Batch`, and by imported templates.

    Not to be made by its constructor. Use it for type hints and for `isinstance`.

    Parameters
    ----------
    context : BatchContext
        What the tasks of one Batch share.
    record : TaskRecord
        What the dispatcher knows of the task.
    session : Session, optional
        The client that made the task; by default that of the context.

    Notes
    -----
    Several threads may start, wait for, query and cancel a task at the same time. If two threads
    start it, one of them gets a `LifecycleError`. `read`, `write` and `Batch.compile` belong to
    the description of a task: call them from one thread at a time.

    Examples
    --------
    >>> task = batch.function(print, "hello")
    >>> task.name, task.state, task.uid == batch.function(print).uid
    ('print', 'created', False)
    >>> task.start()
    >>> task.wait(timeout=60)
    >>> task.state, task.result.get(), task.stdout.get(), task.stderr.get()
    ('done', None, 'hello', '')
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_future",
        "_in_background",
        "_loaded",
        "_record",
        "_session",
    )

    #: The future of the task, once `as_future` was called.
    _future: TaskFuture

    def __init__(
        self, context: BatchContext, record: TaskRecord, session: Session | None = None
    ) -> None:
        self._context = context
        #: The client that made the task; another client may wait for it.
        self._session = context.session if session is None else session
        self._record = record
        #: The unpickled result, or `_NOT_LOADED`.
        self._loaded: Any = _NOT_LOADED
        #: Whether the task is queued, and starts when it is needed, until the user starts it.
        self._in_background = False

    # -- description ----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name of the task in messages and on Dask's dashboard."""
        return self._record.name

    @property
    def uid(self) -> str:
        """A text that no other task has."""
        return self._record.uid

    @property
    def state(self) -> str:
        """The state of the task.

        One of created, queued (in the background), waiting, running, done, failed, skipped (a task
        that it needs has not succeeded) and cancelled.
        """
        return self._record.phase.name.lower()

    @property
    def result(self) -> Handle:
        """The return value or the exit code, as a handle to `get` or to pass to other tasks."""
        return Handle(self, "result")

    @property
    def stdout(self) -> Handle:
        """What the task printed, also if it failed, as a handle to `get` or to pass on."""
        return Handle(self, "stdout")

    @property
    def stderr(self) -> Handle:
        """What the task wrote to stderr, as a handle to `get` or to pass on."""
        return Handle(self, "stderr")

    @property
    def info(self) -> TaskInfo:
        """What is known of the task now, as a record that does not change.

        To read it counts as a look at the task's failure.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.run()
        >>> task.info.name, task.info.state, task.info.error, task.info.warnings
        ('len', 'done', None, ())
        """
        return task_info(self._record, self._dispatcher)

    def why(self) -> str:
        """Say in one sentence where the task is and why: for what it waits, or what has failed.

        It asks the scheduler, if the task waits for a slot.

        Examples
        --------
        >>> batch.function(len, "four").why()
        "'len' ('four') has not been started: call start()."
        """
        return why(self._record, self._session)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.state}>"

    def _repr_html_(self) -> str:
        from daskbatch.batch.reporting.notebook_forms import task_html  # few programs need it

        return task_html(self)

    def _part_html(self, part: str) -> str:
        """Return the form of a handle in notebooks; see `Handle`."""
        from daskbatch.batch.reporting.notebook_forms import handle_html

        return handle_html(self, part)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduce_part("result")

    def _reduce_part(self, part: str) -> tuple[Any, ...]:
        """Return what pickle is to write where a part of the task stands among arguments."""
        reduced = pickling.reference((self._record, part))
        if reduced is None:
            raise TypeError(
                f"task {self._record.label} cannot be copied or sent away; to use its {part} "
                "there, give it as an argument to another task, not by way of a global name "
                "or a closure"
            )
        return reduced

    # -- accesses -------------------------------------------------------------------------

    def read(self, obj: Any, *channels: Any) -> None:
        """Declare that the task reads something; see `Batch.read`.

        Raises
        ------
        LifecycleError
            The task has been started.

        Examples
        --------
        >>> task = batch.function(sorted, "cab")
        >>> task.read("input", "letters.txt")
        """
        self._require_not_started()
        self._record.reads += self._context.access(Mode.READ, obj, channels).channels

    def write(self, obj: Any, *channels: Any) -> None:
        """Declare that the task writes something; see `Batch.write`.

        Raises
        ------
        LifecycleError
            The task has been started.

        Examples
        --------
        >>> task = batch.function(sorted, "cab")
        >>> task.write("output", "letters.txt")
        """
        self._require_not_started()
        if not self._record.writes:
            self._session.background.writers.add(self._record)
        self._record.writes += self._context.access(Mode.WRITE, obj, channels).channels

    def _require_not_started(self) -> None:
        if self._record.phase > Phase.QUEUED:
            raise LifecycleError(
                f"task {self._record.label} has been started: declare reads and writes before"
            )

    # -- starting and waiting -------------------------------------------------------------

    def start(self) -> None:
        """Start the task, and do not wait for it.

        Raises
        ------
        LifecycleError
            The task was started before, is a member of a compiled task, or takes the result of a
            task that was never started.
        SubmitAfterCloseError
            The Batch has been closed.
        GraphError, SpecError
            The task takes the result of another Batch's task, or needs what no worker has.
        """
        record = self._record
        if record.group is not None:
            raise LifecycleError(
                f"task {record.label} is a member of the compiled task {record.group.name!r}: "
                "start that instead"
            )
        if self._in_background and record.phase != Phase.CANCELLED:
            # The task may be running already, since another one needed it. Even so, the first
            # `start` by the user is not an error.
            self._session.background.start_queued([record])
            with self._dispatcher.outcomes.changed:
                first, self._in_background = self._in_background, False
            if first:
                return
        if record.phase != Phase.CREATED:
            raise LifecycleError(
                f"task {record.label} is {record.phase.name.lower()} already: a task starts once; "
                "again() returns a fresh one of the same description"
            )
        self._context.submit([record], record.name)
        remember(self._session, [self])

    def wait(
        self, timeout: float | None = None, *, check: bool = False, progress: bool = False
    ) -> None:
        """Wait until the task is over, however it ends.

        Ctrl-C ends the wait, and the task continues; a second Ctrl-C in a wait for the same task
        cancels it.

        Parameters
        ----------
        timeout : float, optional
            Maximum number of seconds to wait.
        check : bool
            Whether to raise the task's own exception at the end, if it has failed; of a compiled
            task `TasksFailed`.
        progress : bool
            Whether to show meanwhile how far it is: in a terminal as a line on stderr, in a
            notebook below the cell, else as few plain lines on stderr.

        Raises
        ------
        TimeoutError
            The task is not over within `timeout`.
        LifecycleError
            The task has not been started.
        Exception
            With `check`, what `get` raises; of a compiled task `TasksFailed`.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.start()
        >>> task.wait(check=True)
        """
        if not self._is_over():
            self._require_started()
            seconds = parse_timeout(timeout)
            if not (self._wait_shown(seconds) if progress else wait_attentively(self, seconds)):
                raise TimeoutError(f"task {self._record.label} is not over after {seconds:g} s")
        if check:
            self._raise_failure()

    def _wait_shown(self, seconds: float | None) -> bool:
        """Wait as `wait_attentively`, and show the progress meanwhile."""
        # Not at the top: most programs do not show it.
        from daskbatch.observation.progress_monitor import ProgressMonitor

        session, records = self._session, self._records_to_await()
        with ProgressMonitor(self.name, records, self._dispatcher, session.slots):
            return wait_attentively(self, seconds)

    def _raise_failure(self) -> None:
        """Raise the exception of the task, if it is over without success."""
        if self._record.unsuccessful:
            raise failure_of(self._record, self._dispatcher, None)

    @property
    def _dispatcher(self) -> Dispatcher:
        return self._session.dispatcher

    def _is_over(self) -> bool:
        return self._record.phase >= Phase.DONE

    def _count_unfinished(self) -> int:
        return int(not self._is_over())

    def _require_started(self) -> None:
        record = self._record
        if record.phase == Phase.CREATED:
            which = f"the compiled task {record.group.name!r}" if record.group is not None else "it"
            advice = f": call start() or run() of {which} first"
            if self._session.closed:
                advice = f", and its Batch has been closed: start {which} before that"
            raise LifecycleError(f"task {record.label} has not been started{advice}")
        if record.phase == Phase.QUEUED and record.group is None:
            self._session.background.flush([record])

    def run(
        self, timeout: float | None = None, *, check: bool = False, progress: bool = False
    ) -> None:
        """Start the task and wait until it is over, however it ends.

        Raises what `start` and `wait` raise.

        Parameters
        ----------
        timeout, check, progress
            See `wait`.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.run()
        >>> task.state
        'done'
        """
        self.start()
        self.wait(timeout, check=check, progress=progress)

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the task and return its result; see `Handle.get`, also for what it raises.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.start()
        >>> task.get()
        4
        """
        return self._get_part("result", timeout)

    def cancel(self) -> bool:
        """Keep the task from completing; to get its result then raises `TaskCancelled`.

        Returns
        -------
        bool
            True if the task will not complete: it has not begun, or it runs and is being stopped.
            False if it is over. A function in a thread stops when it next runs Python code.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.cancel()
        True
        >>> task.state
        'cancelled'
        """
        return bool(self._dispatcher.cancel([self._record]))

    def as_future(self) -> Future[Any]:
        """Return a future of `concurrent.futures` for the task, the same one each time.

        It works with `concurrent.futures.wait`, `asyncio.wrap_future`, tqdm and the like. To cancel
        it cancels the task. A task in the background is started.

        Raises
        ------
        LifecycleError
            The task has not been started.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.start()
        >>> task.as_future().result(timeout=60)
        4
        """
        return future_of(self)

    def again(self) -> Task:
        """Return a fresh task of the same description, to be started.

        It calls the same function with the same arguments, and has the same options, reads and
        writes. Where the arguments hold another task, that is the same task.

        Raises
        ------
        SubmitAfterCloseError
            The Batch has been closed.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.run()
        >>> task.again().state
        'created'
        """
        return Task(self._context, copy_record(self._context, self._record), self._session)

    def debug(self) -> Any:
        """Run a failed task again in this process, with the same arguments, to debug it.

        Where there is a terminal, the debugger `pdb` shows where it fails. What the task writes is
        written again.

        Returns
        -------
        object
            What the function returns, if it does not fail here.

        Raises
        ------
        LifecycleError
            The task has not failed by itself.
        Exception
            What the function raises here.

        Examples
        --------
        >>> task = batch.function(int, "no number")
        >>> task.run()
        >>> task.debug()
        Traceback (most recent call last):
            ...
        ValueError: invalid literal for int() with base 10: 'no number'
        """
        return run_here(self._record, self._session, self._dispatcher)

    @property
    def _condition(self) -> Any:
        # The functions of `concurrent.futures` look this up first. An `AttributeError`, so that
        # tools that look at all attributes of an object continue.
        raise AttributeError(
            f"task {self._record.label} is not a future of concurrent.futures: give the functions "
            "of concurrent.futures task.as_future(), or use daskbatch.as_completed(tasks)"
        )

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait without blocking the event loop; return or raise what `get` does."""
        return self._wait_and_get().__await__()

    async def _wait_and_get(self) -> Any:
        async with waiting_in_loop():
            await self._wait_async()
        loop = asyncio.get_running_loop()
        value, error = await loop.run_in_executor(None, self._value_or_error)
        if error is not None:
            raise error
        return value

    def _records_to_await(self) -> list[TaskRecord]:
        return [self._record]

    def _look_at_failures(self) -> None:
        """Record that the program has looked at how the task has ended."""
        for record in self._records_to_await():
            if record.unsuccessful:
                self._dispatcher.table.failures.look_at(record)

    def _outcome(self) -> tuple[Any, BaseException | None]:
        """Return what `get` returns or raises; it does not count as a look at a failure."""
        if self._record.unsuccessful:
            return None, failure_of(self._record, self._dispatcher, None, looked=False)
        return self._value_or_error()

    def _value_or_error(self) -> tuple[Any, BaseException | None]:
        """Return what `get` returns, and what it raises.

        The exception is returned and not raised: asyncio cannot pass each one, such as a
        `StopIteration`, from a thread to the coroutine that awaits it.
        """
        try:
            return self.get(), None
        except BaseException as error:
            return None, error

    async def _wait_async(self) -> None:
        """Wait until the task is over; the caller has released the worker slot."""
        if self._is_over():
            return
        self._require_started()
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def notify() -> None:
            # The loop may have been closed meanwhile; then no coroutine waits any longer.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(over.set)

        self._dispatcher.outcomes.when_over(self._record, notify)
        await over.wait()

    # -- the result and the output --------------------------------------------------------

    def _get_part(self, part: str, timeout: float | None) -> Any:
        """Wait for the task and return its result, stdout or stderr; see `Handle.get`."""
        record = self._record
        if record.phase < Phase.DONE:
            timeout = parse_timeout(timeout)
            deadline = Deadline(timeout)
            self.wait(timeout)
            timeout = deadline.remaining()
        if part != "result":
            self._fetch(lambda: record.output is None, timeout)
            if record.output is None:
                raise value_lost(record)
            return str(record.output[part == "stderr"])
        if self._loaded is _NOT_LOADED:
            if record.value is None and record.phase == Phase.DONE:
                self._fetch(lambda: record.value is None, timeout)
            if record.phase != Phase.DONE or record.value is None:
                raise failure_of(record, self._dispatcher, timeout)
            self._loaded = self._load()
        return self._loaded

    def _get_rank(self, part: str, index: int, timeout: float | None) -> str:
        """Wait for the task and return the output of one rank; see `Handle.rank`."""
        record = self._record
        ranks = record.options.gang.ranks if record.options.gang is not None else 0
        if part == "result" or not is_job(record.call):
            kind = "is its result" if part == "result" else "is not a parallel job"
            raise SpecError(
                f"task {record.label} {kind}: rank() is for the stdout and stderr of jobs"
            )
        if not isinstance(index, Integral) or isinstance(index, bool) or not 0 <= index < ranks:
            raise SpecError(
                f"task {record.label} has the ranks 0 to {ranks - 1}, not {safe_repr(index)}"
            )
        self._get_part(part, timeout)
        output = record.output
        assert output is not None
        text = output[part == "stderr"]
        # A job that has not run has written nothing.
        return text.rank(int(index)) if isinstance(text, RankedText) else ""

    def _tail_part(self, part: str, count: int) -> list[str]:
        """Return the last lines so far; see `Handle.tail`."""
        self._require_stream(part, "tail")
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise SpecError(f"tail() takes a positive number of lines, not {safe_repr(count)}")
        return tail(self._followed(part), int(count), self._reader(part))

    def _follow_part(self, part: str) -> Iterator[str]:
        """Return an iterator over the lines as they are written; see `Handle.follow`."""
        self._require_stream(part, "follow")
        if not self._is_over():
            self._require_started()
        return follow(self._followed(part), self._dispatcher, self._reader(part))

    def _require_stream(self, part: str, method: str) -> None:
        if part == "result":
            raise SpecError(
                f"{method}() is for the stdout and stderr of task {self._record.label}, not for "
                "its result"
            )

    def _followed(self, part: str) -> list[FollowedTask]:
        """Return the tasks whose output belongs to this one's."""
        return [FollowedTask(self._record, lambda: self._text_of(part))]

    def _text_of(self, part: str) -> str:
        """Return the whole text of a stream of this task, which is over."""
        if self._record.output is None:
            self._get_part(part, None)
        output = self._record.output
        return "" if output is None else output[part == "stderr"]

    def _reader(self, part: str) -> Callable[[TaskRecord, int, int], OutputPart | None]:
        session = self._session
        return lambda record, position, most: session.read_output(record, part, position, most)

    def _fetch_result(self) -> None:
        """Fetch the result from its worker, if the task succeeded and the result is not here."""
        if self._record.phase == Phase.DONE:
            self._fetch(lambda: self._record.value is None, None)

    def _fetch(self, is_missing: Callable[[], bool], timeout: float | None) -> None:
        """Fetch a value from its worker; if it was lost there, wait for the task to run again."""
        deadline = Deadline(timeout)
        while is_missing() and self._record.block is not None:
            remaining = deadline.remaining()
            self._dispatcher.fetch(self._record, remaining)
            self.wait(remaining)

    def _load(self) -> Any:
        data = self._record.value
        assert data is not None
        return load_result(lambda: pickling.loads(data), self._record)


def _target_of_handle(handle: Handle) -> tuple[TaskRecord, str] | None:
    task = handle._task
    return (task._record, handle._part) if type(task) is Task else None


pickling.register_target(Task, lambda task: (task._record, "result"))
pickling.register_target(Handle, _target_of_handle)

"""Tasks as the user holds them: to start, to wait for, to get the results of.

Does not know how tasks are placed or run: the dispatcher of their Batch moves them on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from daskbatch.batch.handle import Handle
from daskbatch.batch.result import failure_of, load_result
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.recovery import value_lost
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import LifecycleError
from daskbatch.serialization import pickling
from daskbatch.timeouts import parse_timeout
from daskbatch.worker.execution.task_context import waiting_in_loop

if TYPE_CHECKING:
    from daskbatch.batch.batch import Batch
    from daskbatch.cluster.session import Session

_UNKNOWN = object()


class Task:
    """A unit of work; made by `Batch.function`, `Batch.process` and imported templates.

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

    __slots__ = ("_batch", "_in_background", "_object", "_record", "_session")

    def __init__(self, batch: Batch, record: TaskRecord, session: Session | None = None) -> None:
        self._batch = batch
        #: The client that made it; whoever waits for it may be another.
        self._session = batch._session if session is None else session
        self._record = record
        self._object: Any = _UNKNOWN
        #: Whether it starts by itself when it is needed, and the user has not started it.
        self._in_background = False

    # -- what it is -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._record.name

    @property
    def uid(self) -> str:
        """A text that no other task has."""
        return self._record.uid

    @property
    def state(self) -> str:
        """One of created, queued (in the background), waiting, running, done, failed, cancelled."""
        return self._record.phase.name.lower()

    @property
    def result(self) -> Handle:
        """The return value, or the exit code, as something to `get` or to pass on."""
        return Handle(self, "result")

    @property
    def stdout(self) -> Handle:
        """What it printed, also if it failed, as something to `get` or to pass on."""
        return Handle(self, "stdout")

    @property
    def stderr(self) -> Handle:
        """What it wrote to stderr, as something to `get` or to pass on."""
        return Handle(self, "stderr")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return self._as_argument("result")

    def _as_argument(self, part: str) -> tuple[Any, ...]:
        found = pickling.reference((self._record, part))
        if found is None:
            raise TypeError(
                f"task {self._record.label} cannot be copied or sent away; to use its {part} "
                "there, give it as an argument to another task, not by way of a global name "
                "or a closure"
            )
        return found

    # -- accesses -------------------------------------------------------------------------

    def read(self, obj: Any, *channels: Any) -> None:
        """Say that the task reads something; see `Batch.read`.

        Raises
        ------
        LifecycleError
            The task has been started.

        Examples
        --------
        >>> task = batch.function(sorted, "cab")
        >>> task.read("input", "letters.txt")
        """
        self._require_accessible()
        self._record.reads += self._batch.read(obj, *channels).channels

    def write(self, obj: Any, *channels: Any) -> None:
        """Say that the task writes something; see `Batch.write`.

        Raises
        ------
        LifecycleError
            The task has been started.

        Examples
        --------
        >>> task = batch.function(sorted, "cab")
        >>> task.write("output", "letters.txt")
        """
        self._require_accessible()
        self._record.writes += self._batch.write(obj, *channels).channels

    def _require_accessible(self) -> None:
        if self._record.phase > Phase.QUEUED:
            raise LifecycleError(
                f"task {self._record.label} has been started: say what it reads and writes before"
            )

    # -- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the task, and do not wait for it.

        Raises
        ------
        LifecycleError
            It has been started before, is a member of a compiled task, or takes the result of
            a task that was never started.
        SubmitAfterCloseError
            The Batch has been closed.
        GraphError, SpecError
            It takes the result of another Batch's task, or asks for what no worker has.
        """
        record = self._record
        if record.group is not None:
            raise LifecycleError(
                f"task {record.label} is a member of the compiled task {record.group.name!r}: "
                "start that instead"
            )
        if self._in_background and record.phase != Phase.CANCELLED:
            # Another one may have been needed before: whoever starts this one need not know.
            self._session.background.start_queued([record])
            with self._dispatcher.outcomes.changed:
                first, self._in_background = self._in_background, False
            if first:
                return
        if record.phase != Phase.CREATED:
            raise LifecycleError(_started_already(record))
        self._batch._submit([record], record.name)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task is over, however it ends.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            The time is up first.
        LifecycleError
            Nobody has started the task.
        """
        if self._is_over():
            return
        self._require_started()
        seconds = parse_timeout(timeout)
        if not self._dispatcher.outcomes.wait(self._is_over, seconds):
            raise TimeoutError(f"task {self._record.label} is not over after {seconds:g} s")

    @property
    def _dispatcher(self) -> Dispatcher:
        return self._session.dispatcher

    def _is_over(self) -> bool:
        return self._record.phase >= Phase.DONE

    def _require_started(self) -> None:
        record = self._record
        if record.phase == Phase.CREATED:
            what = f"the compiled task {record.group.name!r}" if record.group is not None else "it"
            advice = f": start {what} first"
            if self._session.closed:
                advice = f", and its Batch has been closed: start {what} before that"
            raise LifecycleError(f"task {record.label} has not been started{advice}")
        if record.phase == Phase.QUEUED and record.group is None:
            self._session.background.flush([record])

    def run(self, timeout: float | None = None) -> None:
        """Start the task and wait until it is over, however: raises what `start` and `wait` do.

        Parameters
        ----------
        timeout : float, optional
            See `wait`.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.run()
        >>> task.state
        'done'
        """
        self.start()
        self.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the task and give its result; see `Handle.get` for what is raised, too.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.start()
        >>> task.get()
        4
        """
        return self._get("result", timeout)

    def cancel(self) -> bool:
        """Keep the task from completing; whoever asks for its result is given `TaskCancelled`.

        Returns
        -------
        bool
            True if it will not complete: it has not begun, or runs and is being stopped;
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

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the task, and give or raise what `get` does, without blocking the event loop."""
        return self._wait_and_get().__await__()

    async def _wait_and_get(self) -> Any:
        async with waiting_in_loop():
            await self._over()
        value, error = await asyncio.get_running_loop().run_in_executor(None, self._outcome)
        if error is not None:
            raise error
        return value

    def _outcome(self) -> tuple[Any, BaseException | None]:
        # As a value: not every exception can be raised from one thread into another's await.
        try:
            return self.get(), None
        except BaseException as error:
            return None, error

    async def _over(self) -> None:
        if self._is_over():
            return
        self._require_started()
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def tell() -> None:
            # The loop may have been closed meanwhile; then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(over.set)

        self._dispatcher.outcomes.when_over(self._record, tell)
        await over.wait()

    # -- what it leaves -------------------------------------------------------------------

    def _get(self, part: str, timeout: float | None) -> Any:
        record = self._record
        if record.phase < Phase.DONE:
            began = time.monotonic()
            timeout = parse_timeout(timeout)
            self.wait(timeout)
            if timeout is not None:
                timeout = max(0.0, timeout - (time.monotonic() - began))
        if part != "result":
            self._fetch(lambda: record.output is None, timeout)
            if record.output is None:
                raise value_lost(record)
            return record.output[part == "stderr"]
        if self._object is _UNKNOWN:
            if record.value is None and record.phase == Phase.DONE:
                self._fetch(lambda: record.value is None, timeout)
            if record.phase != Phase.DONE or record.value is None:
                raise failure_of(record, self._dispatcher, timeout)
            self._object = self._load()
        return self._object

    def _bring(self) -> None:
        """Bring here whatever the task has left on its worker."""
        if self._record.phase == Phase.DONE:
            self._fetch(lambda: self._record.value is None, None)

    def _fetch(self, missing: Callable[[], bool], timeout: float | None) -> None:
        """Bring here what is missing, even if the task has to run again for it."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while missing() and self._record.block is not None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._dispatcher.fetch(self._record, left)
            self.wait(left)

    def _load(self) -> Any:
        data = self._record.value
        assert data is not None
        return load_result(lambda: pickling.loads(data), self._record.label)


def _started_already(record: TaskRecord) -> str:
    return (
        f"task {record.label} is {record.phase.name.lower()} already: a task starts once, "
        "make another"
    )

"""The calls of one `map`: submits them ahead of the results that are asked for, in order.

One thread iterates the results. A timer thread may submit calls while the user's iterable is slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from daskbatch.batch.result import load_result
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import SpecError
from daskbatch.executor.call_factory import Arguments, CallFactory
from daskbatch.executor.pool import Pool
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.timeouts import Deadline
from daskbatch.worker.execution.chunk import Chunk
from daskbatch.worker.execution.task_context import waiting_in_loop

#: How many calls are submitted at once.
_MAX_SUBMIT_CALLS = 1024

#: After this time calls are submitted, however few the iterable has yielded.
_SUBMIT_DELAY_SECONDS = 0.01


class MapCall:
    """The calls of one `map`.

    One thread iterates the results; a timer thread may submit calls at the same time.

    Parameters
    ----------
    pool : Pool
        Runs the calls.
    calls : CallFactory
        Makes their records.
    function : callable
        The function that is called.
    arguments : iterable of tuple
        The arguments of each call.
    chunksize : int
        How many calls make a chunk.
    buffersize : int, optional
        How many calls, or chunks, are submitted ahead of the results that have been asked for;
        None for all.

    Raises
    ------
    SpecError, TypeError
        `chunksize` or `buffersize` is not a whole number from 1.
    """

    def __init__(
        self,
        pool: Pool,
        calls: CallFactory,
        function: Callable[..., Any],
        arguments: Iterable[Arguments],
        chunksize: int,
        buffersize: int | None,
    ) -> None:
        try:
            chunksize = operator.index(chunksize)
        except TypeError:
            raise SpecError(
                f"chunksize must be a whole number, not {safe_repr(chunksize)}"
            ) from None
        if chunksize < 1:
            raise SpecError(f"chunksize must be >= 1, not {safe_repr(chunksize)}")
        if buffersize is not None:
            try:
                buffersize = operator.index(buffersize)
            except TypeError:
                raise TypeError("buffersize must be an integer or None") from None
            if buffersize < 1:
                raise SpecError("buffersize must be None or > 0")
        pool.require_open()
        self._pool = pool
        self._calls = calls
        self._function = function
        self._arguments = iter(arguments)
        self._exhausted = False
        self._chunksize = chunksize
        self._buffersize = buffersize
        #: The calls and chunks whose results have not been asked for, in order; True for a chunk.
        self._pending: deque[tuple[TaskRecord, bool]] = deque()
        #: Those of them that are not yet submitted to the pool, and whether a timer will do that.
        self._unsubmitted: deque[TaskRecord] = deque()
        self._submit_scheduled = False
        #: Held by the thread that submits: so calls are submitted in order.
        self._submit_lock = threading.Lock()
        #: Why the timer's thread could not submit them.
        self._failure: Exception | None = None
        pool.maps.add(self)
        self._fill()

    # -- submitting -----------------------------------------------------------------------

    def _fill(self) -> None:
        """Submit calls, as far ahead as `buffersize` allows."""
        if self._exhausted:
            return
        room, buffersize = _MAX_SUBMIT_CALLS, self._buffersize
        if buffersize is not None:
            room = buffersize - len(self._pending)
            # Not each time that there is room for one: a submission has a cost.
            if room < min(_MAX_SUBMIT_CALLS, 1 + buffersize // 16):
                return
        try:
            while room > 0 and self._make_calls(min(_MAX_SUBMIT_CALLS, room)):
                self._submit()
                if buffersize is not None:
                    room = buffersize - len(self._pending)
        finally:
            self._submit()

    def _make_calls(self, count: int) -> bool:
        """Make the records of the next calls; return whether there may be more."""
        make_call, function = self._calls.make_call, self._function
        if self._chunksize == 1:
            pending, unsubmitted = self._pending, self._unsubmitted
            before = len(pending)
            for args in islice(self._arguments, count):
                record = make_call(function, args)
                pending.append((record, False))
                unsubmitted.append(record)
                if not self._submit_scheduled:
                    self._submit_soon()
            self._exhausted = len(pending) < before + count
            return not self._exhausted
        # A few chunks at a time, since the workers may be idle until these are submitted.
        target_length = len(self._pending) + min(
            count, max(1, _MAX_SUBMIT_CALLS // self._chunksize)
        )
        while len(self._pending) < target_length:
            chunk = list(islice(self._arguments, self._chunksize))
            if not chunk:
                self._exhausted = True
                return False
            chunk_record = self._calls.make_chunk(function, chunk)
            if chunk_record is not None:
                self._append(chunk_record, True)
            else:
                for args in chunk:
                    self._append(make_call(function, args), False)
        return True

    def _append(self, record: TaskRecord, is_chunk: bool) -> None:
        self._pending.append((record, is_chunk))
        self._unsubmitted.append(record)
        if not self._submit_scheduled:
            self._submit_soon()

    def _submit_soon(self) -> None:
        # The iterable may be slow to yield the next item, or wait for what this call does.
        self._submit_scheduled = True
        self._pool.call_later(_SUBMIT_DELAY_SECONDS, self._submit_scheduled_calls)

    def _submit_scheduled_calls(self) -> None:
        """Submit the calls made so far, in another thread than the one that makes more."""
        self._submit_scheduled = False
        try:
            self._submit()
        except Exception as error:
            self._failure = error

    def _submit(self) -> None:
        with self._submit_lock:
            if self._failure is not None:
                raise self._failure
            records = [self._unsubmitted.popleft() for _ in range(len(self._unsubmitted))]
            if records:
                self._pool.submit(records)

    # -- results --------------------------------------------------------------------------

    def results(self, timeout: float | None) -> Results:
        """Return an iterator of the results, in order.

        Parameters
        ----------
        timeout : float, optional
            Seconds from now, within which each result must be there.
        """
        return Results(self._results(Deadline(timeout)), self.cancel_remaining)

    def _results(self, deadline: Deadline) -> Generator[Any, None, None]:
        try:
            while self._pending:
                record, is_chunk = self._pending.popleft()
                self._fill()
                # No local variable keeps a result that has been yielded.
                if is_chunk:
                    yield from self._unpack(record, self._get(record, deadline.remaining()))
                else:
                    yield self._get(record, deadline.remaining())
        finally:
            self.cancel_remaining()

    def _get(self, record: TaskRecord, timeout: float | None) -> Any:
        try:
            return self._pool.get(record, timeout)
        except TimeoutError:
            if not record.over:
                self._pending.appendleft((record, False))  # cancelled with the others
            raise

    def _unpack(self, record: TaskRecord, chunk: Chunk) -> Iterator[Any]:
        """Yield the results of the calls of a chunk, or raise their exceptions."""
        values, errors = chunk
        if not errors and not values.pickled:
            yield from values.values
            return
        for position in range(len(values.values)):
            if position in errors:
                raise self._pool.convert_error(unpack_error(errors[position]))
            yield load_result(partial(values.load, position), record)

    async def results_async(self, timeout: float | None) -> AsyncIterator[Any]:
        """Yield the results, in order, without blocking the event loop; see `results`."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        try:
            while self._pending:
                record, is_chunk = self._pending[0]
                if not record.over:
                    async with waiting_in_loop(), asyncio.timeout_at(deadline):
                        await self._pool.task_of(record)._wait_async()
                self._pending.popleft()
                self._fill()
                if record.value is not None:
                    value = self._pool.get(record)
                else:
                    # The exception is returned: asyncio cannot pass a StopIteration.
                    value, error = await loop.run_in_executor(None, self._pool.outcome, record)
                    if error is not None:
                        raise error
                if is_chunk:
                    for each in self._unpack(record, value):
                        yield each
                else:
                    yield value
                del value
        finally:
            self.cancel_remaining()

    def cancel_remaining(self) -> None:
        """Cancel the calls whose results have not been asked for; a finalizer may call this."""
        unfinished = [record for record, _ in self._pending if not record.over]
        self._pending.clear()
        if unfinished:
            self._pool.cancel_later(unfinished)

    def fetch_remaining(self) -> None:
        """Fetch the results that are still on workers, which are about to end."""
        for record, _ in list(self._pending):
            with contextlib.suppress(Exception):
                self._pool.task_of(record)._fetch_result()


class Results(Iterator[Any]):
    """The results of a `map`, in order; `close` cancels the calls that remain.

    So does dropping the iterator after a result has been asked for. If none has been, all calls
    are run.
    """

    def __init__(
        self, results: Generator[Any, None, None], cancel_remaining: Callable[[], None]
    ) -> None:
        self._results = results
        self._cancel_remaining = cancel_remaining

    def __next__(self) -> Any:
        return next(self._results)

    def close(self) -> None:
        """Ask for no more results, and cancel the calls that remain."""
        self._results.close()
        self._cancel_remaining()

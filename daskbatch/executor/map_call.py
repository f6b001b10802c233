"""The calls of one ``map``: given ahead of what is asked for, and their results in order.

Does not know how a call is described or run.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import threading
import time
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
from daskbatch.worker.execution.chunk import Chunk
from daskbatch.worker.execution.task_context import waiting_in_loop

#: How many calls are given at once.
_SLAB = 1024

#: After what time those are given that there are, however few. Seconds.
_DRAW_SECONDS = 0.01


class MapCall:
    """The calls of one map.

    Parameters
    ----------
    pool : Pool
        Takes them.
    calls : Calls
        Describes them.
    function : callable
        What is called.
    arguments : iterable of tuple
        The arguments of each call.
    chunksize : int
        How many calls make a chunk.
    window : int, optional
        How many calls, or chunks, are given ahead of what is asked for; all, if None.

    Raises
    ------
    SpecError
        A number is wrong.
    """

    def __init__(
        self,
        pool: Pool,
        calls: CallFactory,
        function: Callable[..., Any],
        arguments: Iterable[Arguments],
        chunksize: int,
        window: int | None,
    ) -> None:
        try:
            chunksize = operator.index(chunksize)
        except TypeError:
            raise SpecError(f"chunksize must be a whole number, not {chunksize!r}") from None
        if chunksize < 1:
            raise SpecError(f"chunksize must be >= 1, not {chunksize!r}")
        if window is not None:
            try:
                window = operator.index(window)
            except TypeError:
                raise TypeError("buffersize must be an integer or None") from None
            if window < 1:
                raise SpecError("buffersize must be None or > 0")
        pool.require_open()
        self._pool = pool
        self._calls = calls
        self._function = function
        self._arguments = iter(arguments)
        self._exhausted = False
        self._chunksize = chunksize
        self._window = window
        #: The records of calls and of chunks, in order.
        self._given: deque[tuple[TaskRecord, bool]] = deque()
        #: Those that have not been handed to the pool, and whether somebody will.
        self._drawn: deque[TaskRecord] = deque()
        self._is_due = False
        self._putting = threading.Lock()
        #: Why they could not be.
        self._failure: Exception | None = None
        pool.maps.add(self)
        self._fill()

    def _fill(self) -> None:
        """Give calls, as far ahead as wished."""
        if self._exhausted:
            return
        slab = _SLAB
        room = self._window - len(self._given) if self._window is not None else slab
        if self._window is not None and room < min(slab, 1 + self._window // 16):
            return
        try:
            while room > 0 and self._draw(min(slab, room)):
                self._put()
                if self._window is not None:
                    room = self._window - len(self._given)
        finally:
            self._put()

    def _draw(self, count: int) -> bool:
        """Describe some calls; says whether there may be more."""
        one, function = self._calls.one, self._function
        if self._chunksize == 1:
            given, drawn = self._given, self._drawn
            before = len(given)
            for args in islice(self._arguments, count):
                record = one(function, args)
                given.append((record, False))
                drawn.append(record)
                if not self._is_due:
                    self._put_soon()
            self._exhausted = len(given) < before + count
            return not self._exhausted
        # Some chunks at a time, since the workers wait.
        most = len(self._given) + min(count, max(1, _SLAB // self._chunksize))
        while len(self._given) < most:
            chunk = list(islice(self._arguments, self._chunksize))
            if not chunk:
                self._exhausted = True
                return False
            whole = self._calls.chunk(function, chunk)
            if whole is not None:
                self._add(whole, True)
            else:
                for args in chunk:
                    self._add(one(function, args), False)
        return True

    def _add(self, record: TaskRecord, is_chunk: bool) -> None:
        self._given.append((record, is_chunk))
        self._drawn.append(record)
        if not self._is_due:
            self._put_soon()

    def _put_soon(self) -> None:
        # The iterable may take its time for the next one, or wait for what this one does.
        self._is_due = True
        self._pool.later(_DRAW_SECONDS, self._put_drawn)

    def _put_drawn(self) -> None:
        """Hand over what there is, while the iterable is asked for more; in another thread."""
        self._is_due = False
        try:
            self._put()
        except Exception as error:
            self._failure = error

    def _put(self) -> None:
        with self._putting:
            if self._failure is not None:
                raise self._failure
            records = [self._drawn.popleft() for _ in range(len(self._drawn))]
            if records:
                self._pool.put(records)

    def results(self, timeout: float | None) -> Results:
        """Give the results in order; what is left is cancelled when nobody asks any more.

        Parameters
        ----------
        timeout : float, optional
            Seconds from now, within which each is to be there.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return Results(self._results(deadline), self.drop)

    def _results(self, deadline: float | None) -> Generator[Any, None, None]:
        try:
            while self._given:
                record, is_chunk = self._given.popleft()
                self._fill()
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                # Nothing here holds on to a result that has been handed out.
                if is_chunk:
                    yield from self._unpack(record, self._get(record, left))
                else:
                    yield self._get(record, left)
        finally:
            self.drop()

    def _get(self, record: TaskRecord, timeout: float | None) -> Any:
        try:
            return self._pool.get(record, timeout)
        except TimeoutError:
            if not record.over:
                self._given.appendleft((record, False))  # to be cancelled with the others
            raise

    def _unpack(self, record: TaskRecord, chunk: Chunk) -> Iterator[Any]:
        """Give what came of the calls of a chunk, as of calls that came alone."""
        values, errors = chunk
        if not errors and not values.pickled:
            yield from values.values
            return
        for position in range(len(values.values)):
            if position in errors:
                raise self._pool._understand(unpack_error(errors[position]))
            yield load_result(partial(values.load, position), record.label)

    async def results_async(self, timeout: float | None) -> AsyncIterator[Any]:
        """Give the same without blocking the event loop."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        try:
            while self._given:
                record, is_chunk = self._given[0]
                if not record.over:
                    async with waiting_in_loop(), asyncio.timeout_at(deadline):
                        await self._pool.task(record)._over()
                self._given.popleft()
                self._fill()
                if record.value is not None:
                    value = self._pool.get(record)
                else:
                    value = await loop.run_in_executor(None, self._pool.get, record)
                if is_chunk:
                    for each in self._unpack(record, value):
                        yield each
                else:
                    yield value
                del value
        finally:
            self.drop()

    def drop(self) -> None:
        """Cancel what is left."""
        left = [record for record, _ in self._given if not record.over]
        self._given.clear()
        if left:
            self._pool.cancel_later(left)

    def fetch_left(self) -> None:
        """Bring here what is left on workers that are about to end."""
        for record, _ in list(self._given):
            with contextlib.suppress(Exception):
                self._pool.task(record)._bring()


class Results(Iterator[Any]):
    """The results of a map in order; the calls that are left are cancelled by `close`.

    Also when it is dropped, if some have been asked for; else all calls are run.
    """

    def __init__(self, results: Generator[Any, None, None], drop: Callable[[], None]) -> None:
        self._results = results
        self._drop = drop

    def __next__(self) -> Any:
        return next(self._results)

    def close(self) -> None:
        """Ask for no more."""
        self._results.close()
        self._drop()

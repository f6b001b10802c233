"""The calls of one ``map``: given ahead of what is asked for, and their results in order.

Does not know how a call is described or run.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from daskbatch.calls import Arguments, Calls
from daskbatch.dispatch.cell import Cell
from daskbatch.errors import SpecError
from daskbatch.failure import load_result
from daskbatch.pool import Pool
from daskbatch.worker.chunk import Chunk
from daskbatch.worker.outcome import unpack_error
from daskbatch.worker.running import waiting_in_loop

#: How many calls are given at once.
_SLAB = 1024


class Mapped:
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
        calls: Calls,
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
        #: The cells of calls and of chunks, in order.
        self._given: deque[tuple[Cell, bool]] = deque()
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
        while room > 0:
            given = self._describe_some(min(slab, room))
            if not given:
                self._exhausted = True
                return
            self._pool.put([cell for cell, _ in given])
            self._given.extend(given)
            if self._window is not None:
                room = self._window - len(self._given)

    def _describe_some(self, count: int) -> list[tuple[Cell, bool]]:
        one, function = self._calls.one, self._function
        if self._chunksize == 1:
            return [(one(function, args), False) for args in islice(self._arguments, count)]
        given: list[tuple[Cell, bool]] = []
        # Some chunks at a time, since the workers wait.
        while len(given) < min(count, max(1, _SLAB // self._chunksize)):
            chunk = list(islice(self._arguments, self._chunksize))
            if not chunk:
                break
            cell = self._calls.chunk(function, chunk)
            if cell is not None:
                given.append((cell, True))
            else:
                given += [(one(function, args), False) for args in chunk]
        return given

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
                cell, is_chunk = self._given.popleft()
                self._fill()
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                # Nothing here holds on to a result that has been handed out.
                if is_chunk:
                    yield from self._unpack(cell, self._get(cell, left))
                else:
                    yield self._get(cell, left)
        finally:
            self.drop()

    def _get(self, cell: Cell, timeout: float | None) -> Any:
        try:
            return self._pool.get(cell, timeout)
        except TimeoutError:
            if not cell.over:
                self._given.appendleft((cell, False))  # to be cancelled with the others
            raise

    def _unpack(self, cell: Cell, chunk: Chunk) -> Iterator[Any]:
        """Give what came of the calls of a chunk, as of calls that came alone."""
        values, errors = chunk
        if not errors and not values.pickled:
            yield from values.values
            return
        for position in range(len(values.values)):
            if position in errors:
                raise self._pool._understand(unpack_error(errors[position]))
            yield load_result(partial(values.load, position), cell.label)

    async def results_async(self, timeout: float | None) -> AsyncIterator[Any]:
        """Give the same without blocking the event loop."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        try:
            while self._given:
                cell, is_chunk = self._given[0]
                if not cell.over:
                    async with waiting_in_loop(), asyncio.timeout_at(deadline):
                        await self._pool.task(cell)._over()
                self._given.popleft()
                self._fill()
                if cell.value is not None:
                    value = self._pool.get(cell)
                else:
                    value = await loop.run_in_executor(None, self._pool.get, cell)
                if is_chunk:
                    for each in self._unpack(cell, value):
                        yield each
                else:
                    yield value
                del value
        finally:
            self.drop()

    def drop(self) -> None:
        """Cancel what is left."""
        left = [cell for cell, _ in self._given if not cell.over]
        self._given.clear()
        if left:
            self._pool.cancel_later(left)

    def fetch_left(self) -> None:
        """Bring here what is left on workers that are about to end."""
        for cell, _ in list(self._given):
            with contextlib.suppress(Exception):
                self._pool.task(cell)._bring()


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

"""Describes the calls of an executor as what is kept of tasks.

Does not know how calls are given, gathered or run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from daskbatch.compiled import require_own, require_producers
from daskbatch.configured import Configured
from daskbatch.describe.spec import DEFAULT, Call, function_call
from daskbatch.dispatch.cell import Cell
from daskbatch.worker.chunk import run_chunk
from daskbatch.worker.prepare import Prepared

if TYPE_CHECKING:
    from daskbatch.batch import Batch

Arguments = tuple[Any, ...]

_NOTHING: dict[str, Any] = {}


class Calls:
    """Makes calls that share their options.

    Parameters
    ----------
    batch : Batch
        Runs them.
    resources, env : mapping, optional
        What all of them take, and find in their environment.
    prepare : callable, optional
        Makes of a function one that prepares the process where it is called.
    """

    def __init__(
        self,
        batch: Batch,
        resources: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        prepare: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> None:
        self._batch = batch
        self._resources = dict(resources or {})
        self._env = dict(env or {})
        self._prepare = prepare
        self._how = Configured(batch, DEFAULT)
        if resources or env:
            self._how = batch.options(resources=self._resources, env=self._env)

    def prepared(
        self, key: str, initializer: Callable[..., Any], initargs: tuple[Any, ...]
    ) -> Calls:
        """Give the same, with an initializer that is called once in each process."""
        # Few, and the same again for the same function, since each is pickled once.
        prepare = lru_cache(maxsize=8)(partial(Prepared, key, initializer, initargs))
        return Calls(self._batch, self._resources, self._env, prepare)

    def configured(
        self,
        resources: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Calls:
        """Give the same with other options; see `Batch.options`."""
        if self._resources and (resources is None or isinstance(resources, Mapping)):
            resources = {**self._resources, **(resources or {})}
        if self._env and (env is None or isinstance(env, Mapping)):
            env = {**self._env, **(env or {})}
        other = Calls(self._batch, self._resources, self._env, self._prepare)
        other._how = self._batch.options(resources=resources, env=env, **options)
        return other

    def one(
        self,
        function: Callable[..., Any],
        args: Arguments,
        kwargs: Mapping[str, Any] = _NOTHING,
    ) -> Cell:
        """Describe a call."""
        call = function_call(function, args, kwargs)
        if self._prepare is not None:
            call = call._replace(function=self._prepare(call.function))
        return self._cell(call, function)

    def chunk(self, function: Callable[..., Any], chunk: Sequence[Arguments]) -> Cell | None:
        """Describe several calls of a function as one; None if they must stay apart."""
        options = self._how._options
        if options.timeout is not None or options.retries:
            return None  # these are of single calls
        name = self._how._name_of(function)
        prepared = function if self._prepare is None else self._prepare(function)
        call = function_call(run_chunk, (repr(name), prepared, chunk), _NOTHING)
        if call.failure is not None:
            return None  # one of them cannot be sent; the others can
        return self._cell(call._replace(family=(name, len(chunk))), function)

    def _cell(self, call: Call, function: Callable[..., Any]) -> Cell:
        cell = self._how._cell(call, function)
        if call.references:
            require_own(self._batch, cell)
            require_producers(cell)
        return cell

"""Describes the calls of an executor as what is kept of tasks.

Does not know how calls are given, gathered or run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from daskbatch.batch.compiled import require_own, require_producers
from daskbatch.batch.options import TaskFactory
from daskbatch.describe.initializer import Initializer
from daskbatch.describe.spec import DEFAULT, Call, function_call
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.serialization import pickling
from daskbatch.worker.execution.chunk import run_chunk

if TYPE_CHECKING:
    from daskbatch.batch.batch import Batch

Arguments = tuple[Any, ...]

_NOTHING: dict[str, Any] = {}


class CallFactory:
    """Makes calls that share their options.

    Parameters
    ----------
    batch : Batch
        Runs them.
    resources, env : mapping, optional
        What all of them take, and find in their environment.
    prepare : Initializer, optional
        What a process does before it runs the first of them.
    """

    def __init__(
        self,
        batch: Batch,
        resources: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        prepare: Initializer | None = None,
    ) -> None:
        self._batch = batch
        self._resources = dict(resources or {})
        self._env = dict(env or {})
        self._prepare = prepare
        self._take(TaskFactory(batch, DEFAULT))
        if resources or env:
            self._take(batch.options(resources=self._resources, env=self._env))

    def _take(self, how: TaskFactory) -> None:
        self._how = how
        how._options = replace(how._options, prepare=self._prepare)

    def prepared(self, initializer: Callable[..., Any], initargs: tuple[Any, ...]) -> CallFactory:
        """Give the same, with an initializer that is called once in each process."""
        prepare = Initializer(self._batch._session.topic, initializer, initargs)
        return CallFactory(self._batch, self._resources, self._env, prepare)

    def configured(
        self,
        resources: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> CallFactory:
        """Give the same with other options; see `Batch.options`."""
        if self._resources and (resources is None or isinstance(resources, Mapping)):
            resources = {**self._resources, **(resources or {})}
        if self._env and (env is None or isinstance(env, Mapping)):
            env = {**self._env, **(env or {})}
        other = CallFactory(self._batch, self._resources, self._env, self._prepare)
        other._take(self._batch.options(resources=resources, env=env, **options))
        return other

    def one(
        self,
        function: Callable[..., Any],
        args: Arguments,
        kwargs: Mapping[str, Any] = _NOTHING,
    ) -> TaskRecord:
        """Describe a call."""
        if self._prepare is None:
            return self._record(function_call(function, args, kwargs), function)
        with pickling.within(self._prepare.namespace):
            return self._record(function_call(function, args, kwargs), function)

    def chunk(self, function: Callable[..., Any], chunk: Sequence[Arguments]) -> TaskRecord | None:
        """Describe several calls of a function as one; None if they must stay apart."""
        options = self._how._options
        if options.timeout is not None or options.retries:
            return None  # these are of single calls
        name = self._how._name_of(function)
        with pickling.within(None if self._prepare is None else self._prepare.namespace):
            call = function_call(run_chunk, (repr(name), function, chunk), _NOTHING)
        if call.failure is not None:
            return None  # one of them cannot be sent; the others can
        return self._record(call._replace(family=(name, len(chunk))), function)

    def _record(self, call: Call, function: Callable[..., Any]) -> TaskRecord:
        record = self._how._record(call, function)
        if call.references:
            require_own(self._batch, record)
            require_producers(record)
        return record

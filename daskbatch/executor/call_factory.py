"""Makes the records of an executor's calls, all with the same options.

A `CallFactory` never changes, so several threads may use one. It starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any

from daskbatch.batch.context import BatchContext
from daskbatch.batch.factory import TaskSettings, make_record, make_settings
from daskbatch.batch.validation import require_own, require_producers
from daskbatch.describe.generators import warn_of_generator
from daskbatch.describe.initializer import Initializer
from daskbatch.describe.spec import Call, function_call
from daskbatch.dispatch.placer import pickle_functions
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import callable_name
from daskbatch.worker.execution.chunk import run_chunk

#: The positional arguments of one call.
Arguments = tuple[Any, ...]

_NO_KEYWORDS: dict[str, Any] = {}


class CallFactory:
    """Makes the records of calls that have the same options; several threads may use it.

    Parameters
    ----------
    context : BatchContext
        The Batch that the calls are tasks of.
    cores : float, optional
        The number of cores of each call, unless its options say otherwise.
    initializer : Initializer, optional
        The initializer that each worker process runs before its first call; by default that of
        the Batch.
    settings : TaskSettings, optional
        The options of the calls; by default `cores` and no others.
    """

    def __init__(
        self,
        context: BatchContext,
        cores: float | None = None,
        initializer: Initializer | None = None,
        settings: TaskSettings | None = None,
    ) -> None:
        self._context = context
        self._cores = cores
        if initializer is None:
            initializer = context.initializer  # each function of the Batch runs after that
        self._initializer = initializer
        self._namespace = None if initializer is None else initializer.namespace
        if settings is None:
            settings = TaskSettings()
            if cores is not None:
                settings = make_settings(context, cores=cores)
        options = replace(settings.options, prepare=initializer)
        self._settings = settings._replace(options=options)

    def with_initializer(
        self, initializer: Callable[..., Any], initargs: tuple[Any, ...]
    ) -> CallFactory:
        """Return the same factory with an initializer, which each worker process runs once."""
        made = Initializer(self._context.session.topic, initializer, initargs)
        return CallFactory(self._context, self._cores, made)

    def with_options(self, cores: int | float | str | None = None, **options: Any) -> CallFactory:
        """Return the same factory with other options; see `Batch.options`."""
        cores = self._cores if cores is None else cores
        settings = make_settings(self._context, cores=cores, **options)
        return CallFactory(self._context, self._cores, self._initializer, settings)

    def make_call(
        self,
        function: Callable[..., Any],
        args: Arguments,
        kwargs: Mapping[str, Any] = _NO_KEYWORDS,
    ) -> TaskRecord:
        """Make the record of one call.

        Raises
        ------
        SpecError, GraphError, LifecycleError
            See `BatchPoolExecutor.submit`.
        """
        if self._namespace is None:
            return self._make_record(function_call(function, args, kwargs), function)
        with pickling.within(self._namespace):
            return self._make_record(function_call(function, args, kwargs), function)

    def make_chunk(
        self, function: Callable[..., Any], chunk: Sequence[Arguments]
    ) -> TaskRecord | None:
        """Make one record of several calls of a function; None if each must have its own."""
        options = self._settings.options
        if options.timeout is not None or options.retries:
            return None  # these options hold for single calls
        name = self._settings.name or callable_name(function)
        if type(function) is not FunctionType:
            warn_of_generator(function)
        with pickling.within(self._namespace):
            call = function_call(run_chunk, (repr(name), function, chunk), _NO_KEYWORDS)
        if call.failure is not None:
            return None  # the arguments of one call cannot be pickled; the other calls can run
        return self._make_record(call._replace(family=(name, len(chunk))), function)

    def _make_record(self, call: Call, function: Callable[..., Any]) -> TaskRecord:
        session = self._context.session
        name = self._settings.name or callable_name(function)
        record = make_record(self._context, session, call, name, self._settings)
        if call.references:
            require_own(session.client_id, record)
            require_producers(record)
        if type(function) is FunctionType and pickling.is_being_imported(function.__module__):
            # Another thread would wait for the end of the import, which may wait for this call.
            pickle_functions([record])
        return record

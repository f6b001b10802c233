"""Runs callables on ranks in tests, as a worker runs them: a block with one member, in a thread."""

from __future__ import annotations

import importlib.util
import pickle
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from support.payloads import spec

from daskbatch.errors import ProcessFailed
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.worker.execution.block import Link
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.thread_run import ThreadRun
from daskbatch.worker.mpi.launcher import find_launcher
from daskbatch.worker.mpi.rank_function import RankFunction, RankSettings

#: The client of all jobs that tests run in one set of ranks after the other.
TOPIC = "daskbatch-0a1b"


def missing() -> str:
    """Return why ranks cannot be started on this machine; empty if they can."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    try:
        find_launcher()
    except ProcessFailed as error:
        return str(error)
    return ""


#: Marks tests that start ranks.
needs_ranks = pytest.mark.skipif(bool(missing()), reason=missing())


class Outcome(NamedTuple):
    """What a job has returned or raised, and what its ranks have written."""

    status: int
    value: Any
    stdout: Any
    stderr: Any

    @property
    def result(self) -> Any:
        """The list of the values; raises what the job has raised."""
        if self.status == Status.FAILED:
            raise self.value
        assert self.status == Status.DONE, Status(self.status)
        return self.value


class Job:
    """A job of a callable, which may be stopped while it runs."""

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        num_procs: int = 2,
        topic: str = TOPIC,
        setup: bytes | None = None,
        context: Any = None,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        ranked = RankFunction(function, RankSettings(num_procs, **(settings or {})))
        data, _, buffers = pickling.pack((args, kwargs))
        block = spec(
            (pickling.dumps(ranked), data),
            topic=topic,
            setup=setup,
            links={0: Link(buffers=tuple(range(len(buffers))))} if buffers else {},
            output_limit=1 << 20,
        )
        self.run = ThreadRun(pickle.loads(pickle.dumps(block)), [each.content for each in buffers])
        self.run.context = context
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self._result = self.run()

    def start(self) -> Job:
        self._thread.start()
        return self

    def outcome(self) -> Outcome:
        if not self._thread.is_alive() and self._thread.ident is None:
            self._run()
        else:
            self._thread.join(120)
            assert not self._thread.is_alive(), "the job hangs"
        status, value = self._result.statuses[0], self._result.values[0]
        if status == Status.FAILED:
            assert value is not None
            value = unpack_error(value)  # type: ignore[assignment]
        elif value is not None:
            value = pickling.loads(value)
        return Outcome(status, value, *self._result.outputs.get(0, ("", "")))


def run_on_ranks(function: Callable[..., Any], *args: Any, **options: Any) -> Outcome:
    """Run a callable on ranks to its end; see `Job` for the options."""
    return Job(function, *args, **options).outcome()

"""Has all that happens to the tasks of a Batch written to a directory: ``Batch(log_dir=)``.

Called by the thread that makes the Batch. The recorder is then called as `EventRecorder` says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from daskbatch.batch.info import describe_warning
from daskbatch.cluster.session import Session
from daskbatch.dispatch.requirements import Capacity
from daskbatch.errors import SpecError
from daskbatch.observation.event_recorder import EventRecorder
from daskbatch.serialization.safe_text import safe_repr

_logger = logging.getLogger("daskbatch")


def prepare(log_dir: str | os.PathLike[str] | None) -> Path | None:
    """Make the directory, and return its absolute path; None for None.

    Raises
    ------
    SpecError
        `log_dir` is not a path.
    OSError
        The directory cannot be made.
    """
    if log_dir is None:
        return None
    if not isinstance(log_dir, (str, os.PathLike)) or not isinstance(os.fspath(log_dir), str):
        raise SpecError(f"log_dir= must be a path as a str or a Path, not {safe_repr(log_dir)}")
    directory = Path(log_dir).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    return directory


class _LoggedSession:
    """Keeps the list of workers in the events of a client; a `WorkerListener`."""

    def __init__(self, session: Session, recorder: EventRecorder) -> None:
        self._session = session
        self._recorder = recorder
        #: Whether the workers are known from news of them, which came before the first answer.
        self._is_set = False

    def set_first_workers(self) -> None:
        """Record the workers that are there now; asks the scheduler."""
        # Not with the lock: Dask's event loop takes it, and brings the answer.
        workers = self._session.capacities()
        with self._session.dispatcher.outcomes.changed:
            if not self._is_set:
                self._recorder.set_workers(workers)

    def workers_changed(self) -> None:
        self._session.capacities_later(self._set_workers)

    def _set_workers(self, workers: Sequence[Capacity]) -> None:
        with self._session.dispatcher.outcomes.changed:
            self._is_set = True
            self._recorder.set_workers(workers)

    def close(self) -> None:
        """Record the end of the run."""
        dispatcher = self._session.dispatcher
        with dispatcher.outcomes.changed:
            observers = dispatcher.table.observers
            observers.flush()
            observers.remove(self._recorder)
        self._recorder.close()
        if self._recorder.failure is not None:
            _logger.warning("events could not be written: %s", self._recorder.failure)


def record_events(session: Session, directory: Path, name: str) -> None:
    """Write the events of a client to a directory, until the client ends.

    Parameters
    ----------
    session : Session
        The client; no task of it has been started.
    directory : Path
        What `prepare` has returned.
    name : str
        The name of the Batch.

    Raises
    ------
    OSError
        The file of events cannot be opened.
    """
    dispatcher = session.dispatcher
    versions = {name: version(name) for name in ("dask", "distributed")}
    recorder = EventRecorder(
        directory, dispatcher.table, session.client_id, name, versions, describe_warning
    )
    logged = _LoggedSession(session, recorder)
    with dispatcher.outcomes.changed:
        dispatcher.table.observers.add(recorder)
    session.at_end.append(logged.close)
    session.add_worker_listener(logged)
    logged.set_first_workers()

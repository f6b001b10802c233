"""Writes what tasks write to files of a log directory, while they run.

The dispatcher calls it with its lock held, one thread at a time.
"""

from __future__ import annotations

import os
import re
import weakref
from pathlib import Path

from daskbatch.dispatch.task_record import SILENT, TaskRecord
from daskbatch.records.event_schema import OUTPUT_DIRECTORY
from daskbatch.worker.execution.block import OutputReport

#: How much of a task's name stands in the names of its files. Bytes.
_MAX_NAME_BYTES = 120

#: What cannot be a part of a file's name, or is a nuisance there.
_UNSAFE = re.compile(r"[/\\\0-\x1f\x7f:*?\"<>|\s]+")

_STREAMS = ("stdout", "stderr")
_SUFFIXES = (".out", ".err")


class OutputFiles:
    """The files with the output of a run's tasks.

    It raises nothing: if a file cannot be written, `failure` says so, and nothing more is written.

    Parameters
    ----------
    directory : Path
        The log directory.
    run : str
        The run.

    Attributes
    ----------
    failure : OSError, optional
        Why nothing more is written.
    """

    def __init__(self, directory: Path, run: str) -> None:
        self._root = directory
        self._directory = Path(OUTPUT_DIRECTORY, run)
        self.failure: OSError | None = None
        #: The sizes of the files of the tasks that are not over, by stream, and their attempts.
        self._sizes: weakref.WeakKeyDictionary[TaskRecord, dict[int, tuple[int, int]]] = (
            weakref.WeakKeyDictionary()
        )
        #: The streams that were sent as a whole, since they are too large for a report.
        self._whole: weakref.WeakKeyDictionary[TaskRecord, set[int]] = weakref.WeakKeyDictionary()
        self._is_made = False

    def path_of(self, record: TaskRecord, stream: int) -> Path:
        """Return the path of the file of one stream of a task, relative to the log directory."""
        name = _UNSAFE.sub("_", record.name).encode("utf-8", "replace")[:_MAX_NAME_BYTES]
        text = name.decode("utf-8", "ignore").lstrip(".") or "task"
        return self._directory / f"{text}-{record.number}{_SUFFIXES[stream]}"

    def write(self, record: TaskRecord, report: OutputReport) -> None:
        """Append what a task has written; a new attempt, and a whole text, replace the file."""
        stream = report.stream
        sizes = self._sizes.setdefault(record, {})
        attempt, size = sizes.get(stream, (report.attempt, 0))
        starts_anew = stream not in sizes or attempt != report.attempt
        if report.is_whole and not report.begin:
            starts_anew = True
        if report.is_whole:
            self._whole.setdefault(record, set()).add(stream)
        data = report.data
        if starts_anew:
            size = 0
        elif report.begin > size and not report.is_whole:
            dropped = report.begin - size
            data = b"\n[daskbatch: %d bytes are missing here]\n" % dropped + data
        self._write(self.path_of(record, stream), data, starts_anew)
        sizes[stream] = report.attempt, report.begin + len(report.data)

    def finish(self, record: TaskRecord) -> tuple[str | None, str | None]:
        """Write the whole output of a task that is over; return the paths of its two files.

        A path is relative to the log directory; None if the task has written nothing there.
        """
        written = self._sizes.pop(record, {})
        whole = self._whole.pop(record, set())
        output = record.output
        paths: list[str | None] = []
        for stream in range(len(_STREAMS)):
            path = self.path_of(record, stream)
            text = "" if output is None or output is SILENT else output[stream]
            if text and stream not in whole:
                data = str(text).encode("utf-8", "surrogateescape")
                self._write(path, data + b"\n", True)
            has_file = bool(text) or stream in written
            paths.append(str(path) if has_file and self.failure is None else None)
        return paths[0], paths[1]

    def _write(self, path: Path, data: bytes, starts_anew: bool) -> None:
        if self.failure is not None:
            return
        try:
            if not self._is_made:
                (self._root / self._directory).mkdir(parents=True, exist_ok=True)
                self._is_made = True
            flags = os.O_TRUNC if starts_anew else os.O_APPEND
            file = os.open(self._root / path, os.O_CREAT | os.O_WRONLY | flags, 0o666)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
            finally:
                os.close(file)
        except OSError as error:
            self.failure = error

    def close(self) -> None:
        """Forget all tasks; nothing more is written."""
        self._sizes.clear()
        self._whole.clear()

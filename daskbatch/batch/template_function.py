"""Makes tasks by a template: what `Batch.import_func` returns.

Does not know how a template is read, or how its tasks come to be started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskbatch.batch.options import make_function, make_process
from daskbatch.batch.task import Task
from daskbatch.describe.access import Channel, Mode, make_access
from daskbatch.describe.spec import Options, make_options
from daskbatch.describe.template.binding import (
    BoundTemplate,
    ChannelUse,
    FilledExecutable,
    TaskDescription,
)
from daskbatch.describe.template.reader import read_template
from daskbatch.errors import SpecError

if TYPE_CHECKING:
    from daskbatch.batch.batch import Batch


def import_template(
    batch: Batch, ptd_file: str | Path, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ImportedFunction:
    """Read a template, and put its import arguments in; see `Batch.import_func`."""
    if not isinstance(ptd_file, (str, os.PathLike)):
        raise SpecError(f"ptd_file= must be the path of a template, not {ptd_file!r}")
    file = os.fspath(ptd_file)
    template = read_template(os.path.join(batch._directory, file), file)
    return ImportedFunction(batch, BoundTemplate(template, args, kwargs))


class ImportedFunction:
    """Makes a task of each call; any number of threads may call it at once.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
    ...     _ = file.write("{args: [f, i], type: function, executables: [{target: f, args: [i]}]}")
    ...     file.flush()
    ...     call = batch.import_func(file.name)
    >>> call(abs, -1).get()
    1
    """

    def __init__(self, batch: Batch, form: BoundTemplate) -> None:
        template = form.template
        self._batch = batch
        self._form = form
        self._file = template.file
        self._fill = form.fill
        # Not bound: a circle would keep the Batch until Python collects its garbage.
        self._make = _MAKERS[template.type]
        self._taken_in = batch._made_by_template
        #: What all tasks share, once there is one.
        self._options: Options | None = None
        self.__name__ = self.__qualname__ = form.label
        self.__signature__ = form.signature
        self.__doc__ = (
            f"Make a task of type {template.type}, as {self._file} describes it.\n\n"
            "What the arguments are for stands there. Raises SpecError where they do not fit."
        )

    def __call__(self, /, *args: Any, **kwargs: Any) -> Task:
        """Make a task of what the file declares below ``args`` and ``kwargs``.

        It waits in the background until it is needed; see `Batch.import_func`.

        Raises
        ------
        SpecError
            An argument is missing, too many, or of the wrong type. It is a `ValueError`.
        SubmitAfterCloseError
            The Batch has been closed.
        LifecycleError
            It takes the result of a task that was never started.
        Exception
            What a function raises that the file calls.
        """
        return self._taken_in(self._make(self, self._fill(args, kwargs)))

    def __repr__(self) -> str:
        return f"<{self.__name__}{self.__signature__}, imported from {self._file}>"

    # -- the types of tasks ---------------------------------------------------------------

    def _make_function(self, filled: TaskDescription) -> Task:
        _, name, _, (what,), reads, writes = filled
        return make_function(
            self._batch,
            what.target,
            what.args,
            what.kwargs,
            self._options or self._options_for(filled, what),
            self._channels(Mode.READ, reads) if reads else (),
            self._channels(Mode.WRITE, writes) if writes else (),
            name,
        )

    def _make_process(self, filled: TaskDescription) -> Task:
        _, name, _, (what,), reads, writes = filled
        return make_process(
            self._batch,
            what.target,
            what.args,
            self._options or self._options_for(filled, what),
            self._channels(Mode.READ, reads) if reads else (),
            self._channels(Mode.WRITE, writes) if writes else (),
            name,
        )

    # -- what goes into them --------------------------------------------------------------

    def _options_for(self, filled: TaskDescription, what: FilledExecutable) -> Options:
        cwd = what.cwd
        options = make_options(
            timeout=filled.timeout,
            cwd=None if cwd is None else self._batch._absolute(cwd),
            env=what.env,
        )
        if self._form.steady:
            self._options = options
        return options

    def _channels(self, mode: Mode, uses: Sequence[ChannelUse]) -> tuple[Channel, ...]:
        channels: tuple[Channel, ...] = ()
        for line, thing, names in uses:
            try:
                access = make_access(mode, thing, names, self._batch._directory)
            except SpecError as error:
                raise SpecError(f"{self._file}:{line}: {error}") from None
            channels += access.channels
        return channels


_MAKERS = {
    "function": ImportedFunction._make_function,
    "process": ImportedFunction._make_process,
}

"""Warns the user, as if the line of the user's code that called daskbatch had done so.

The warnings are those of `warnings`: filters and ``-W error`` apply. Any thread may call all
functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple

from daskbatch.errors import BatchWarning
from daskbatch.user_code import CodeLine, user_line

#: Where a warning comes from if no line of the user's code has led to it.
_NO_LINE = CodeLine("<the end of the program>", 0, "daskbatch")


class Notice(NamedTuple):
    """A warning to be shown.

    Parameters
    ----------
    kind : type
        The class of the warning.
    text : str
        Its text.
    """

    kind: type[BatchWarning]
    text: str


def warn(notice: Notice, origin: CodeLine | None = None) -> None:
    """Show a warning.

    Parameters
    ----------
    notice : Notice
        The warning.
    origin : CodeLine, optional
        The line to name if no line of the user's code runs in this thread.

    Raises
    ------
    BatchWarning
        The warning, if a filter makes an exception of it.
    """
    warn_at(notice, user_line() or origin)


def warn_at(notice: Notice, line: CodeLine | None) -> None:
    """Show a warning as one of a given line; raises what `warn` raises.

    Parameters
    ----------
    notice : Notice
        The warning.
    line : CodeLine, optional
        The line.
    """
    filename, number, module = line or _NO_LINE
    # With a registry of its own, Python shows the warning although the same line may have led to
    # one with the same text before: in a loop, or in a notebook cell that is run again.
    warnings.warn_explicit(notice.text, notice.kind, filename, number, module, registry={})


def warn_all(notices: Iterable[Notice], origin: CodeLine | None = None) -> None:
    """Show warnings; if a filter makes exceptions of them, the first one is raised at the end.

    Parameters
    ----------
    notices, origin
        See `warn`.

    Raises
    ------
    BatchWarning
        The first of those that became exceptions; the others are its notes.
    """
    raised: BatchWarning | None = None
    for notice in notices:
        try:
            warn(notice, origin)
        except BatchWarning as error:
            if raised is None:
                raised = error
            else:
                raised.add_note(str(error))
    if raised is not None:
        raise raised

"""Warns the user, as if the line of the user's code that called daskbatch had done so.

The warnings are those of `warnings`: filters and ``-W error`` apply. Any thread may call all
functions.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from typing import NamedTuple

from daskbatch.errors import BatchWarning

#: The directory of this package, whose frames are not the user's.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


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


def warn(notice: Notice) -> None:
    """Show a warning.

    Raises
    ------
    BatchWarning
        The warning, if a filter makes an exception of it.
    """
    filename, line, module = _user_line()
    # With a registry of its own, Python shows the warning although the same line may have led to
    # one with the same text before: in a loop, or in a notebook cell that is run again.
    warnings.warn_explicit(notice.text, notice.kind, filename, line, module, registry={})


def warn_all(notices: Iterable[Notice]) -> None:
    """Show warnings; if a filter makes exceptions of them, the first one is raised at the end.

    Raises
    ------
    BatchWarning
        The first of those that became exceptions; the others are its notes.
    """
    raised: BatchWarning | None = None
    for notice in notices:
        try:
            warn(notice)
        except BatchWarning as error:
            if raised is None:
                raised = error
            else:
                raised.add_note(str(error))
    if raised is not None:
        raise raised


def _user_line() -> tuple[str, int, str]:
    """Return the file, the line and the module of the innermost frame that is the user's."""
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            module = frame.f_globals.get("__name__") or "<unknown>"
            return frame.f_code.co_filename, frame.f_lineno, module
        frame = frame.f_back  # type: ignore[assignment]
    return "<the end of the program>", 0, "daskbatch"

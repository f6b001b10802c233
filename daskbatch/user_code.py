"""Finds the line of the user's code that led to a call of daskbatch, for warnings.

Any thread may call all functions.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

#: Where Python's own modules are. In a virtual environment, installed packages are elsewhere; in
#: the system's Python, they are below it, in one of the other two.
_STANDARD_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_INSTALLED = tuple(_STANDARD_LIBRARY + each for each in ("site-packages", "dist-packages"))

#: The packages whose frames are not the user's: this one, and those that call it in between.
_OTHER_PACKAGES = frozenset({"daskbatch", "dask", "distributed"})


class CodeLine(NamedTuple):
    """A line of code.

    Parameters
    ----------
    filename : str
        The file, as in tracebacks.
    number : int
        The number of the line.
    module : str
        The name of the module, which filters of warnings compare.
    """

    filename: str
    number: int
    module: str


def user_line() -> CodeLine | None:
    """Return the innermost line that is running and that the user has written.

    None if there is none: at the end of the interpreter, or in a thread whose function is one of
    daskbatch.
    """
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        module = frame.f_globals.get("__name__")
        if not isinstance(module, str):
            module = "<unknown>"
        if not _is_others(filename, module):
            return CodeLine(filename, frame.f_lineno, module)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _is_others(filename: str, module: str) -> bool:
    """Return whether code belongs to Python, to Dask or to daskbatch."""
    if module.partition(".")[0] in _OTHER_PACKAGES or filename.startswith("<frozen "):
        return True
    return filename.startswith(_STANDARD_LIBRARY) and not filename.startswith(_INSTALLED)

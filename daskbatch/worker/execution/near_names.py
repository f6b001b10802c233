"""Finds the file that was probably meant by a path at which there is nothing.

Pure but for looking at the file system. Any thread, of the client or of a worker, may call it.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from itertools import islice

#: In a larger directory, no name is looked for that was meant.
_MAX_COMPARED_NAMES = 2000

#: How similar the name that was meant is to the one that was given, from 0 to 1.
_MIN_SIMILARITY = 0.7

#: How many parts of a path, from its end, may be wrong.
_MAX_WRONG_PARTS = 3


def suggestion(path: str) -> str:
    """Return ``"; did you mean ...?"``, with the existing path of the nearest name.

    Returns the empty string if the path exists, or if no name is near.
    """
    try:
        near = "" if os.path.lexists(path) else _nearest(path, _MAX_WRONG_PARTS)
    except (OSError, ValueError):
        return ""
    return f"; did you mean {near}?" if near else ""


def _nearest(path: str, wrong_parts: int) -> str:
    directory, name = os.path.split(path)
    if not wrong_parts or not name:
        return ""
    if not os.path.isdir(directory or os.curdir):
        directory = _nearest(directory, wrong_parts - 1)
        if not directory:
            return ""
        if os.path.lexists(os.path.join(directory, name)):
            return os.path.join(directory, name)
    with os.scandir(directory or os.curdir) as entries:
        names = [entry.name for entry in islice(entries, _MAX_COMPARED_NAMES + 1)]
    if len(names) > _MAX_COMPARED_NAMES:
        return ""
    near = get_close_matches(name, names, n=1, cutoff=_MIN_SIMILARITY)
    return os.path.join(directory, near[0]) if near else ""

"""Finds the file that was probably meant by a path at which there is nothing.

Pure but for looking at the file system. Any thread, of the client or of a worker, may call it.
"""

from __future__ import annotations

import os
from difflib import get_close_matches

#: In a larger directory, no name is looked for that was meant.
_MAX_COMPARED_NAMES = 2000

#: How similar the name that was meant is to the one that was given, from 0 to 1.
_MIN_SIMILARITY = 0.7


def suggestion(path: str) -> str:
    """Return ``"; did you mean ...?"``, with the file in the same directory of the nearest name.

    Returns the empty string if the path exists, or if no name is near.
    """
    directory, name = os.path.split(path)
    try:
        names = os.listdir(directory or os.curdir)
    except (OSError, ValueError):
        return ""
    if name in names or len(names) > _MAX_COMPARED_NAMES:
        return ""
    near = get_close_matches(name, names, n=1, cutoff=_MIN_SIMILARITY)
    return f"; did you mean {os.path.join(directory, near[0])}?" if near else ""

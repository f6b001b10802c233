"""Writes a file so that no reader ever sees a part of it.

Any thread may call it. It raises `OSError`, and then leaves what was there.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file by way of a temporary one beside it, which then gets the name.

    Parameters
    ----------
    path : Path
        The file; it is replaced. If it is a link, the file that it leads to.
    content : str or bytes
        What it holds afterwards; texts are written in UTF-8.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # a device or a pipe; a directory raises
        path.write_bytes(data)
        return
    temporary = path.with_name(f".daskbatch-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:  # with the permissions of any new file
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        # The user knows the name of the file alone.
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

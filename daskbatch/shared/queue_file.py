"""Writes the items of a queue to a file, and reads them back; see `data.snapshot` for the format.

The key of a record is the position of the item. The functions may be called by any thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from daskbatch.errors import LifecycleError, ServiceLost, SpecError
from daskbatch.shared.data.codec import Value, content_of, prepare_to_send
from daskbatch.shared.data.portable_keys import dumps_for_later
from daskbatch.shared.data.snapshot import read_snapshot, write_snapshot
from daskbatch.shared.proxy import ObjectProxy
from daskbatch.shared.store import operations

#: How often the items are read anew if the queue moves to another worker meanwhile.
_SAVE_ATTEMPTS = 3


def save_items(proxy: ObjectProxy, path: str | Path) -> None:
    """Write the present items of a queue to a file; see `Queue.save`."""
    for remaining in reversed(range(_SAVE_ATTEMPTS)):
        token = os.urandom(8)
        try:
            proxy.call(0, operations.QUEUE_VIEW, token)
            write_snapshot(path, _records(proxy, token))
            return
        except ServiceLost:
            proxy.refresh()
            if not remaining or not proxy.layout(0).replicas:
                raise
        finally:
            with suppress(ServiceLost, LifecycleError):
                proxy.call(0, operations.QUEUE_UNVIEW, token)


def _records(proxy: ObjectProxy, token: bytes) -> Iterator[tuple[bytes, Any, Any]]:
    position = 0
    while True:
        page = proxy.call(0, operations.QUEUE_PAGE, token, position)
        if page is None:
            raise ServiceLost(
                f"{proxy.description} has moved to another worker while it was being saved; save it"
                " again"
            )
        if not page:
            return
        for value in page:
            key = dumps_for_later(position)
            main, *buffers = map(content_of, value if isinstance(value, tuple) else (value,))
            yield key, main, buffers
            position += 1


def load_items(proxy: ObjectProxy, path: str | Path) -> None:
    """Put the items of a file into a new queue; see `Queue.load`."""
    for _, main, buffers in read_snapshot(path):
        value: Value = (main, *buffers) if buffers else bytes(main)
        if not proxy.call(0, operations.QUEUE_PUT, prepare_to_send(value)):
            raise SpecError(
                f"the file {os.fspath(path)!r} has more items than "
                f"maxsize={proxy.info.options.maxsize}"
            )

"""Defines the messages on the control socket between a child and its worker.

The child sends single bytes, so that the worker can take several of them with one read, in
any order. The worker sends requests: the size of the request's data, together with two file
descriptors (`SCM_RIGHTS`): the memory of the `SharedClaims`, and a file with the data.
"""

from __future__ import annotations

import struct

#: The child has started, and waits for requests.
READY = b"r"

#: The block of the last request is over, and all its frames are in the pipe.
BLOCK_OVER = b"o"

#: The pipe is full: the child waits until the worker has read some of it.
PIPE_FULL = b"f"

#: The running member begins to wait for something, or has finished waiting.
WAITING_CHANGED = b"w"

#: The size of a request's data. Bytes.
REQUEST_SIZE = struct.Struct("=q")

"""Makes blocks of calls, as a client sends them to a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import BlockSpec, Limits, Link

#: A pickled function, and its packed arguments.
Call = tuple[bytes, bytes]

#: A member that calls nothing.
BARRIER: Call = (b"", b"")


class TaskPlaceholder:
    """A placeholder for a task among arguments."""

    def __reduce__(self) -> Any:
        return pickling.reference(self)


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
    return pickling.dumps(function), pickling.pack((args, kwargs))[0]


def spec(
    *calls: Call,
    links: Mapping[int, Link] | None = None,
    limits: Mapping[int, Limits] | None = None,
    **changes: Any,
) -> BlockSpec:
    """Make a block of calls; the limits that are not given are large."""
    functions = list(dict.fromkeys(function for function, _ in calls if function))
    given: dict[str, Any] = {
        "block": 7,
        "topic": "topic",
        "functions": functions,
        "calls": [(functions.index(f) if f else -1, data) for f, data in calls],
        "labels": ["t"],
        "links": links or {},
        "limits": limits or {},
        "isolated": False,
        "journaled": False,
        "budget": 60.0,
        "share_limit": 1 << 20,
        "inline_limit": 1 << 16,
        "output_limit": 1000,
        **changes,
    }
    return BlockSpec(**given)

"""Loads the functions of tasks, with the definitions that they use.

Any thread may call. The last functions are kept: most tasks call one that was loaded before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from daskbatch.serialization import loading, mirror, pickling, spawned

#: A function, and the definitions that were loaded with it.
LoadedFunction = tuple[Callable[..., Any], loading.Definitions]


def load_anew(data: bytes) -> LoadedFunction:
    """Unpickle a function with the definitions that it uses; raises what unpickling it raises."""
    definitions = loading.Definitions()
    with loading.collect(definitions):
        function: Callable[..., Any] = pickling.loads(data)
    if not (definitions.by_tracker or definitions.classes or definitions.globals):
        definitions = loading.NO_DEFINITIONS
    mirror.install()
    spawned.install()
    return function, definitions


@lru_cache(maxsize=256)
def load_with_definitions(data: bytes) -> LoadedFunction:
    """Do what `load_anew` does, once for each function."""
    return load_anew(data)

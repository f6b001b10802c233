"""CPython's looks at the digests that there are; no test that runs needs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def requires_hashdigest(name: str) -> Callable[[Any], Any]:
    return lambda function: function

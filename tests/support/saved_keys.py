"""A file that an earlier version of daskbatch has saved, and the classes of its keys.

The version of commit 550453e wrote it, by a program with these classes in its ``__main__``::

    with Batch(num_workers=1) as batch:
        d = batch.ddict(shards=1)
        d.update(CONTENTS)
        d.save("saved_by_byname.snapshot")
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SAVED = Path(__file__).parents[1] / "unit/shared/data/fixtures/saved_by_byname.snapshot"


@dataclass(frozen=True)
class Point:
    __module__ = "__main__"

    x: float
    name: str


class Colour(enum.Enum):
    __module__ = "__main__"

    RED = 1
    GREEN = "green"


#: The contents of the file, except for an array.
CONTENTS: dict[Hashable, Any] = {
    "text": "plain",
    2: [1, 2.5, None],
    (3, "c"): b"bytes",
    Point(1.0, "p"): "a dataclass of __main__",
    Colour.RED: "an enum of __main__",
    (Point(2.0, "q"), frozenset([Colour.GREEN])): "both in a tuple",
}

#: The array, under the key "array".
ARRAY = np.arange(3000, dtype="f8")

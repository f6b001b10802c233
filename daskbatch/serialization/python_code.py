"""Makes the code objects of pickles, and refuses those of another version of Python.

Bytecode belongs to one minor version of Python: another one crashes when it runs it. The processes
of a cluster have the same version, but a saved file may be read years later. So a pickle refers to
`make_code` by a name that contains the version, which only that version finds here.

Any thread may call all functions.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any

from daskbatch.errors import SerializationError

#: What the names of `make_code` in pickles begin with.
_PREFIX = "code_of_python_"


def make_code(*parts: Any) -> CodeType:
    """Make a code object of the parts that `types.CodeType` takes."""
    return CodeType(*parts)


make_code.__name__ = make_code.__qualname__ = (
    f"{_PREFIX}{sys.version_info.major}_{sys.version_info.minor}"
)
globals()[make_code.__name__] = make_code


def __getattr__(name: str) -> Any:
    """Refuse the name of another version.

    Raises
    ------
    SerializationError
        A pickle contains code of another version of Python.
    """
    if not name.startswith(_PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    refuse(f"Python {name.removeprefix(_PREFIX).replace('_', '.')}")


def refuse(origin: str) -> None:
    """Say that a pickle contains code that this version of Python cannot run.

    Parameters
    ----------
    origin : str
        Names the version that has made the pickle.

    Raises
    ------
    SerializationError
        Always.
    """
    raise SerializationError(
        f"It contains a function or a class that {origin} pickled by value, and Python "
        f"{sys.version_info.major}.{sys.version_info.minor} cannot run its code. Load it with the "
        "former, or define the function or class in a module before you save it."
    )

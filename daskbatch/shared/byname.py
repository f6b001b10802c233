"""Keeps saved dictionaries readable that earlier versions of daskbatch wrote.

`data.portable_keys` had this module's path then. In the files, a key with a class of `__main__` is
a call of one of these functions, by that path. The files do not say which version of Python has
made the code of the classes in them; most are of 3.11. Other versions would crash when they run it.
Any thread may call all functions.
"""

import pickle
import sys
from typing import Any

from daskbatch.serialization.python_code import refuse
from daskbatch.shared.data.portable_keys import _named


def _either(named: bytes, data: bytes) -> Any:
    """Return the key that was stored twice. Saved files name this function."""
    try:
        return pickle.loads(named)
    except Exception:
        if sys.version_info >= (3, 12) and b"CodeType" in data:
            refuse("an earlier version of daskbatch, with an unknown version of Python,")
        return pickle.loads(data)


__all__ = ["_either", "_named"]

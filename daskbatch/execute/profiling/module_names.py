"""Derives the names of modules from the paths of their files, for the tables of profilers.

Pure: it does not read the files, because they may be on another machine.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache

from daskbatch.errors import SpecError

_LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|lib/python3\.\d+)/")


@lru_cache(maxsize=4096)
def module_name(path: str) -> str:
    """Return the name of a module by the path of its file, which may be on another machine.

    Examples
    --------
    >>> module_name("/opt/venv/lib/python3.12/site-packages/numpy/linalg/__init__.py")
    'numpy.linalg'
    """
    if not path.endswith(".py"):
        return path
    found = _LIBRARY.match(path)
    start = found.end() if found is not None else 0
    for each in sys.path:
        if each and len(each) >= start and path.startswith(each.rstrip("/") + "/"):
            start = len(each.rstrip("/")) + 1
    name = path[start:] if start else path.rpartition("/")[2]
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class ModuleFilter:
    """Decides which modules a table shows.

    Parameters
    ----------
    include, exclude : str or sequence of str
        The names of root modules. If `include` is not empty, only modules below these are shown.
        Modules below those of `exclude` are not shown.
    strip_dirs : bool
        Whether the table shows modules by name. `include` and `exclude` require this.

    Raises
    ------
    SpecError
        `include` or `exclude` is given without `strip_dirs`.
    """

    def __init__(
        self, include: str | Sequence[str], exclude: str | Sequence[str], strip_dirs: bool
    ) -> None:
        self._include = _names(include)
        self._exclude = _names(exclude)
        if (self._include or self._exclude) and not strip_dirs:
            raise SpecError("include= and exclude= are module names and require strip_dirs=True")

    def shows(self, module: str) -> bool:
        """Return whether a module is shown."""
        if self._include and not any(_is_in(module, each) for each in self._include):
            return False
        return not any(_is_in(module, each) for each in self._exclude)


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _is_in(module: str, root: str) -> bool:
    return module == root or module.startswith(f"{root}.")

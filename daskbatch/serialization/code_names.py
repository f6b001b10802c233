"""Finds the names that a function's code uses: globals, packages' submodules, names in texts.

Any number of threads may call all functions.
"""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from daskbatch.serialization.tracking import WeakTable

#: The names of the module of the script. In a process that `multiprocessing` has spawned, it has
#: the second one, too.
MAIN_MODULES = frozenset({"__main__", "__mp_main__"})

#: The instructions that use a global variable; those with NAME stand in the bodies of classes.
_GLOBAL_INSTRUCTIONS = frozenset(
    ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
)

#: A function whose code has one of these names may load by name what the script defines.
_LOADS_BY_NAME = frozenset(
    ("pickle", "cloudpickle", "dill", "joblib", "shelve", "read_pickle", "Unpickler")
)

#: A function that imports one of these may start processes, see `spawned`.
_STARTS_PROCESSES = frozenset(("multiprocessing", "concurrent.futures", "joblib"))

_IDENTIFIER = re.compile(r"[^\W\d]\w*")


class CodeNames(NamedTuple):
    """The names in a function's code, that of nested functions and classes included.

    Parameters
    ----------
    globals : tuple of str
        Names that may be of global variables, in the order of their use.
    names : frozenset of str
        All names, attributes and imports included.
    imports : frozenset of str
        Modules that it imports.
    texts : frozenset of str
        Constants that are identifiers.
    """

    globals: tuple[str, ...]
    names: frozenset[str]
    imports: frozenset[str]
    texts: frozenset[str]

    @property
    def mentions_main(self) -> bool:
        """Whether the code imports ``__main__`` or finds it in `sys.modules`."""
        return not MAIN_MODULES.isdisjoint(self.imports | self.texts)

    @property
    def loads_by_name(self) -> bool:
        """Whether the code may unpickle what the script defines."""
        return not _LOADS_BY_NAME.isdisjoint(self.names)


_names_of: WeakTable[CodeNames] = WeakTable()


def names_of(code: CodeType) -> CodeNames:
    """Return the names in a function's code."""
    found = _names_of.get(code)
    if found is None:
        # A dictionary keeps the order, so that equal functions make equal pickles.
        used: dict[str, None] = {}
        names: set[str] = set()
        imports: set[str] = set()
        texts: set[str] = set()
        for each in _nested(code):
            names.update(each.co_names)
            texts.update(c for c in each.co_consts if isinstance(c, str) and c.isidentifier())
            for instruction in dis.get_instructions(each):
                if instruction.opname in _GLOBAL_INSTRUCTIONS:
                    used[instruction.argval] = None
                elif instruction.opname == "IMPORT_NAME":
                    imports.add(instruction.argval)
        found = CodeNames(tuple(used), frozenset(names), frozenset(imports), frozenset(texts))
        _names_of.set(code, found)
    return found


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def values_in_annotations(
    annotations: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the script's classes and those of the standard library that annotations name.

    Nothing else: what only annotations name must not keep a class from being sent.

    Parameters
    ----------
    annotations : mapping
        The annotations.
    found : mapping
        The globals of the script.
    """
    named = {name: found[name] for name in _names_in_annotations(annotations) if name in found}
    return {name: value for name, value in named.items() if _is_simple(value)}


def _is_simple(value: object) -> bool:
    if isinstance(value, ModuleType):
        module = value.__name__
    else:
        module = (value if isinstance(value, type) else type(value)).__module__
        if not isinstance(value, type) and module != "typing":
            return False
    return module in MAIN_MODULES or str(module).partition(".")[0] in sys.stdlib_module_names


def _names_in_annotations(annotations: Mapping[str, Any]) -> Iterator[str]:
    """Yield the identifiers in annotations that are texts, as ``from __future__`` makes them."""
    for annotation in annotations.values():
        if isinstance(annotation, str):
            yield from _IDENTIFIER.findall(annotation)


def submodules_of(names: CodeNames, values: Iterable[Any]) -> list[ModuleType]:
    """Return the imported submodules that code reaches by way of their packages.

    Parameters
    ----------
    names : CodeNames
        The names in the code.
    values : iterable
        The values that the code refers to; there may be packages among them.
    """
    modules = sys.modules
    packages = {
        each.__name__
        for each in (*values, *(modules.get(name.partition(".")[0]) for name in names.imports))
        if type(each) is ModuleType and each.__dict__.get("__path__") is not None
    }
    found: list[ModuleType] = []
    if not _STARTS_PROCESSES.isdisjoint(names.imports) and "multiprocessing" in modules:
        found.append(modules["multiprocessing"])
    if packages:
        words = names.names
        for name, module in list(modules.items()):
            if not isinstance(name, str) or not isinstance(module, ModuleType):
                continue
            for package in packages:
                if name.startswith(package + "."):
                    if words.issuperset(name[len(package) + 1 :].split(".")):
                        found.append(module)
                    break
    return found

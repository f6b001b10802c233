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
#: Those, and the one that imports a module, by their numbers.
_NAMING = {
    number: name
    for name, number in dis.opmap.items()
    if name in _GLOBAL_INSTRUCTIONS or name == "IMPORT_NAME"
}
#: Whether the layout of the instructions is the known one of CPython 3.11 to 3.14.
_KNOWS_LAYOUT = sys.version_info < (3, 15) and sys.implementation.name == "cpython"

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
    mentions_main : bool
        Whether the code imports ``__main__`` or finds it in `sys.modules`.
    loads_by_name : bool
        Whether the code may unpickle what the script defines.
    """

    globals: tuple[str, ...]
    names: frozenset[str]
    imports: frozenset[str]
    texts: frozenset[str]
    mentions_main: bool
    loads_by_name: bool


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
            for instruction, name in named_by(each) if _KNOWS_LAYOUT else named_by_dis(each):
                if instruction == "IMPORT_NAME":
                    imports.add(name)
                else:
                    used[name] = None
        found = CodeNames(
            *(tuple(used), frozenset(names), frozenset(imports), frozenset(texts)),
            mentions_main=not MAIN_MODULES.isdisjoint(imports | texts),
            loads_by_name=not _LOADS_BY_NAME.isdisjoint(names),
        )
        _names_of.set(code, found)
    return found


def named_by(code: CodeType) -> Iterator[tuple[str, str]]:
    """Yield the instructions of code that use a global variable or import, each with the name.

    It does what `named_by_dis` does, in a tenth of the time: that is the larger part of the time
    to pickle a function for the first time.
    """
    names, content = code.co_names, code.co_code
    higher_bits = 0
    for number, argument in zip(content[::2], content[1::2], strict=True):
        if number == dis.EXTENDED_ARG:
            higher_bits = (higher_bits | argument) << 8
            continue
        if number in _NAMING:
            instruction = _NAMING[number]
            index = higher_bits | argument
            # The lowest bit of this one says whether a NULL is pushed, too.
            yield instruction, names[index >> 1 if instruction == "LOAD_GLOBAL" else index]
        higher_bits = 0


def named_by_dis(code: CodeType) -> Iterator[tuple[str, str]]:
    """Yield the same by the module `dis`, which knows all versions of Python."""
    for instruction in dis.get_instructions(code):
        if instruction.opcode in _NAMING:
            yield instruction.opname, instruction.argval


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
    used: list[Any] = [each for each in values if type(each) is ModuleType]
    if not used and not names.imports:
        return []
    used += [modules.get(name.partition(".")[0]) for name in names.imports]
    packages = {
        each.__name__
        for each in used
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

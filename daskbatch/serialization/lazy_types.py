"""Sends type aliases and type variables whose parts Python evaluates later (PEP 695 and 696).

An alias may refer to itself, and a bound may name what only type checkers see. So these are
declared anew elsewhere, by a ``type`` statement, and their parts are set afterwards. A part that
cannot be evaluated raises the same `NameError` there. Type variables are declared in this way only
if a part of theirs cannot be evaluated.

Type aliases have no weak references: the latest are kept alive, see `_MAX_ALIASES`. Any number of
threads may call all functions.
"""

from __future__ import annotations

import keyword
import typing
from collections import OrderedDict
from functools import partial
from typing import Any

from daskbatch.forking import make_lock
from daskbatch.serialization import functions, tracking
from daskbatch.serialization.tracking import Received

#: How many aliases keep their identity. Those that are older are made anew when they arrive.
_MAX_ALIASES = 4096

#: The name by which declarations find their parts. No script uses it for a type parameter.
_PART = "__daskbatch_part__"

Identity = tuple[str, str, bool]

#: The value of a part; or the message of the `NameError`, and the missing name.
Part = tuple[Any] | tuple[str, Any]


class AliasRecord:
    """Stands for a type alias where a weak reference is needed.

    Parameters
    ----------
    alias : TypeAliasType
        The alias.
    parts : list, optional
        The parts of a received alias, which are set after it was made.
    """

    __slots__ = ("__weakref__", "alias", "parts")

    def __init__(self, alias: Any, parts: list[Part] | None = None) -> None:
        self.alias = alias
        self.parts = parts


#: By the id of an alias: its record, which keeps it alive.
_records: OrderedDict[int, AliasRecord] = OrderedDict()
_recording = make_lock()


def _record_of(alias: Any, parts: list[Part] | None = None) -> AliasRecord:
    with _recording:
        record = _records.get(id(alias))
        if record is None:
            record = _records[id(alias)] = AliasRecord(alias, parts)
            while len(_records) > _MAX_ALIASES:
                _records.popitem(last=False)
    return record


def reduce_alias(alias: Any) -> tuple[Any, ...]:
    """Reduce a type alias that other processes cannot import."""
    who = tracking.identify(_record_of(alias), lambda: functions.is_bound(alias))
    identity: Identity = who.tracker, who.origin, who.bound
    name, variables = alias.__name__, alias.__type_params__
    arguments = identity, name, alias.__module__
    is_name = name.isidentifier() and not keyword.iskeyword(name)
    if not is_name or not all(getattr(each, "__infer_variance__", True) for each in variables):
        # A call has made it, with any name, and of variables that others may use, too.
        return _make_alias_of, (*arguments, alias.__value__, variables)
    parts = [_part_of(alias, "__value__")]
    declared = [(_identity_of(each), declaration_of(each, parts)) for each in variables]
    return _make_alias, (*arguments, declared), parts, None, None, _set_parts


def _identity_of(variable: Any) -> Identity:
    who = tracking.identify(variable, lambda: functions.is_bound(variable))
    return who.tracker, who.origin, who.bound


def _make_alias_of(
    identity: Identity, name: str, module: str, value: Any, variables: tuple[Any, ...]
) -> Any:
    make = partial(typing.TypeAliasType, name, value, type_params=variables)  # type: ignore[attr-defined]
    # Python takes the alias's module from the caller's globals.
    made = eval("make()", {"__name__": module, "make": make})
    return _register(identity, made, None)


def _make_alias(
    identity: Identity, name: str, module: str, declared: list[tuple[Identity, str]]
) -> Any:
    found = tracking.find(identity[0])
    if found is not None:
        return found.alias
    parts: list[Part] = []
    parameters = ", ".join(declaration for _, declaration in declared)
    made = declare(name, f"[{parameters}]" if parameters else "", module, parts)
    for (who, _), variable in zip(declared, made.__type_params__, strict=True):
        tracking.register(variable, Received(*who))
    return _register(identity, made, parts)


def _register(identity: Identity, made: Any, parts: list[Part] | None) -> Any:
    who = Received(*identity)
    found = tracking.register(_record_of(made, parts), who).alias
    functions.add_name(found, who)
    return found


def _set_parts(alias: Any, parts: list[Part]) -> None:
    mine = _record_of(alias).parts
    if mine is not None and not mine:
        mine += parts


# -- declarations ----------------------------------------------------------------------------


def declare(name: str, parameters: str, module: str | None, parts: list[Part]) -> Any:
    """Make a type alias by a ``type`` statement.

    Parameters
    ----------
    name, parameters, module
        Its name, its type parameters in brackets, and its module.
    parts : list
        The parts that the declaration refers to by their numbers; the first one is the value.
    """

    def part(number: int) -> Any:
        found = parts[number]
        if len(found) == 1:
            return found[0]
        message, missing = found
        raise NameError(message, name=missing)

    namespace: dict[str, Any] = {"__name__": module, _PART: part}
    exec(f"type {name}{parameters} = {_PART}(0)", namespace)
    return namespace[name]


def declaration_of(variable: Any, parts: list[Part]) -> str:
    """Return the declaration of a type variable, and add its parts to a list."""

    def add(part: Part) -> str:
        parts.append(part)
        return f"{_PART}({len(parts) - 1})"

    text: str = variable.__name__
    if type(variable) is typing.TypeVarTuple:
        text = f"*{text}"
    elif type(variable) is typing.ParamSpec:
        text = f"**{text}"
    else:
        constraints = _part_of(variable, "__constraints__")
        bound = _part_of(variable, "__bound__")
        if len(constraints) == 2:
            text += f": ({add(constraints)}, {add(constraints)})"
        elif constraints[0]:
            text += f": ({', '.join(add((each,)) for each in constraints[0])})"
        elif bound != (None,):
            text += f": {add(bound)}"
    if hasattr(variable, "has_default") and variable.has_default():
        text += f" = {add(_part_of(variable, '__default__'))}"
    return text


def _part_of(obj: Any, name: str) -> Part:
    try:
        return (getattr(obj, name),)
    except NameError as error:
        return str(error), error.name


def declare_variable(declaration: str, parts: list[Part]) -> Any:
    """Make a type variable; see `declaration_of`."""
    (made,) = declare("_", f"[{declaration}]", None, parts).__type_params__
    return made

"""Sends enumerations by value, with all their members, aliases and combined flags.

Neither the ``__new__`` nor the ``__init__`` of an enumeration is called when it is loaded: a
member is made with its data alone, and gets the attributes that the sender's member has. Any
number of threads may call all functions.
"""

from __future__ import annotations

import contextlib
import copyreg
import enum
from collections.abc import Mapping
from types import BuiltinFunctionType
from typing import Any

#: The type whose ``__new__`` makes the members; for each member its name, and the arguments for
#: that; for each name, aliases included, the name of the member.
Cores = tuple[type, list[tuple[str, tuple[Any, ...]]], dict[str, str]]

#: The attribute of an enumeration that maps values to members.
_BY_VALUE = "_value2member_map_"


def is_member(obj: object) -> bool:
    """Return whether an object is a member of an enumeration, or a combination of flags."""
    return isinstance(type(obj), enum.EnumMeta)


def member_name(member: Any) -> str | None:
    """Return the name under which an enumeration has a member; None for a combination of flags."""
    name = vars(member).get("_name_")
    known = type.__getattribute__(type(member), "_member_map_")
    return name if isinstance(name, str) and known.get(name) is member else None


def find_member(kind: type, name: str) -> Any:
    """Return the member of an enumeration with a name. Pickles name this function."""
    return type.__getattribute__(kind, "_member_map_")[name]


def find_combination(kind: Any, value: Any) -> Any:
    """Return the combination of flags with a value. Pickles name this function."""
    if "_value2member_map_" in vars(kind):
        return kind(value)
    # The class is being loaded: it has a combination among its attributes.
    maker = _maker_of(type.__getattribute__(kind, "_member_type_"))
    made: Any = maker.__new__(kind) if maker is object else maker.__new__(kind, value)
    made.__dict__.update(_value_=value, _name_=None, _inverted_=None, __objclass__=kind)
    return made


def cores_of(kind: Any) -> Cores:
    """Return what is needed to make the members of an enumeration, without their attributes."""
    data_type = _maker_of(vars(kind).get("_member_type_", object))
    members: list[tuple[str, tuple[Any, ...]]] = []
    names: dict[str, str] = {}
    for name, member in vars(kind).get("_member_map_", {}).items():
        own = vars(member)["_name_"]
        names[name] = own
        if own == name:
            members.append((name, _arguments_of(member, data_type)))
    return data_type, members, names


def _maker_of(data_type: type) -> Any:
    """Return the nearest type above whose ``__new__`` is not written in Python."""
    return next(
        each
        for each in data_type.__mro__
        if isinstance(vars(each).get("__new__"), BuiltinFunctionType)
    )


def _arguments_of(member: Any, data_type: Any) -> tuple[Any, ...]:
    if data_type is object:
        return ()
    get_arguments = getattr(data_type, "__getnewargs__", None)
    if get_arguments is not None:
        return tuple(get_arguments(member))
    reduced = data_type.__reduce_ex__(member, 2)
    arguments: tuple[Any, ...] = reduced[1]
    return arguments[1:] if reduced[0] is copyreg.__newobj__ else arguments  # type: ignore


def add_members(kind: type, cores: Cores) -> None:
    """Make the members of an enumeration, without attributes."""
    data_type, members, names = cores
    made: dict[str, Any] = {}
    for name, arguments in members:
        made[name] = data_type.__new__(kind, *arguments)
        vars(made[name])["_name_"] = name
    by_name = {name: made[own] for name, own in names.items()}
    type.__setattr__(kind, "_member_map_", by_name)
    type.__setattr__(kind, "_member_type_", data_type)


def details_of(kind: type) -> dict[str, dict[str, Any]]:
    """Return the attributes of the members of an enumeration, by the members' names."""
    members = vars(kind).get("_member_map_", {}).items()
    found = {name: dict(vars(each)) for name, each in members if vars(each)["_name_"] == name}
    for attributes in found.values():
        if "_inverted_" in attributes:  # a cache
            attributes["_inverted_"] = None
    return found


def set_details(kind: type, details: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the members of an enumeration their attributes."""
    members = type.__getattribute__(kind, "_member_map_")
    for name, attributes in details.items():
        if name in members:
            vars(members[name]).update(attributes)


def without_pseudo_members(kind: type, attributes: dict[str, Any]) -> dict[str, Any]:
    """Return attributes without the combinations of flags that have no name.

    Each process makes these when it needs them.
    """
    by_value = attributes.get(_BY_VALUE)
    members = vars(kind).get("_member_map_", {})
    if isinstance(by_value, dict):
        kept = {}
        for value, member in by_value.items():
            with contextlib.suppress(Exception):
                if members.get(vars(member)["_name_"]) is member:
                    kept[value] = member
        attributes = {**attributes, _BY_VALUE: kept}
    return {name: value for name, value in attributes.items() if name != "_member_map_"}

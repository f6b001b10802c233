"""Sends annotations that Python evaluates when they are first read, as Python 3.14 does (PEP 649).

Annotations that can be evaluated are sent as their values. Others name what is not there: what is
defined later, or only for type checkers. Then the function that evaluates them is sent, and
reading them raises the same error elsewhere. Dataclasses keep such names as forward references,
which have the globals of the whole script: only those that they name are sent.

Any number of threads may call all functions.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from types import CellType
from typing import Any

#: The variable by which a function in the body of a class reaches the namespace of the class.
CLASS_NAMESPACE = "__classdict__"

_IDENTIFIER = re.compile(r"[^\W\d]\w*")


def annotate_function_of(obj: Any) -> Any:
    """Return the function that evaluates the annotations of a function or a class; None if none."""
    return getattr(obj, "__annotate__", None)


def class_annotations(kind: type) -> dict[str, Any]:
    """Return the attribute by which the annotations of a class are sent, if it has any.

    Parameters
    ----------
    kind : type
        A class.

    Returns
    -------
    dict
        Either ``__annotations__`` or ``__annotate__``, or nothing.
    """
    own = vars(kind)
    if "__annotate_func__" not in own and "__annotations_cache__" not in own:
        return {}  # Python 3.13 or earlier, or no annotations
    try:
        found = dict(kind.__annotations__)
    except Exception:
        return {"__annotate__": annotate_function_of(kind)}
    return {"__annotations__": found} if found or annotate_function_of(kind) is not None else {}


def used_of(namespace: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return what code uses of the namespace of the class that it stands in."""
    return {name: namespace[name] for name in names if name in namespace}


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function; its annotations need not be defined.

    Raises
    ------
    Exception
        It has no signature, or a wrong one: it is an object of the user.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF).parameters
    return inspect.signature(function).parameters


# -- forward references ----------------------------------------------------------------------


def reduce_forward_reference(reference: Any) -> tuple[Any, ...]:
    """Reduce a forward reference to its text, and what it finds under the names in it."""
    text = reference.__forward_arg__
    arguments = (
        *(text, reference.__forward_module__),
        *(reference.__forward_is_argument__, reference.__forward_is_class__),
    )
    words = frozenset(_IDENTIFIER.findall(text))
    found = reference.__globals__
    cells = reference.__cell__
    if isinstance(cells, dict):
        cells = {name: _content_of(cell) for name, cell in cells.items() if name in words}
    elif cells is not None:
        cells = _content_of(cells)
    state = (
        reference.__owner__,
        None if found is None else used_of(found, words),
        cells,
        reference.__extra_names__,
    )
    return _make_forward_reference, arguments, state, None, None, _set_forward_reference


def _make_forward_reference(text: str, module: Any, is_argument: bool, is_class: bool) -> Any:
    return typing.ForwardRef(text, module=module, is_argument=is_argument, is_class=is_class)


def _set_forward_reference(reference: Any, state: tuple[Any, ...]) -> None:
    reference.__owner__, reference.__globals__, cells, reference.__extra_names__ = state
    if isinstance(cells, dict):
        cells = {name: CellType(*content) for name, content in cells.items()}
    elif cells is not None:
        cells = CellType(*cells)
    reference.__cell__ = cells


def _content_of(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


#: How forward references are reduced. Before Python 3.14 they have no globals.
REDUCERS: dict[type, Callable[[Any], Any]] = {}
if sys.version_info >= (3, 14):
    REDUCERS[typing.ForwardRef] = reduce_forward_reference

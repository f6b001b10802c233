"""Carries the settings of the script's interpreter to the processes that run its tasks.

The process that starts an embedded cluster calls `capture`. Each process that runs tasks applies
the settings: workers by `inherit`, since their parent was started with `VARIABLE` in its
environment, and children because the worker passes `applied` to them. Options that only the
command line sets are `command_line_options`.

Each process calls `inherit` or `apply` in its main thread, before it runs tasks.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Mapping
from typing import Any

#: The variable that holds the settings, until the process that it is meant for has read it.
VARIABLE = "DASKBATCH_INTERPRETER"

#: The variable of the seed of `hash`, and its value where the script has none: Dask's own value.
HASH_SEED, DEFAULT_HASH_SEED = "PYTHONHASHSEED", "6640"

#: Options that would change what Dask and daskbatch themselves write to stderr.
_NOISY_OPTIONS = frozenset(("importtime", "showrefcount"))

#: The settings of the script that this process runs tasks of; None if it has none.
_applied: str | None = None


def command_line_options() -> list[str]:
    """Return the options to start an interpreter with, so that it behaves like this one.

    Warning options are not among them: they would hold while Dask is imported, too. Neither are
    those by which Python ignores its environment: `environment` does that.
    """
    # multiprocessing starts its processes with the same flags. The value of an option follows it.
    found = iter(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]
    options: list[str] = []
    for each in found:
        if each == "-X":
            next(found)
        elif each[:2] not in ("-W", "-X", "-I", "-E", "-P"):
            options.append(each)
    for name, value in sys._xoptions.items():
        if name not in _NOISY_OPTIONS:
            options += ["-X", name if value is True else f"{name}={value}"]
    return options


def environment(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for an interpreter that is started with `command_line_options`.

    Parameters
    ----------
    wanted : mapping
        The environment of this process, and what is to be added to it.
    """
    found = dict(wanted)
    if sys.flags.ignore_environment:
        found = {name: value for name, value in found.items() if not name.startswith("PYTHON")}
    # Without a fixed seed, the hash of a text would differ between the workers and their children.
    found.setdefault(HASH_SEED, DEFAULT_HASH_SEED)
    return found


def capture() -> str:
    """Return the settings of this process, as a text."""
    filters = []
    for each in warnings.filters:
        # The category may be a class of the script, which other processes cannot import.
        with contextlib.suppress(Exception):
            data = pickle.dumps(each)
            if b"__main__" not in data:
                filters.append(base64.b85encode(data).decode())
    return json.dumps(
        {
            "argv": [str(each) for each in sys.argv],
            "options": dict(sys._xoptions),
            "warnings": [str(each) for each in sys.warnoptions],
            "filters": filters,
            "recursion": sys.getrecursionlimit(),
            "digits": sys.get_int_max_str_digits(),
            "seed": os.environ.get(HASH_SEED, DEFAULT_HASH_SEED),
        }
    )


def apply(settings: str | None, hides_seed: bool = False) -> None:
    """Give this process the settings that `capture` has returned; nothing if there are none.

    Parameters
    ----------
    settings : str, optional
        The settings.
    hides_seed : bool
        Whether tasks must not see `HASH_SEED` in the environment, since it is not the user's.
    """
    global _applied
    if hides_seed:
        os.environ.pop(HASH_SEED, None)
    if settings is None:
        return
    _applied = settings
    found: dict[str, Any] = json.loads(settings)
    sys.argv[:] = found["argv"]
    sys._xoptions.update(found["options"])
    sys.warnoptions[:] = found["warnings"]
    sys.set_int_max_str_digits(found["digits"])
    # A limit below the depth that is used now is refused; the process keeps its own limit then.
    with contextlib.suppress(RecursionError):
        sys.setrecursionlimit(found["recursion"])
    filters = []
    for each in found["filters"]:
        # The category may be of a module that is not there: a filter of it cannot be needed.
        with contextlib.suppress(Exception):
            filters.append(pickle.loads(base64.b85decode(each)))
    warnings.resetwarnings()  # it also has Python look at all filters again
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def applied() -> str | None:
    """Return the settings that this process has been given, for the processes that it starts."""
    return _applied


def hash_seed() -> str | None:
    """Return the value of `HASH_SEED` for processes that this one starts; None for no value.

    Dask may have given this process another value than its interpreter was started with.
    """
    if _applied is None:
        return os.environ.get(HASH_SEED)
    seed: str = json.loads(_applied)["seed"]
    return seed


def inherit() -> None:
    """Apply the settings in the environment of this process, and remove them from there."""
    apply(os.environ.pop(VARIABLE, None))

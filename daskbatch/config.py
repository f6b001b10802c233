"""The settings of daskbatch, kept in Dask's configuration under ``daskbatch``.

`daskbatch.yaml` has the defaults, and says what each setting is for. A setting is read each time
that it is needed, so a change affects what is created afterwards. Any
thread may call all functions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

#: The file with the defaults.
_FILE = Path(__file__).with_name("daskbatch.yaml")


def load_defaults() -> None:
    """Add the defaults to Dask's configuration; what the user has set takes precedence."""
    dask.config.update_defaults(_read_defaults())


def _read_defaults() -> dict[str, Any]:
    with _FILE.open() as file:
        found: dict[str, Any] = yaml.safe_load(file)
        return found


def get(name: str) -> Any:
    """Return a setting as it is configured."""
    try:
        return dask.config.get(f"daskbatch.{name}")
    except KeyError:
        # The defaults are gone: `dask.config.set` removes at the end of its block what was not
        # there at its start. So it does if this module was imported within a block that sets
        # one of these settings.
        dask.config.update(dask.config.config, _read_defaults(), priority="old")
        return dask.config.get(f"daskbatch.{name}")


def get_bytes(name: str) -> int:
    """Return a setting that is a size, such as ``10MiB``, in bytes."""
    return int(parse_bytes(get(name)))


def as_bytes(size: int | str) -> int:
    """Convert a size that a user gave, such as ``"10MiB"``, to bytes.

    Raises what `dask.utils.parse_bytes` raises for a wrong value.
    """
    return int(parse_bytes(size))


def get_seconds(name: str) -> float:
    """Return a setting that is a duration, such as ``200ms``, in seconds."""
    return float(parse_timedelta(get(name)))


def get_optional_seconds(name: str) -> float | None:
    """Return a setting that is a duration, in seconds; None if it is null, which means never."""
    return None if get(name) is None else get_seconds(name)


#: In place of a value that cannot be sent.
_OBJECT = object()


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for another process, as plain values; objects that belong here are left out.

    Dask's configuration may hold any object, for example the pool of threads for its schedulers.

    Parameters
    ----------
    settings : mapping
        Dask's configuration.
    """
    found = {}
    for key, value in settings.items():
        plain = _plain(value)
        if type(key) is str and plain is not _OBJECT:
            found[key] = plain
    return found


def _plain(value: Any) -> Any:
    try:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, os.PathLike):
            return os.fsdecode(value)
        if isinstance(value, Mapping):
            return portable(value)
        if isinstance(value, (list, tuple, set, frozenset)):
            return [plain for each in value if (plain := _plain(each)) is not _OBJECT]
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, Real):
            return float(value)
    except Exception:  # it may run any code; or it contains itself
        pass
    return _OBJECT


load_defaults()

"""The settings of daskbatch, kept in Dask's configuration under ``daskbatch``.

`daskbatch.yaml` has the defaults, and says what each setting is for. A setting is read each time
that it is needed, so a change affects what is created afterwards. Any
thread may call all functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

#: The file with the defaults.
_FILE = Path(__file__).with_name("daskbatch.yaml")


def load_defaults() -> None:
    """Add the defaults to Dask's configuration; what the user has set takes precedence."""
    with _FILE.open() as file:
        dask.config.update_defaults(yaml.safe_load(file))


def get(name: str) -> Any:
    """Return a setting as it is configured."""
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


load_defaults()

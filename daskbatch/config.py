"""The settings of daskbatch, kept in Dask's configuration under ``daskbatch``.

Does not know what they are for; `daskbatch.yaml` says that, beside their defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

_FILE = Path(__file__).with_name("daskbatch.yaml")


def load_defaults() -> None:
    """Put the defaults behind what the user's own configuration says."""
    with _FILE.open() as file:
        dask.config.update_defaults(yaml.safe_load(file))


def get(name: str) -> Any:
    """Read a setting as it stands."""
    return dask.config.get(f"daskbatch.{name}")


def get_bytes(name: str) -> int:
    """Read a size such as ``10MiB``, in bytes."""
    return int(parse_bytes(get(name)))


def as_bytes(size: int | str) -> int:
    """Read a size such as ``"10MiB"`` that somebody has given, in bytes."""
    return int(parse_bytes(size))


def get_seconds(name: str) -> float:
    """Read a span such as ``200ms``, in seconds."""
    return float(parse_timedelta(get(name)))


load_defaults()

"""Settings have defaults, are read in their units, and what the user sets takes precedence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dask.config
import pytest

from daskbatch import config


@pytest.mark.parametrize(
    ("name", "size"),
    [("output-limit", 10 << 20), ("share-limit", 1 << 20), ("inline-limit", 64 << 10)],
)
def test_sizes_have_defaults_in_bytes(name: str, size: int) -> None:
    found = config.get_bytes(name)
    assert found == size
    assert isinstance(found, int)


@pytest.mark.parametrize(("name", "span"), [("block-budget", 0.2), ("unmet-timeout", 60.0)])
def test_spans_have_defaults_in_seconds(name: str, span: float) -> None:
    found = config.get_seconds(name)
    assert found == pytest.approx(span)
    assert isinstance(found, float)


def test_no_cluster_is_named_by_default() -> None:
    assert config.get("cluster") is None


@pytest.mark.parametrize(
    ("given", "size"), [("2MiB", 2 << 20), ("1 kB", 1000), (4096, 4096), ("0", 0)]
)
def test_sizes_are_read_with_units_or_without(given: object, size: int) -> None:
    with dask.config.set({"daskbatch.output-limit": given}):
        assert config.get_bytes("output-limit") == size


@pytest.mark.parametrize(
    ("given", "span"), [("2 minutes", 120.0), ("50ms", 0.05), (3, 3.0), ("1.5s", 1.5)]
)
def test_spans_are_read_with_units_or_without(given: object, span: float) -> None:
    with dask.config.set({"daskbatch.block-budget": given}):
        assert config.get_seconds("block-budget") == pytest.approx(span)


def test_a_setting_is_read_as_it_stands_now() -> None:
    before = config.get("output-limit")
    with dask.config.set({"daskbatch.output-limit": "7B"}):
        assert config.get("output-limit") == "7B"
    assert config.get("output-limit") == before


def test_underscores_do_for_dashes() -> None:
    with dask.config.set({"daskbatch.output_limit": "8B"}):
        assert config.get_bytes("output-limit") == 8


def test_defaults_do_not_replace_what_the_user_has_set() -> None:
    with dask.config.set({"daskbatch.output-limit": "7B"}):
        config.load_defaults()
        assert config.get_bytes("output-limit") == 7
        assert config.get_bytes("share-limit") == 1 << 20


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(KeyError, match="no-such-thing"):
        config.get("no-such-thing")


def test_the_environment_and_files_come_before_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "daskbatch.yaml").write_text("daskbatch:\n  block-budget: 3s\n")
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "from daskbatch import config as c;"
            "print(c.get_bytes('output-limit'), c.get_seconds('block-budget'),"
            " c.get_bytes('inline-limit'))",
        ],
        env={
            **os.environ,
            "DASK_CONFIG": str(tmp_path),
            "DASK_DASKBATCH__OUTPUT_LIMIT": "1MiB",
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert said.stderr == ""
    assert said.stdout.split() == [str(1 << 20), "3.0", str(64 << 10)]

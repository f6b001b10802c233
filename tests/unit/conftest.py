"""Keeps unit tests from starting a cluster: those that need one are in tests/integration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


# Not for the session: files of other folders run in the same process, between those of this one.
@pytest.fixture(scope="module", autouse=True)
def _no_cluster() -> Iterator[None]:
    """Fail each test that starts an `EmbeddedCluster`."""
    from daskbatch.cluster.embedded import EmbeddedCluster

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a unit test must not start a cluster: move it to tests/integration")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedCluster, "__init__", refuse)
        yield

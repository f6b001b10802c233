"""Gives tests a process in which what they send is called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.scripts import TaskProcess


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[TaskProcess]:
    made = TaskProcess()
    yield made
    made.end()

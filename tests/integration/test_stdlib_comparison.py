"""The table that compares executors says what runs of each of its rows give."""

from __future__ import annotations

import pytest
from support.paths import DOCS
from support.stdlib_comparison import HEADING, make_table

from daskbatch import Batch


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_table_of_the_docs_is_what_runs_give(batch: Batch) -> None:
    page = (DOCS / "scripts.md").read_text()
    start = page.index(HEADING)
    table = page[start : page.index("\n\n", start) + 1]
    assert make_table(str(batch.client.scheduler_info()["address"])) == table

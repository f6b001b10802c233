"""Notebook forms and live reports, as a browser shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.browser import WatchedPage, start_chromium

from daskbatch import Batch


def same(x: Any, *_: Any) -> Any:
    return x


def fail(*_: Any) -> None:
    print("<b>not bold</b>")
    raise ValueError("the <i>reason</i>")


def test_a_browser_shows_forms_and_a_report(batch: Batch, tmp_path: Path) -> None:
    first = batch.function(same, "<script>alert(1)</script>", name="first <u>")
    others = [batch.function(same, first, name="other") for _ in range(3)]
    bad = batch.function(fail, *others, name="bad")
    program = batch.compile([first, *others, bad, batch.function(same, bad, name="after")])
    program.run(timeout=60)
    shown = [batch, program, first, first.result, bad, bad.stdout, program.result, bad.as_future()]
    forms = "\n".join(each._repr_html_() for each in shown)
    page = tmp_path / "notebook.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><title>n</title>{forms}', "utf-8")
    report = program.report(tmp_path / "report.html")
    assert program.failures == (bad,)
    # Started here and not by a fixture: while playwright runs, this thread has an event loop.
    with start_chromium() as browser:
        watched = WatchedPage(browser)
        watched.open_file(page)
        cards = watched.page.locator("div.daskbatch")
        assert cards.count() == len(shown)
        texts = cards.all_inner_texts()
        assert "4 done" in texts[1]
        assert "1 failed" in texts[1]
        assert "1 skipped" in texts[1]
        assert "ValueError: the <i>reason</i>" in texts[1]
        assert "first <u>" in texts[2]
        assert "<script>alert(1)</script>" in texts[3]
        assert "<b>not bold</b>" in texts[5]
        names = cards.nth(1).locator("svg text").all_text_contents()
        assert {"first <u>", "other[2]", "bad", "after"} <= {*names}
        assert watched.errors == []
        watched.open_file(report)
        tiles = watched.page.locator(".tile[data-state]").all_inner_texts()
        assert [tile.split() for tile in tiles] == [
            ["4", "done"],
            ["1", "failed"],
            ["1", "skipped"],
        ]
        assert watched.page.locator("#all tbody tr").count() == 6
        assert watched.errors == []


def test_without_a_browser_tests_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("playwright")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match="Debian's package chromium"), start_chromium():
        pass

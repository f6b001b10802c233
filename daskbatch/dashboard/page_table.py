"""Draws a table of the page /daskbatch.

It needs bokeh. The scheduler's event loop calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from bokeh.models.widgets.markups import Div


class Table:
    """A table of texts and numbers, as HTML: all of them are escaped here."""

    def __init__(
        self, name: str, columns: Sequence[str], height: int, optional: Sequence[str] = ()
    ) -> None:
        self._name, self._columns, self._height = name, columns, height
        #: The columns that are left out if they are empty.
        self._optional = optional
        self.root = Div(name=name, sizing_mode="stretch_width")

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rows in place of those before."""
        shown = [
            name
            for name in self._columns
            if name not in self._optional or any(row[name] for row in rows)
        ]
        head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in shown)
        lines = "".join(f"<tr>{_cells(row, shown)}</tr>" for row in rows)
        text = (
            f'<div style="max-height:{self._height}px;overflow:auto">'
            f'<table class="{self._name}" style="{_TABLE}"><thead><tr>{head}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div>"
        )
        if self.root.text != text:
            self.root.text = text


def _cells(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    texts = ("" if row[name] == 0 else str(row[name]) for name in columns)
    return "".join(f'<td style="{_CELL}">{escape(text)}</td>' for text in texts)


_TABLE = "border-collapse:collapse;font:13px sans-serif;width:100%"
_CELL = "text-align:left;padding:3px 6px;border-bottom:1px solid #ddd;vertical-align:top"

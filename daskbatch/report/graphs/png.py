"""Draws a picture of a graph as PNG, by Pillow, which the extra ``dashboard`` brings.

Pillow is imported when it is needed. Any thread may call `write_png`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from daskbatch.errors import SpecError
from daskbatch.report.analysis.groups import STATES
from daskbatch.report.graphs.layout import Box, Layout, edge_text, make_layout, shorten
from daskbatch.report.graphs.picture import Picture, PictureNode
from daskbatch.report.graphs.style import HAZARD_STYLES, HAZARD_WORDS, STATE_COLOURS, edge_style

#: The picture is drawn at twice the size of the SVG, unless it would have more pixels than this,
#: or a side would be longer. Below half of the size nothing can be read.
_SCALE, _MIN_SCALE = 2.0, 0.5
_MAX_PIXELS, _MAX_SIDE_PIXELS = 60_000_000, 30_000

_LEGEND_LINE_HEIGHT, _LEGEND_WIDTH = 18, 260
_CURVE_STEPS = 16

_Point = tuple[float, float]


def write_png(picture: Picture, path: Path) -> None:
    """Draw a picture into a file.

    Parameters
    ----------
    picture : Picture
        What is drawn.
    path : Path
        The file.

    Raises
    ------
    ImportError
        Pillow is not installed.
    SpecError
        The picture has too many pixels.
    OSError
        The file cannot be written.
    """
    from PIL import Image, ImageDraw

    layout = make_layout(picture)
    legend = [*_legend(picture)]
    width = max(layout.width, _LEGEND_WIDTH if legend else 0)
    height = layout.height + (len(legend) + 0.5) * _LEGEND_LINE_HEIGHT * bool(legend)
    scale = min(
        _SCALE, math.sqrt(_MAX_PIXELS / (width * height)), _MAX_SIDE_PIXELS / max(width, height)
    )
    if scale < _MIN_SCALE:
        raise SpecError(
            f"the graph is too large for {path.name}: draw it as SVG, or with collapse=True"
        )
    image = Image.new("RGB", (math.ceil(width * scale), math.ceil(height * scale)), "#ffffff")
    _Painter(ImageDraw.Draw(image), scale).paint(picture, layout, legend)
    image.save(path, "PNG")


class _Painter:
    """Draws in the units of the layout, by an `ImageDraw` of Pillow."""

    def __init__(self, draw: Any, scale: float) -> None:
        self._draw = draw
        self._scale = scale

    def paint(self, picture: Picture, layout: Layout, legend: Sequence[tuple[str, str]]) -> None:
        for index, edge in enumerate(picture.edges):
            colour, dashes = edge_style(edge.reasons)
            route = layout.routes[index]
            self._curve(_flatten(route, index in layout.backward), colour, dashes)
            x, y = route[-1]
            self._draw.polygon(self._to([(x, y), (x - 8, y - 4), (x - 8, y + 4)]), fill=colour)
            if edge.label:
                x, y, side = layout.labels[index]
                anchor = "ls" if side == "start" else "rs"
                self._text((x, y), edge_text(edge.label), 10, colour, anchor, outline=2)
        for node, box in zip(picture.nodes, layout.boxes, strict=True):
            self._node(node, box)
        for index, (kind, words) in enumerate(legend):
            y = layout.height + (index + 0.5) * _LEGEND_LINE_HEIGHT
            self._legend_sign(kind, y)
            self._text((50, y), words, 11, "#2d3748", anchor="lm")

    def _node(self, node: PictureNode, box: Box) -> None:
        corners = self._to([(box.x, box.y), (box.x + box.width, box.y + box.height)])
        if node.is_barrier:
            self._draw.ellipse(corners, fill="#4a5568")
            return
        states = dict(node.states)
        main = "failed" if "failed" in states else max(states, key=states.__getitem__, default="")
        fill, border = STATE_COLOURS.get(main, STATE_COLOURS["created"])
        fill = "#f7fafc" if node.is_group else fill
        self._draw.rounded_rectangle(
            corners, radius=5 * self._scale, fill=fill, outline=border, width=self._width(1)
        )
        centre = box.x + box.width / 2
        lift = 12 if node.is_group else box.height / 2
        self._text((centre, box.y + lift), shorten(node.label), 12, "#1a202c")
        if node.is_group:
            words = f"{node.count} task{'s' * (node.count != 1)}"
            self._text((centre, box.y + 26), words, 10, "#4a5568")
            x, y, total = box.x + 5, box.y + box.height - 6, sum(states.values())
            for state, number in states.items():
                end = x + (box.width - 10) * number / total
                colour = STATE_COLOURS.get(state, STATE_COLOURS["created"])[1]
                self._draw.line(self._to([(x, y), (end, y)]), fill=colour, width=self._width(4))
                x = end

    def _legend_sign(self, kind: str, y: float) -> None:
        if kind in HAZARD_STYLES:
            self._curve([(12, y), (40, y)], *HAZARD_STYLES[kind])
            return
        fill, border = STATE_COLOURS.get(kind, ("#4a5568", "#4a5568"))
        corners = self._to([(20, y - 6), (32, y + 6)])
        self._draw.ellipse(corners, fill=fill, outline=border, width=self._width(1))

    def _curve(self, points: Sequence[_Point], colour: str, dashes: str) -> None:
        parts = _dashed(points, [float(each) for each in dashes.split()]) if dashes else [points]
        for part in parts:
            self._draw.line(self._to(part), fill=colour, width=self._width(1.3), joint="curve")

    def _text(
        self,
        place: _Point,
        text: str,
        size: int,
        colour: str,
        anchor: str = "mm",
        outline: int = 0,
    ) -> None:
        font = _font(size * self._scale)
        text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
        self._draw.text(
            self._to([place])[0],
            text,
            font=font,
            fill=colour,
            anchor=anchor,
            stroke_width=self._width(outline) if outline else 0,
            stroke_fill="#ffffff",
        )

    def _to(self, points: Sequence[_Point]) -> list[_Point]:
        return [(x * self._scale, y * self._scale) for x, y in points]

    def _width(self, width: float) -> int:
        return max(1, round(width * self._scale))


@cache
def _font(size: float) -> Any:
    """Return a font of many scripts if the system has one, else that of Pillow."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def _legend(picture: Picture) -> Iterator[tuple[str, str]]:
    """Yield the hazards and states that are there, with what they mean."""
    used = {reason for edge in picture.edges for reason in edge.reasons}
    states = {state for node in picture.nodes for state, _ in node.states}
    yield from ((name, HAZARD_WORDS[name]) for name in HAZARD_STYLES if name in used)
    if any(node.is_barrier for node in picture.nodes):
        yield "barrier", "barrier: waits for all before it"
    yield from ((state, state) for state in STATES if state in states)


def _flatten(route: Sequence[_Point], is_backward: bool) -> list[_Point]:
    """Return the points of the curve along an edge; see `svg.path_data`."""
    points = [*route]
    if is_backward:
        (x, y), (x_middle, y_middle), (x_end, y_end) = points
        reach = 26.0
        return [
            *_bezier((x, y), (x + reach, y), (x + reach, y_middle), (x_middle, y_middle)),
            *_bezier(
                (x_middle, y_middle), (x_end - reach, y_middle), (x_end - reach, y_end), points[-1]
            ),
        ]
    x_end, y_end = points[-1]
    points[-1] = x_end - 7, y_end
    flat = [points[0]]
    for (x, y), (x_next, y_next) in pairwise(points):
        middle = (x + x_next) / 2
        flat += _bezier((x, y), (middle, y), (middle, y_next), (x_next, y_next))
    return flat


def _bezier(a: _Point, b: _Point, c: _Point, d: _Point) -> list[_Point]:
    found = []
    for step in range(1, _CURVE_STEPS + 1):
        t = step / _CURVE_STEPS
        weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        corners = (a, b, c, d)
        found.append(
            (
                sum(w * p[0] for w, p in zip(weights, corners, strict=True)),
                sum(w * p[1] for w, p in zip(weights, corners, strict=True)),
            )
        )
    return found


def _dashed(points: Sequence[_Point], lengths: Sequence[float]) -> Iterator[list[_Point]]:
    """Yield the parts of a line that are drawn: each second one of the lengths is a gap."""
    index, remaining, part = 0, lengths[0], [points[0]]
    at = points[0]
    for point in points[1:]:
        while (distance := math.dist(at, point)) > remaining > 0:
            share = remaining / distance
            at = at[0] + (point[0] - at[0]) * share, at[1] + (point[1] - at[1]) * share
            part.append(at)
            if index % 2 == 0:
                yield part
            index += 1
            part, remaining = [at], lengths[index % len(lengths)]
        remaining -= distance
        at = point
        part.append(at)
    if index % 2 == 0 and len(part) > 1:
        yield part

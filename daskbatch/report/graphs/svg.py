"""Draws a picture of a graph as SVG: a text; writing it to a file is up to the caller.

Pure; any thread may call it. Names are escaped, whatever they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from daskbatch.report.analysis.groups import STATES
from daskbatch.report.graphs.layout import Box, Layout, edge_text, make_layout, shorten
from daskbatch.report.graphs.picture import Picture, PictureEdge, PictureNode
from daskbatch.report.graphs.style import HAZARD_STYLES, HAZARD_WORDS, STATE_COLOURS, edge_style

#: The characters that XML does not allow.
_NOT_IN_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ud800-\\udfff\\ufffe\\uffff]")

_LEGEND_LINE_HEIGHT = 18
_LEGEND_WIDTH = 230
_ARROW_LENGTH = 8


def to_svg(picture: Picture) -> str:
    """Draw a picture from left to right, each node one layer after the last that it waits for."""
    layout = make_layout(picture)
    legend = [*_legend(picture, layout.height)]
    width, height = layout.width, layout.height
    if legend:
        width = max(width, _LEGEND_WIDTH)
        height += (len(legend) + 0.5) * _LEGEND_LINE_HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" '
            f'width="{_n(width)}" height="{_n(height)}" style="background:#fff" '
            'font-family="system-ui,sans-serif" font-size="12">',
            *(
                line
                for index, edge in enumerate(picture.edges)
                for line in _edge(edge, layout, index)
            ),
            *(
                line
                for node, box in zip(picture.nodes, layout.boxes, strict=True)
                for line in _node(node, box)
            ),
            *legend,
            "</svg>",
        ]
    )


def as_xml(text: str) -> str:
    """Escape a text, and replace characters that XML cannot hold."""
    return escape(_NOT_IN_XML.sub("\ufffd", text))


def _n(number: float) -> str:
    """Write a number shortly."""
    return f"{number:.1f}".removesuffix(".0")


def path_data(route: Sequence[tuple[float, float]], is_backward: bool) -> str:
    """Return an edge as the commands of an SVG path; it ends before its arrowhead."""
    (x, y), *others = route
    x_end, y_end = others[-1]
    others[-1] = x_end - _ARROW_LENGTH + 1, y_end
    commands = [f"M{_n(x)} {_n(y)}"]
    if is_backward:
        (x_middle, y_middle), (x_last, y_last) = others
        reach = 26.0
        commands.append(
            f"C{_n(x + reach)} {_n(y)} {_n(x + reach)} {_n(y_middle)} {_n(x_middle)} {_n(y_middle)}"
            f"S{_n(x_last - reach)} {_n(y_last)} {_n(x_last)} {_n(y_last)}"
        )
        return "".join(commands)
    for x_next, y_next in others:
        middle = (x + x_next) / 2
        commands.append(
            f"L{_n(x_next)} {_n(y_next)}"
            if y == y_next
            else f"C{_n(middle)} {_n(y)} {_n(middle)} {_n(y_next)} {_n(x_next)} {_n(y_next)}"
        )
        x, y = x_next, y_next
    return "".join(commands)


def _edge(edge: PictureEdge, layout: Layout, index: int) -> Iterator[str]:
    route, is_backward = layout.routes[index], index in layout.backward
    colour, dashes = edge_style(edge.reasons)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    wide = 1.3 if edge.count == 1 else 2.2
    yield (
        f'<path d="{path_data(route, is_backward)}" fill="none" stroke="{colour}" '
        f'stroke-width="{wide}"{dashed}>'
        f"<title>{as_xml(edge.title or ' '.join(edge.reasons))}</title></path>"
    )
    x, y = route[-1]
    left = x - _ARROW_LENGTH
    corners = f"{_n(x)},{_n(y)} {_n(left)},{_n(y - 4)} {_n(left)},{_n(y + 4)}"
    yield f'<polygon points="{corners}" fill="{colour}"/>'
    if edge.label:
        x, y, anchor = layout.labels[index]
        yield (
            f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" '
            f'font-size="10" fill="{colour}" stroke="#fff" stroke-width="3" paint-order="stroke">'
            f"{as_xml(edge_text(edge.label))}</text>"
        )


def _node(node: PictureNode, box: Box) -> Iterator[str]:
    title = f"<title>{as_xml(node.title)}</title>"
    place = f'x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}"'
    if node.is_barrier:
        radius = _n(box.width / 2)
        yield f'<rect {place} rx="{radius}" fill="#4a5568">{title}</rect>'
        return
    main = max(node.states, key=lambda each: each[1], default=("created", 1))[0]
    if any(state == "failed" for state, _ in node.states):
        main = "failed"
    fill, border = STATE_COLOURS.get(main, STATE_COLOURS["created"])
    if node.is_group:
        fill = "#f7fafc"
    yield f'<rect {place} rx="5" fill="{fill}" stroke="{border}">{title}</rect>'
    centre = box.x + box.width / 2
    yield (
        f'<text x="{_n(centre)}" y="{_n(box.y + (16 if node.is_group else 17))}" '
        f'text-anchor="middle" pointer-events="none">{as_xml(shorten(node.label))}</text>'
    )
    if node.is_group:
        yield (
            f'<text x="{_n(centre)}" y="{_n(box.y + 30)}" text-anchor="middle" font-size="10" '
            f'fill="#4a5568" pointer-events="none">{node.count} '
            f"task{'s' * (node.count != 1)}</text>"
        )
        yield from _state_bar(node, box)


def _state_bar(node: PictureNode, box: Box) -> Iterator[str]:
    """Draw the parts of a group's tasks that are in each state, at its lower border."""
    x, total = box.x + 5, sum(number for _, number in node.states)
    for state, number in node.states:
        width = (box.width - 10) * number / total
        colour = STATE_COLOURS.get(state, STATE_COLOURS["created"])[1]
        y = box.y + box.height - 6
        yield (
            f'<line x1="{_n(x)}" y1="{_n(y)}" x2="{_n(x + width)}" y2="{_n(y)}" '
            f'stroke="{colour}" stroke-width="4"><title>{number} {state}</title></line>'
        )
        x += width


def _legend(picture: Picture, top: float) -> Iterator[str]:
    """Draw what the colours mean; nothing if there are none."""
    used = {reason for edge in picture.edges for reason in edge.reasons}
    states = {state for node in picture.nodes for state, _ in node.states}
    lines: list[str] = []
    y = top + _LEGEND_LINE_HEIGHT / 2
    for hazard, (colour, dashes) in HAZARD_STYLES.items():
        if hazard in used:
            dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
            lines.append(
                f'<line x1="12" y1="{_n(y)}" x2="40" y2="{_n(y)}" stroke="{colour}" '
                f'stroke-width="2"{dashed}/>{_legend_text(y, HAZARD_WORDS[hazard])}'
            )
            y += _LEGEND_LINE_HEIGHT
    if any(node.is_barrier for node in picture.nodes):
        lines.append(
            f'<circle cx="26" cy="{_n(y)}" r="5" fill="#4a5568"/>'
            f"{_legend_text(y, 'barrier: waits for all before it')}"
        )
        y += _LEGEND_LINE_HEIGHT
    for state in STATES:
        if state in states:
            fill, border = STATE_COLOURS[state]
            lines.append(
                f'<circle cx="26" cy="{_n(y)}" r="6" fill="{fill}" stroke="{border}"/>'
                f"{_legend_text(y, state)}"
            )
            y += _LEGEND_LINE_HEIGHT
    yield from lines


def _legend_text(y: float, words: str) -> str:
    return f'<text x="50" y="{_n(y + 4)}" font-size="11" fill="#2d3748">{words}</text>'

"""Computes where the nodes and edges of a picture are drawn, from left to right.

This is layered drawing (Sugiyama, Tagawa and Toda, Methods for visual understanding of
hierarchical system structures, 1981): each node is one layer behind the last that it waits for,
the order in a layer follows the mean position of the neighbours, and long edges go through points
in the layers between. Positions in a layer are the least squares fit to the neighbours' positions
under the least distance (pool adjacent violators: Barlow, Bartholomew, Bremner and Brunk,
Statistical inference under order restrictions, 1972).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from daskbatch.report.graphs.picture import Picture, PictureNode

#: The sizes of the drawing, in pixels.
NODE_HEIGHT, GROUP_HEIGHT, DOT_SIZE = 26, 42, 10
_LETTER_WIDTH, _PADDING, _MIN_WIDTH = 6.7, 18, 48
_GAP_X, _GAP_Y, _MARGIN = 54, 12, 12
_POINT_HEIGHT = 2
_LOOP_HEIGHT = 22
_LABEL_DISTANCE = 12

#: A longer name is cut, and shown as a whole when the mouse is over it.
MAX_LABEL_LETTERS = 18
_MAX_EDGE_LETTERS = 24

#: How often the layers are swept for the order, and for the positions.
_ORDER_SWEEPS, _POSITION_SWEEPS = 6, 6

#: With more points of long edges than this, long edges are drawn straight: a sweep takes too long.
_MAX_POINTS = 30_000


@dataclass(frozen=True, slots=True)
class Box:
    """Where a node is drawn: its left upper corner and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is drawn.

    Parameters
    ----------
    boxes : sequence of Box
        The places of the nodes.
    routes : sequence of sequence of (float, float)
        The points of each edge: it begins at the first, ends at the last, and crosses the others.
    labels : sequence of (float, float, str)
        Where the text beside each edge is: its point, and which part of it is there (``start`` or
        ``end``).
    backward : frozenset of int
        The edges that lead back: they belong to a circle of groups.
    width, height : float
        The size of the picture, without a legend.
    """

    boxes: Sequence[Box]
    routes: Sequence[Sequence[tuple[float, float]]]
    labels: Sequence[tuple[float, float, str]]
    backward: frozenset[int]
    width: float
    height: float


def shorten(label: str, most: int = MAX_LABEL_LETTERS) -> str:
    """Return a label that is cut to a number of letters.

    Examples
    --------
    >>> shorten("a_name_of_many_letters")
    'a_name_of_many_le…'
    """
    return label if len(label) <= most else label[: most - 1] + "…"


def edge_text(label: str) -> str:
    """Return the text beside an edge."""
    return shorten(label, _MAX_EDGE_LETTERS)


def make_layout(picture: Picture) -> Layout:
    """Return where the nodes and edges of a picture are drawn."""
    layer = _layers(picture)
    columns = _Columns(picture, layer)
    columns.sort()
    y = columns.positions()
    sizes = [_size(node) for node in picture.nodes]
    widths = [0.0] * (max(layer, default=-1) + 1)
    for node, (width, _) in enumerate(sizes):
        widths[layer[node]] = max(widths[layer[node]], width)
    gap = _GAP_X + max(
        (_LETTER_WIDTH * len(edge_text(edge.label)) for edge in picture.edges), default=0.0
    )
    lefts = [float(_MARGIN)]
    for width in widths:
        lefts.append(lefts[-1] + width + gap)
    top = min((y[n] - sizes[n][1] / 2 for n in range(len(sizes))), default=0.0)
    top = min(top, min(y[len(sizes) :], default=top))
    backward = columns.backward
    shift = _MARGIN - top + (_LOOP_HEIGHT if backward else 0)
    boxes = [
        Box(
            lefts[layer[n]] + (widths[layer[n]] - width) / 2,
            y[n] + shift - height / 2,
            width,
            height,
        )
        for n, (width, height) in enumerate(sizes)
    ]
    bottom = max((box.y + box.height for box in boxes), default=0.0)
    bottom = max(bottom, max((each + shift for each in y[len(sizes) :]), default=0.0))
    depth = 0.0
    routes: list[list[tuple[float, float]]] = []
    for index, edge in enumerate(picture.edges):
        first, last = boxes[edge.before], boxes[edge.after]
        start = first.x + first.width, first.y + first.height / 2
        end = last.x, last.y + last.height / 2
        if index in backward:
            if edge.before == edge.after:
                routes.append([start, (first.x + first.width / 2, first.y - _LOOP_HEIGHT), end])
                continue
            depth += 14
            routes.append([start, ((start[0] + end[0]) / 2, bottom + 8 + depth), end])
            continue
        between = [
            point
            for at, dummy in columns.points.get(index, ())
            for point in (
                (lefts[at], y[dummy] + shift),
                (lefts[at] + widths[at], y[dummy] + shift),
            )
        ]
        routes.append([start, *between, end])
    width = lefts[-1] - gap + _MARGIN if widths else 2.0 * _MARGIN
    height = bottom + depth + (8 if depth else 0) + _MARGIN
    return Layout(boxes, routes, _label_places(picture, routes), backward, width, height)


def _label_places(
    picture: Picture, routes: Sequence[Sequence[tuple[float, float]]]
) -> list[tuple[float, float, str]]:
    """Return where the texts of edges are: at the end where fewer edges meet."""
    leaving = Counter(edge.before for edge in picture.edges)
    arriving = Counter(edge.after for edge in picture.edges)
    places = []
    for edge, route in zip(picture.edges, routes, strict=True):
        if leaving[edge.before] >= arriving[edge.after]:
            (x, y), anchor = route[-1], "end"
            places.append((x - _LABEL_DISTANCE, y - 5, anchor))
        else:
            (x, y), anchor = route[0], "start"
            places.append((x + _LABEL_DISTANCE, y - 5, anchor))
    return places


def _size(node: PictureNode) -> tuple[float, float]:
    if node.is_barrier:
        return DOT_SIZE, DOT_SIZE
    letters = len(shorten(node.label))
    if node.is_group:
        letters = max(letters, len(f"{node.count} tasks"))
    width = max(_MIN_WIDTH, letters * _LETTER_WIDTH + _PADDING)
    return width, GROUP_HEIGHT if node.is_group else NODE_HEIGHT


def _layers(picture: Picture) -> list[int]:
    """Return the layer of each node: one behind the last node that it waits for."""
    rank = {node: index for index, node in enumerate(picture.order)}
    before: dict[int, list[int]] = {}
    for edge in picture.edges:
        if rank[edge.before] < rank[edge.after]:
            before.setdefault(edge.after, []).append(edge.before)
    layer = [0] * len(picture.nodes)
    for node in picture.order:
        layer[node] = 1 + max((layer[each] for each in before.get(node, ())), default=-1)
    return layer


class _Columns:
    """The layers with their nodes, and with points for the edges that cross them."""

    def __init__(self, picture: Picture, layer: list[int]) -> None:
        self.heights = [_size(node)[1] for node in picture.nodes]
        self.layers: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
        for node in picture.order:
            self.layers[layer[node]].append(node)
        #: For each edge that crosses layers: the layers, and its points there.
        self.points: dict[int, list[tuple[int, int]]] = {}
        self.before: dict[int, list[int]] = {}
        self.after: dict[int, list[int]] = {}
        self.backward = frozenset(
            index
            for index, edge in enumerate(picture.edges)
            if layer[edge.before] >= layer[edge.after]
        )
        spans = sum(max(0, layer[edge.after] - layer[edge.before] - 1) for edge in picture.edges)
        for index, edge in enumerate(picture.edges):
            if index in self.backward:
                continue
            at = edge.before
            if spans <= _MAX_POINTS:
                for crossed in range(layer[edge.before] + 1, layer[edge.after]):
                    point = len(self.heights)
                    self.heights.append(_POINT_HEIGHT)
                    self.layers[crossed].append(point)
                    self.points.setdefault(index, []).append((crossed, point))
                    self._connect(at, point)
                    at = point
            self._connect(at, edge.after)

    def _connect(self, before: int, after: int) -> None:
        self.before.setdefault(after, []).append(before)
        self.after.setdefault(before, []).append(after)

    def sort(self) -> None:
        """Order each layer by the mean places of the neighbours, forwards and backwards."""
        place: dict[int, float] = {}
        for nodes in self.layers:
            self._number(nodes, place)
        for sweep in range(_ORDER_SWEEPS):
            forwards = sweep % 2 == 0
            neighbours = self.before if forwards else self.after
            for nodes in self.layers if forwards else reversed(self.layers):
                means = {
                    node: sum(place[n] for n in near) / len(near)
                    for node in nodes
                    if (near := neighbours.get(node))
                }
                # A node without neighbours keeps its place.
                nodes.sort(key=lambda node: means.get(node, place[node]))
                self._number(nodes, place)

    @staticmethod
    def _number(nodes: list[int], place: dict[int, float]) -> None:
        for index, node in enumerate(nodes):
            # Between 0 and 1, so that layers of different sizes can be compared.
            place[node] = (index + 0.5) / len(nodes)

    def positions(self) -> list[float]:
        """Return the vertical centre of each node and point."""
        y = [0.0] * len(self.heights)
        for nodes in self.layers:
            total = 0.0
            for node in nodes:
                total += self.heights[node] / 2
                y[node] = total
                total += self.heights[node] / 2 + _GAP_Y
            for node in nodes:
                y[node] -= total / 2
        for sweep in range(_POSITION_SWEEPS):
            forwards = sweep % 2 == 0
            neighbours = self.before if forwards else self.after
            for nodes in self.layers if forwards else reversed(self.layers):
                wanted = [
                    sum(y[n] for n in near) / len(near)
                    if (near := neighbours.get(node))
                    else y[node]
                    for node in nodes
                ]
                for node, fitted in zip(nodes, self._fit(nodes, wanted), strict=True):
                    y[node] = fitted
        return y

    def _fit(self, nodes: list[int], wanted: list[float]) -> list[float]:
        """Return positions close to the wanted ones that keep the order and the distances."""
        offsets, offset = [], 0.0
        for index, node in enumerate(nodes):
            if index:
                offset += (self.heights[nodes[index - 1]] + self.heights[node]) / 2 + _GAP_Y
            offsets.append(offset)
        pools: list[tuple[float, int]] = []
        for want, offset in zip(wanted, offsets, strict=True):
            mean, count = want - offset, 1
            while pools and pools[-1][0] > mean:
                other, number = pools.pop()
                mean = (mean * count + other * number) / (count + number)
                count += number
            pools.append((mean, count))
        fitted = [mean for mean, count in pools for _ in range(count)]
        return [mean + offset for mean, offset in zip(fitted, offsets, strict=True)]

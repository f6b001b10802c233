"""Lays out the page Groups of Dask's dashboard, for all groups that there can be.

Dask's own layout fails if its order of groups has one before a group that it depends on, which
happens in some graphs, also without a circle. Pure, but for `mend_groups_page`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The place of each group, and the arrows to it, as `TaskGroupGraph.update_layout` returns them.
GroupLayout = tuple[dict[str, dict[str, int]], dict[str, dict[str, Any]]]


def ordered(dependencies: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return groups with what they depend on, each after those, without edges that close a circle.

    A depth-first search without recursion: chains of groups are long.

    >>> ordered({"b": {"a", "gone"}, "a": {"c"}, "c": {"b"}})
    {'c': set(), 'a': {'c'}, 'b': {'a'}}
    """
    found: dict[str, set[str]] = {}
    for first in dependencies:
        pending = [first]
        open_groups: set[str] = set()
        while pending:
            name = pending[-1]
            if name in found:
                pending.pop()
            elif name in open_groups:
                open_groups.discard(name)
                found[name] = {each for each in dependencies[name] if each in found}
                pending.pop()
            else:
                open_groups.add(name)
                pending += sorted(
                    each
                    for each in dependencies[name]
                    if each in dependencies and each not in found and each not in open_groups
                )
    return found


def lay_out(dependencies: Mapping[str, set[str]]) -> GroupLayout:
    """Return the layout of groups, with what each depends on, as Dask does it."""
    places: dict[str, tuple[int, int]] = {}
    taken: set[tuple[int, int]] = set()
    arrows: dict[str, dict[str, Any]] = {}
    next_row = 0
    for name, before in ordered(dependencies).items():
        x, y = 0, next_row
        if before:
            rows = {places[each][1] for each in before}
            x = max(places[each][0] for each in before) + 1
            y = max(rows) + (len(before) > 1 and len(rows) == 1)
        while (x, y) in taken:
            y += 1
        taken.add((x, y))
        places[name] = x, y
        next_row = max(next_row, y + 1)
        arrows[name] = {"nstart": before, "nend": [name] * len(before)}
    return {name: {"x": x, "y": y} for name, (x, y) in places.items()}, arrows


def mend_groups_page(component: Any) -> None:
    """Have Dask's page Groups use this layout.

    Parameters
    ----------
    component : type
        `distributed.dashboard.components.scheduler.TaskGroupGraph`.
    """

    def update_layout(self: Any) -> GroupLayout:
        groups = self.scheduler.task_groups.items()
        return lay_out(
            {name: {each.name for each in group.dependencies} - {name} for name, group in groups}
        )

    component.update_layout = update_layout

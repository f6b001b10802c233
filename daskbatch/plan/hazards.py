"""Finds what an access has to wait for: RAW, WAR and WAW hazards on channels.

Does not know tasks, arguments or files: nodes are numbers, channels are compared by value.

For each channel two *frontiers* are kept, as sets of nodes: what the next read and what
the next write has to wait for. An access joins the frontiers of those that must wait for
it, and takes out what it waits for itself, since that is then implied.

A directory, or an object without channels, covers what is below it. So an access looks
at the frontiers of its own place, of all places above, and of all places below. What is
below is summed up at a place once it is asked for there, and kept up to date from then on.

A frontier that many nodes would wait for one by one is put behind a *barrier*, a node
that calls nothing: so N accesses before M others make N + M edges. All in all, the time
is linear in the number of accesses. (But for this: a directory that is read again and
again, with one of its files written anew each time, costs a look at all of its files
each time; a barrier made before would pass on the failure of a write that is no more.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from daskbatch.describe.access import FILES, WHOLE, Channel

#: The reasons why one node waits for another, combined with ``|``.
ARG, RAW, WAR, WAW, RAR = 1, 2, 4, 8, 16

#: Over these a failure is passed on: the second task lacks something.
NEEDS = ARG | RAW

#: More nodes than this are put behind a barrier.
_CROWD = 8

_READ, _WRITE = 0, 1

#: Nodes to wait for, each with the reasons.
Waits = dict[int, int]


class _Place:
    """A channel, or a directory above one, with its frontiers."""

    __slots__ = ("below", "children", "dead", "frontier", "parent", "rewritten", "written")

    def __init__(self, parent: _Place | None) -> None:
        self.parent = parent
        self.children: list[_Place] = []
        #: What a read, and what a write, of this place has to wait for.
        self.frontier: tuple[Waits, Waits] = ({}, {})
        #: The same for all places below together; None until somebody asks.
        self.below: list[_Sum | None] = [None, None]
        #: The last node whose write implies all that came before it, here and below.
        self.written = -1
        #: The last node whose write implies, for reads, all writes that came before it.
        self.rewritten = -1
        #: Cut off, since all that was known of it is implied by a write above.
        self.dead = False

    def descendants(self) -> Iterator[_Place]:
        stack = list(self.children)
        while stack:
            place = stack.pop()
            stack += place.children
            yield place


class _Sum:
    """The frontiers of many places together, for the most part behind one barrier."""

    __slots__ = ("absorbed", "barrier", "fresh")

    def __init__(self, places: Iterator[_Place]) -> None:
        self.barrier: Waits = {}
        #: The places that the barrier stands for, and those that have changed since.
        self.absorbed: set[_Place] = set()
        self.fresh = set(places)

    def changed(self, place: _Place) -> None:
        if place in self.absorbed:
            self._dissolve()
        self.fresh.add(place)

    def without(self, dead: set[_Place]) -> None:
        if not self.absorbed.isdisjoint(dead):
            self._dissolve()
        self.fresh -= dead

    def _dissolve(self) -> None:
        self.fresh |= self.absorbed
        self.absorbed.clear()
        self.barrier = {}

    def waits(self, mode: int) -> Waits:
        waits = dict(self.barrier)
        idle = []
        for place in self.fresh:
            frontier = place.frontier[mode]
            if frontier:
                _merge(frontier, waits)
            else:
                idle.append(place)
        self.fresh.difference_update(idle)
        return waits

    def absorb(self, barrier: Waits) -> None:
        self.barrier = barrier
        self.absorbed |= self.fresh
        self.fresh.clear()


class HazardTracker:
    """Follows the accesses of a sequential program.

    Parameters
    ----------
    new_barrier : callable
        Is given what a barrier waits for, and returns the barrier's node.
    """

    def __init__(self, new_barrier: Callable[[Waits], int]) -> None:
        self._new_barrier = new_barrier
        self._places: dict[Channel, _Place] = {}
        #: When a barrier was made: the node that was added at that time.
        self._made: dict[int, int] = {}

    def add(self, node: int, reads: Sequence[Channel], writes: Sequence[Channel]) -> Waits:
        """Take in the next node of the program; returns what it has to wait for.

        Parameters
        ----------
        node : int
            Greater than all that were added before.
        reads, writes : sequence of Channel
            What it accesses. It reads before it writes.
        """
        waits: Waits = {}
        for channel in reads:
            self._access(node, channel, _READ, waits)
        for channel in writes:
            self._access(node, channel, _WRITE, waits)
        waits.pop(node, None)
        return waits

    def _access(self, node: int, channel: Channel, mode: int, waits: Waits) -> None:
        domain = channel.object.domain
        # Whoever must come after an earlier access must come after such a write, too, and it
        # after that: the write implies all that came before it.
        ordered = domain.raw and domain.waw and (domain.war or not domain.rar)
        covers = mode == _WRITE and ordered
        place = self._place(channel)

        rewritten = -1 if ordered else _last_rewritten(place)
        frontier = place.frontier[mode]
        if len(frontier) > _CROWD and not covers:
            self._put_behind_barrier(frontier, node)
        _merge(self._without(frontier, rewritten), waits)
        if place.parent is not None:
            self._wait_for_above(place, node, mode, rewritten, waits)
        if place.children:
            self._wait_for_below(place, node, mode, rewritten, covers, waits)

        for_read, for_write = place.frontier
        if mode == _WRITE and domain.raw and domain.waw:
            place.rewritten = node
        if covers:
            place.written = node
            for_read.clear()
            for_write.clear()
            if place.children:
                _cut_off_below(place)
        if mode == _READ:
            if domain.war:
                for implied in for_read:
                    for_write.pop(implied, None)
                for_write[node] = WAR
            if domain.rar:
                # The next read still needs what was written, and waits for the last read.
                for before in [before for before, why in for_read.items() if why == RAR]:
                    del for_read[before]
                for_read[node] = RAR
        else:
            if domain.raw:
                for implied in for_write:
                    # What another write does not replace is needed as much as this one.
                    if domain.waw or for_read.get(implied) == RAR:
                        for_read.pop(implied, None)
                for_read[node] = RAW
            if domain.waw:
                for_write.clear()
                for_write[node] = WAW
        if place.parent is not None:
            _tell_above(place, mode == _WRITE or domain.rar)

    def _wait_for_above(
        self, place: _Place, node: int, mode: int, rewritten: int, waits: Waits
    ) -> None:
        written = place.written
        above = place.parent
        while above is not None:
            frontier = above.frontier[mode]
            if frontier:
                if len(frontier) > _CROWD:
                    self._put_behind_barrier(frontier, node)
                for before, reason in self._without(frontier, rewritten).items():
                    if self._made.get(before, before) > written:
                        waits[before] = waits.get(before, 0) | reason
            written = max(written, above.written)
            above = above.parent

    def _wait_for_below(
        self, place: _Place, node: int, mode: int, rewritten: int, covers: bool, waits: Waits
    ) -> None:
        summed = place.below[mode]
        if summed is None:
            summed = place.below[mode] = _Sum(place.descendants())
        below = self._without(summed.waits(mode), rewritten)
        if len(below) > _CROWD and not covers and node not in below:
            self._put_behind_barrier(below, node)
            summed.absorb(below)
        _merge(below, waits)

    def _without(self, frontier: Waits, rewritten: int) -> Waits:
        """Leave out writes up to the last that implies them, but not all that was before it."""
        if rewritten < 0:
            return frontier
        found = {}
        for before, reason in frontier.items():
            if reason & RAW and self._made.get(before, before) < rewritten:
                reason &= ~RAW
            if reason:
                found[before] = reason
        return found

    def _place(self, channel: Channel) -> _Place:
        place = self._places.get(channel)
        if place is None or place.dead:
            above = next_above(channel)
            parent = None if above is None else self._place(above)
            place = self._places[channel] = _Place(parent)
            if parent is not None:
                parent.children.append(place)
        return place

    def _put_behind_barrier(self, frontier: Waits, node: int) -> None:
        # A node may meet itself here, if it accesses a place twice.
        own = frontier.pop(node, None)
        reasons = 0
        for reason in frontier.values():
            reasons |= reason
        barrier = self._new_barrier(dict(frontier))
        self._made[barrier] = node
        frontier.clear()
        frontier[barrier] = reasons
        if own is not None:
            frontier[node] = own


def _merge(new: Waits, waits: Waits) -> None:
    for node, reason in new.items():
        waits[node] = waits.get(node, 0) | reason


def _last_rewritten(place: _Place) -> int:
    rewritten = place.rewritten
    while place.parent is not None:
        place = place.parent
        rewritten = max(rewritten, place.rewritten)
    return rewritten


def _cut_off_below(place: _Place) -> None:
    dead = set(place.descendants())
    for each in dead:
        each.dead = True
    place.children = []
    place.below = [None, None]
    above = place.parent
    while above is not None:
        for summed in above.below:
            if summed is not None:
                summed.without(dead)
        above = above.parent


def _tell_above(place: _Place, for_read_too: bool) -> None:
    above = place.parent
    while above is not None:
        for_read, for_write = above.below
        if for_read is not None and for_read_too:
            for_read.changed(place)
        if for_write is not None:
            for_write.changed(place)
        above = above.parent


def next_above(channel: Channel) -> Channel | None:
    """Give the channel that covers this one and is next to it; None if there is none."""
    if channel.object.name is FILES.name:
        path = str(channel.key)
        directory = os.path.dirname(path)
        return None if directory == path else Channel(FILES, directory)
    return None if channel.key is WHOLE else Channel(channel.object, WHOLE)

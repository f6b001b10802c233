"""Finds what each access must wait for: the RAW, WAR and WAW hazards between channels.

Does not know tasks, arguments or files: nodes are numbers, channels are compared by value.

This is dependence analysis on a sequential program (Allen and Kennedy, Optimizing Compilers for
Modern Architectures, 2001, chapter 2), one access after the other, as the analysis of reaching
definitions does it. For each channel the tracker keeps two *frontiers*, sets of nodes: those that
the next read must wait for, and those that the next write must wait for. An access adds itself to
the frontiers of the accesses that must wait for it, and removes the nodes that it waits for itself:
waiting for it implies waiting for them.

A directory covers the files below it, and an object covers its channels. So an access looks at the
frontiers of its own channel, of all channels above, and of all channels below. The frontiers below
a channel are combined when an access first needs them, and are kept up to date from then on. An
example, with the frontiers for the next read (r) and the next write (w) after each access::

                       /d          /d/a           /d/b           waits for
    0 writes /d/a                  r: 0  w: 0
    1 writes /d/b                  r: 0  w: 0     r: 1  w: 1
    2 reads  /d        w: 2        r: 0  w: 0     r: 1  w: 1     0, 1 (RAW, below)
    3 writes /d/a      w: 2        r: 3  w: 3     r: 1  w: 1     0 (WAW), 2 (WAR, above)
    4 writes /d        r: 4  w: 4  (detached)     (detached)     2 (WAR), 1, 3 (WAW, below)

A frontier that many nodes would wait for one by one is put behind a *barrier*, a node that calls
nothing: N accesses before M others make N + M edges, not N * M. The total time is linear in the
number of accesses, with one exception: a directory that is read again and again, while one of its
files is written anew each time, costs a look at all of its files each time. A barrier from before
cannot be used again there, since it would pass on the failure of a write that has been replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from enum import IntFlag

from daskbatch.describe.access import FILES, WHOLE, Channel


class Reason(IntFlag):
    """Why one node waits for another; an edge may have several reasons."""

    ARG = 1
    RAW = 2
    WAR = 4
    WAW = 8
    RAR = 16


#: The reasons as plain integers. Graphs hold these: `|` of two flags takes microseconds, and a
#: program may have millions of edges.
ARG, RAW, WAR, WAW, RAR = (reason.value for reason in Reason)

#: A failure is passed on over edges with one of these: the second task lacks its input.
NEEDS = ARG | RAW

#: A frontier with more nodes than this is replaced by a barrier.
_MAX_FRONTIER_NODES = 8

#: A task by its position in the program, or a barrier by a number that no task has.
Node = int

#: Nodes to wait for, each with its reasons, combined with ``|``.
Waits = dict[Node, int]


class _ChannelState:
    """The frontiers of a channel, or of a directory above one."""

    __slots__ = (
        *("below", "children", "detached", "frontier", "last_covering_write"),
        *("last_superseding_write", "parent"),
    )

    def __init__(self, parent: _ChannelState | None) -> None:
        self.parent = parent
        self.children: list[_ChannelState] = []
        #: What the next read, and what the next write, of this channel must wait for.
        self.frontier: tuple[Waits, Waits] = ({}, {})
        #: The same for all channels below together; None until an access first needs it.
        self.below: list[_FrontierBelow | None] = [None, None]
        #: The last node whose write implies all earlier accesses, here and below.
        self.last_covering_write = -1
        #: The last node whose write implies, for reads, all earlier writes.
        self.last_superseding_write = -1
        #: Removed from the tree, since a write above implies all that this state holds.
        self.detached = False

    def descendants(self) -> Iterator[_ChannelState]:
        stack = list(self.children)
        while stack:
            state = stack.pop()
            stack += state.children
            yield state


class _FrontierBelow:
    """The combined frontiers of all channels below one; most of it is behind one barrier."""

    __slots__ = ("absorbed", "barrier", "changed")

    def __init__(self, states: Iterator[_ChannelState]) -> None:
        self.barrier: Waits = {}
        #: The channels whose frontiers are behind the barrier, and those that have changed since.
        self.absorbed: set[_ChannelState] = set()
        self.changed = set(states)

    def add_changed(self, state: _ChannelState) -> None:
        if state in self.absorbed:
            self._drop_barrier()
        self.changed.add(state)

    def remove(self, detached: set[_ChannelState]) -> None:
        if not self.absorbed.isdisjoint(detached):
            self._drop_barrier()
        self.changed -= detached

    def _drop_barrier(self) -> None:
        self.changed |= self.absorbed
        self.absorbed.clear()
        self.barrier = {}

    def waits(self, is_write: bool) -> Waits:
        waits = dict(self.barrier)
        empty = []
        for state in self.changed:
            frontier = state.frontier[is_write]
            if frontier:
                _merge(frontier, waits)
            else:
                empty.append(state)
        self.changed.difference_update(empty)
        return waits

    def put_behind(self, barrier: Waits) -> None:
        self.barrier = barrier
        self.absorbed |= self.changed
        self.changed.clear()


class HazardTracker:
    """Follows the accesses of a sequential program. Not thread-safe.

    Parameters
    ----------
    new_barrier : callable
        Makes a barrier: takes the nodes that the barrier waits for, returns the barrier's node.
    """

    def __init__(self, new_barrier: Callable[[Waits], Node]) -> None:
        self._new_barrier = new_barrier
        self._states: dict[Channel, _ChannelState] = {}
        #: For each barrier: the node that was being added when the barrier was made.
        self._made_at: dict[Node, Node] = {}

    def add(self, node: Node, reads: Sequence[Channel], writes: Sequence[Channel]) -> Waits:
        """Add the next node of the program; returns what it must wait for.

        Parameters
        ----------
        node : int
            Greater than all nodes that were added before.
        reads, writes : sequence of Channel
            The channels that the node accesses. It reads before it writes.
        """
        waits: Waits = {}
        for channel in reads:
            self._access(node, channel, False, waits)
        for channel in writes:
            self._access(node, channel, True, waits)
        waits.pop(node, None)
        return waits

    # Approach, for one access:
    #
    # * Find out what the access implies by the rules of its domain: a *covering* write
    #   implies all earlier accesses, a *superseding* write implies, for reads, all earlier
    #   writes.
    # * Wait for the frontier of the channel itself, which is first put behind a barrier if it
    #   is large. A covering write needs no barrier: the frontier ends with it.
    # * Wait for the frontiers above, but for what a write nearer to the channel implies.
    # * Wait for the frontiers below, combined.
    # * Update both frontiers of the channel: add the node where later accesses must wait for
    #   it, remove what the node implies. A covering write detaches all channels below.
    # * Notify the channels above that this one has changed.
    #
    # `is_write` selects a frontier: [0] is for the next read, [1] for the next write.

    def _access(self, node: Node, channel: Channel, is_write: bool, waits: Waits) -> None:
        domain = channel.object.domain
        # Any access that must come after an earlier one must then also come after a write
        # between them, and the write comes after the earlier one. So waiting for the write
        # implies waiting for all accesses before it.
        ordered = domain.raw and domain.waw and (domain.war or not domain.rar)
        covers = is_write and ordered
        state = self._state(channel)

        superseded_before = -1 if ordered else _last_superseding_write(state)
        frontier = state.frontier[is_write]
        if len(frontier) > _MAX_FRONTIER_NODES and not covers:
            self._put_behind_barrier(frontier, node)
        _merge(self._without_superseded(frontier, superseded_before), waits)
        if state.parent is not None:
            self._wait_for_above(state, node, is_write, superseded_before, waits)
        if state.children:
            self._wait_for_below(state, node, is_write, superseded_before, covers, waits)

        for_read, for_write = state.frontier
        if is_write and domain.raw and domain.waw:
            state.last_superseding_write = node
        if covers:
            state.last_covering_write = node
            for_read.clear()
            for_write.clear()
            for_read[node] = RAW
            for_write[node] = WAW
            if state.children:
                _detach_below(state)
        elif not is_write:
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
                    # A write that this one does not replace is needed as much as this one.
                    if domain.waw or for_read.get(implied) == RAR:
                        for_read.pop(implied, None)
                for_read[node] = RAW
            if domain.waw:
                for_write.clear()
                for_write[node] = WAW
        if state.parent is not None:
            _notify_above(state, is_write or domain.rar)

    def _wait_for_above(
        self,
        state: _ChannelState,
        node: Node,
        is_write: bool,
        superseded_before: Node,
        waits: Waits,
    ) -> None:
        covered_before = state.last_covering_write
        above = state.parent
        while above is not None:
            frontier = above.frontier[is_write]
            if frontier:
                if len(frontier) > _MAX_FRONTIER_NODES:
                    self._put_behind_barrier(frontier, node)
                for before, why in self._without_superseded(frontier, superseded_before).items():
                    if self._made_at.get(before, before) > covered_before:
                        waits[before] = waits.get(before, 0) | why
            covered_before = max(covered_before, above.last_covering_write)
            above = above.parent

    def _wait_for_below(
        self,
        state: _ChannelState,
        node: Node,
        is_write: bool,
        superseded_before: Node,
        covers: bool,
        waits: Waits,
    ) -> None:
        combined = state.below[is_write]
        if combined is None:
            combined = state.below[is_write] = _FrontierBelow(state.descendants())
        below = self._without_superseded(combined.waits(is_write), superseded_before)
        if len(below) > _MAX_FRONTIER_NODES and not covers and node not in below:
            self._put_behind_barrier(below, node)
            combined.put_behind(below)
        _merge(below, waits)

    def _without_superseded(self, frontier: Waits, superseded_before: Node) -> Waits:
        """Return a frontier without the writes before a superseding write.

        A node that is there for another reason, too, stays for that reason.
        """
        if superseded_before < 0:
            return frontier
        remaining = {}
        for before, why in frontier.items():
            if why & RAW and self._made_at.get(before, before) < superseded_before:
                why &= ~RAW
            if why:
                remaining[before] = why
        return remaining

    def _state(self, channel: Channel) -> _ChannelState:
        state = self._states.get(channel)
        if state is None or state.detached:
            above = parent_channel(channel)
            parent = None if above is None else self._state(above)
            state = self._states[channel] = _ChannelState(parent)
            if parent is not None:
                parent.children.append(state)
        return state

    def _put_behind_barrier(self, frontier: Waits, node: Node) -> None:
        # A node that accesses a channel twice finds itself in the frontier. It cannot be
        # behind a barrier that it waits for.
        own = frontier.pop(node, None)
        reasons = 0
        for why in frontier.values():
            reasons |= why
        barrier = self._new_barrier(dict(frontier))
        self._made_at[barrier] = node
        frontier.clear()
        frontier[barrier] = reasons
        if own is not None:
            frontier[node] = own


def _merge(new: Waits, waits: Waits) -> None:
    for node, why in new.items():
        waits[node] = waits.get(node, 0) | why


def _last_superseding_write(state: _ChannelState) -> Node:
    last = state.last_superseding_write
    while state.parent is not None:
        state = state.parent
        last = max(last, state.last_superseding_write)
    return last


def _detach_below(state: _ChannelState) -> None:
    detached = set(state.descendants())
    for each in detached:
        each.detached = True
    state.children = []
    state.below = [None, None]
    above = state.parent
    while above is not None:
        for combined in above.below:
            if combined is not None:
                combined.remove(detached)
        above = above.parent


def _notify_above(state: _ChannelState, read_frontier_changed: bool) -> None:
    above = state.parent
    while above is not None:
        for_read, for_write = above.below
        if for_read is not None and read_frontier_changed:
            for_read.add_changed(state)
        if for_write is not None:
            for_write.add_changed(state)
        above = above.parent


def parent_channel(channel: Channel) -> Channel | None:
    """Return the channel directly above, which covers this one; None if there is none."""
    if channel.object.name is FILES.name:
        path = str(channel.key)
        directory = os.path.dirname(path)
        return None if directory == path else Channel(FILES, directory)
    return None if channel.key is WHOLE else Channel(channel.object, WHOLE)

"""Accesses wait for exactly what they must, at a cost that is linear in their number."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskbatch.describe.access import (
    FILES,
    WHOLE,
    Channel,
    CommunicationDomain,
    CommunicationObject,
)
from daskbatch.plan import hazards
from daskbatch.plan.hazards import NEEDS, RAR, RAW, WAR, WAW, HazardTracker, parent_channel

#: What each node of a program reads and writes.
Program = Sequence[tuple[Sequence[Channel], Sequence[Channel]]]


class Tracked:
    """The result of a tracker for a program: the nodes in order, and what each waits for."""

    def __init__(self, program: Program) -> None:
        self.count = len(program)
        self.waits: dict[int, dict[int, int]] = {}
        tracker = HazardTracker(self._new_barrier)
        for node, (reads, writes) in enumerate(program):
            waits = tracker.add(node, reads, writes)
            self.waits[node] = waits

    def _new_barrier(self, waits: dict[int, int]) -> int:
        barrier = self.count + sum(node >= self.count for node in self.waits)
        self.waits[barrier] = waits
        return barrier

    @property
    def edges(self) -> int:
        return sum(map(len, self.waits.values()))

    def closure(self, reasons: int) -> list[set[int]]:
        """For each node all earlier nodes, over barriers and edges with one of some reasons."""
        before: dict[int, int] = {}
        for node, waits in self.waits.items():
            before[node] = 0
            for other, why in waits.items():
                if why & reasons:
                    before[node] |= before[other] | (1 << other if other < self.count else 0)
        return [_members(before[node]) for node in range(self.count)]


def _members(bits: int) -> set[int]:
    return {position for position in range(bits.bit_length()) if bits >> position & 1}


def waits(*program: tuple[Sequence[Channel], Sequence[Channel]]) -> list[dict[int, int]]:
    tracked = Tracked(program)
    return [tracked.waits[node] for node in range(len(program))]


def file(path: str) -> Channel:
    return Channel(FILES, path)


def reads(*channels: Channel) -> tuple[Sequence[Channel], Sequence[Channel]]:
    return channels, ()


def writes(*channels: Channel) -> tuple[Sequence[Channel], Sequence[Channel]]:
    return (), channels


F, G, D = file("/d/f"), file("/d/g"), file("/d")


# -- one channel --------------------------------------------------------------------------


def test_a_read_waits_for_the_write_before_it() -> None:
    assert waits(writes(F), reads(F)) == [{}, {0: RAW}]


def test_a_write_waits_for_the_read_before_it() -> None:
    assert waits(reads(F), writes(F)) == [{}, {0: WAR}]


def test_a_write_waits_for_the_write_before_it() -> None:
    assert waits(writes(F), writes(F)) == [{}, {0: WAW}]


def test_reads_run_in_parallel() -> None:
    found = waits(writes(F), *[reads(F)] * 20)
    assert found[1:] == [{0: RAW}] * 20


def test_a_write_waits_for_all_reads_since_the_last_write() -> None:
    found = waits(writes(F), reads(F), reads(F), writes(F), writes(F))
    assert found[3][1] == found[3][2] == WAR
    assert found[4] == {3: WAW}


def test_other_channels_do_not_matter() -> None:
    assert waits(writes(F), reads(G), writes(file("/d/ff"))) == [{}, {}, {}]


def test_a_node_that_reads_and_writes_a_channel_does_both_and_does_not_wait_for_itself() -> None:
    first, second, third = waits(([F], [F]), ([F], [F]), reads(F))
    assert first == {}
    assert set(second) == {0}
    assert second[0] & RAW
    assert third == {1: RAW}


def test_a_node_may_access_a_channel_many_times() -> None:
    assert [*map(set, waits(([F, F, D], [F, D, F]), ([D, F], [G])))] == [set(), {0}]


def test_all_reasons_between_two_nodes_are_on_one_edge() -> None:
    assert waits(([F], [G]), ([G], [F])) == [{}, {0: RAW | WAR}]


# -- places above and below ---------------------------------------------------------------


OBJECT = CommunicationObject(CommunicationDomain(), "o")
WHOLE_OBJECT = Channel(OBJECT, WHOLE)


@pytest.mark.parametrize(
    ("above", "below"),
    [
        (D, F),
        (D, file("/d/e/f")),
        (file("/"), F),
        (WHOLE_OBJECT, WHOLE_OBJECT),
        (WHOLE_OBJECT, Channel(OBJECT, "key")),
    ],
)
def test_what_covers_a_channel_conflicts_with_it_both_ways(above: Channel, below: Channel) -> None:
    for one, other in ((above, below), (below, above)):
        assert waits(writes(one), reads(other))[1] == {0: RAW}
        assert waits(reads(one), writes(other))[1] == {0: WAR}
        assert waits(writes(one), writes(other))[1] == {0: WAW}
        assert waits(reads(one), reads(other))[1] == {}


def test_a_directory_waits_for_all_files_below_and_a_file_for_all_directories_above() -> None:
    deep = file("/d/e/deep")
    assert waits(writes(F), writes(deep), reads(D))[2] == {0: RAW, 1: RAW}
    assert waits(reads(D), reads(file("/d/e")), writes(deep))[2] == {0: WAR, 1: WAR}


def test_files_of_one_directory_are_independent_after_it_was_written() -> None:
    found = waits(writes(D), writes(F), writes(G), reads(F), reads(G))
    assert found[1:] == [{0: WAW}, {0: WAW}, {1: RAW}, {2: RAW}]


@pytest.mark.parametrize(("over", "read"), [(F, F), (F, D), (D, F), (D, D)])
def test_a_write_that_was_overwritten_is_no_longer_needed(over: Channel, read: Channel) -> None:
    assert waits(writes(F), writes(over), reads(read))[2] == {1: RAW}


def test_a_file_written_after_its_directory_does_not_replace_all_of_it() -> None:
    assert waits(writes(D), writes(F), reads(D))[2] == {0: RAW, 1: RAW}
    assert waits(writes(D), writes(F), reads(F))[2] == {1: RAW}
    assert waits(writes(D), writes(F), reads(G))[2] == {0: RAW}


def test_a_file_written_before_its_directory_is_not_needed_further_up_either() -> None:
    top = file("/")
    assert waits(writes(F), reads(top), writes(D), reads(top))[3] == {2: RAW}


def test_a_file_written_anew_is_not_needed_as_it_was_by_a_second_read_of_its_directory() -> None:
    crowd = [writes(file(f"/d/{number}")) for number in range(20)]
    tracked = Tracked([*crowd, reads(D), writes(file("/d/7")), reads(D)])
    assert tracked.closure(NEEDS)[-1] == {*range(20), 21} - {7}


def test_what_is_parent_channel_ends_at_the_root_and_at_the_whole_object() -> None:
    assert parent_channel(F) == D
    assert parent_channel(D) == file("/")
    assert parent_channel(file("/")) is None
    assert parent_channel(Channel(OBJECT, "/a/b")) == WHOLE_OBJECT
    assert parent_channel(WHOLE_OBJECT) is None


# -- domains ------------------------------------------------------------------------------

PAIRS = {"rar": (reads, reads), "raw": (writes, reads), "war": (reads, writes)}
PAIRS["waw"] = (writes, writes)
REASONS = {"rar": RAR, "raw": RAW, "war": WAR, "waw": WAW}


@pytest.mark.parametrize("flag", PAIRS)
def test_a_pair_that_is_switched_off_is_not_ordered_and_all_others_are(flag: str) -> None:
    every = {"rar": True, "raw": True, "war": True, "waw": True}
    domain = CommunicationDomain(**{**every, flag: False})
    key = Channel(CommunicationObject(domain, "o"), 1)
    for other, (first, second) in PAIRS.items():
        expected = {} if other == flag else {0: REASONS[other]}
        assert waits(first(key), second(key))[1] == expected, other


def test_reads_that_keep_their_order_all_need_the_write_before_them() -> None:
    key = Channel(CommunicationObject(CommunicationDomain(rar=True), "o"), 1)
    tracked = Tracked([writes(key), reads(key), reads(key), reads(key)])
    assert tracked.closure(NEEDS)[1:] == [{0}, {0}, {0}]
    assert tracked.closure(-1)[1:] == [{0}, {0, 1}, {0, 1, 2}]


def test_a_read_needs_all_writes_that_have_no_order() -> None:
    log = Channel(CommunicationObject(CommunicationDomain(waw=False), "log"), WHOLE)
    found = waits(writes(log), writes(log), reads(log), writes(log), reads(log))
    assert found == [{}, {}, {0: RAW, 1: RAW}, {2: WAR}, {0: RAW, 1: RAW, 3: RAW}]


# -- against the definition ---------------------------------------------------------------


def overlap(one: Channel, other: Channel) -> Channel | None:
    """Return the part that two channels have in common."""
    if one.object != other.object:
        return None
    if one.key is WHOLE or one.object is not FILES:
        if one.key is WHOLE:
            return other
        return one if other.key is WHOLE or one.key == other.key else None
    paths = sorted((Path(str(one.key)), Path(str(other.key))), key=lambda path: len(path.parts))
    return file(str(paths[1])) if paths[1].is_relative_to(paths[0]) else None


def listed(accesses: tuple[Sequence[Channel], Sequence[Channel]]) -> list[tuple[str, Channel]]:
    return [(kind, channel) for kind, some in zip("rw", accesses, strict=True) for channel in some]


def required(program: Program) -> tuple[list[set[int]], list[set[int]]]:
    """For each node all nodes that must run before it, and all that must succeed before it."""
    before: list[set[int]] = [set() for _ in program]
    needs: list[set[int]] = [set() for _ in program]
    for node, accesses in enumerate(program):
        for other in range(node):
            pairs = product(listed(accesses), listed(program[other]))
            for (kind, channel), (other_kind, other_channel) in pairs:
                common = overlap(channel, other_channel)
                domain = channel.object.domain
                name = f"{kind}a{other_kind}"
                if common is None or not getattr(domain, name):
                    continue
                before[node] |= {other} | before[other]
                superseded = domain.waw and any(
                    overlap(later, common) == common
                    for _, between in program[other + 1 : node]
                    for later in between
                )
                if name == "raw" and not superseded:
                    needs[node] |= {other} | needs[other]
    return before, needs


def programs(channels: Sequence[Channel]) -> st.SearchStrategy[Program]:
    """Programs with many equal accesses in a row, so that many nodes wait for many."""
    one = st.sampled_from(channels)
    some = st.lists(one, min_size=1, max_size=3)
    accesses = st.one_of(one.map(reads), one.map(writes), st.tuples(some, some))
    bursts = st.tuples(accesses, st.sampled_from([1, 1, 1, 10]))
    programs = st.lists(bursts, min_size=3, max_size=10)
    return programs.map(
        lambda given: [
            (numbered(some, number), numbered(others, number))
            for (some, others), times in given
            for number in range(times)
        ]
    )


def numbered(channels: Sequence[Channel], number: int) -> list[Channel]:
    return [
        each if each.key is WHOLE else each._replace(key=str(each.key).replace("#", str(number)))
        for each in channels
    ]


#: A name with a # is a different channel each time.
PATHS = ["/", "/a", "/a/b", "/a/b/c", "/a/#", "/a/b/#", "/a/1"]


def check(program: Program) -> None:
    tracked = Tracked(program)
    before, needs = required(program)
    assert tracked.closure(-1) == before
    assert tracked.closure(NEEDS) == needs


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(programs([file(path) for path in PATHS]))
def test_files_wait_for_exactly_what_they_must(program: Program) -> None:
    check(program)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.tuples(*[st.booleans()] * 4))
def test_objects_wait_for_exactly_what_they_must(data: Any, flags: tuple[bool, ...]) -> None:
    owner = CommunicationObject(CommunicationDomain(*flags), "object")
    check(data.draw(programs([Channel(owner, key) for key in (WHOLE, "0", "1", "#")])))


# -- cost ---------------------------------------------------------------------------------

LOG = Channel(CommunicationObject(CommunicationDomain(waw=False), "log"), WHOLE)


def below(number: int) -> Channel:
    return file(f"/d/{number}")


def entry(number: int) -> Channel:
    return Channel(LOG.object, number)


def in_turn(*kinds: Callable[[int], Any]) -> Callable[[int], Iterator[Any]]:
    return lambda count: (kind(each) for each in range(count // len(kinds)) for kind in kinds)


def crowds(*kinds: Callable[[int], Any]) -> Callable[[int], Iterator[Any]]:
    return lambda count: (kind(each) for kind in kinds for each in range(count // len(kinds)))


#: Ways to make programs with a given number of accesses.
PATTERNS: dict[str, Callable[[int], Iterator[Any]]] = {
    "a file read by many, then written": crowds(lambda n: reads(F), lambda n: writes(F)),
    "a file of its own each": in_turn(lambda n: writes(below(n)), lambda n: reads(below(n))),
    "a chain of files": in_turn(lambda n: ([below(n)], [below(n + 1)])),
    "files written, directory read": crowds(lambda n: writes(below(n)), lambda n: reads(D)),
    "directory read, files written": crowds(lambda n: reads(D), lambda n: writes(below(n))),
    "files read, directory read": crowds(lambda n: reads(below(n)), lambda n: reads(D)),
    "files and directory in turn read": in_turn(lambda n: reads(below(n)), lambda n: reads(D)),
    "new file written, directory read": in_turn(lambda n: writes(below(n)), lambda n: reads(D)),
    "a log": crowds(lambda n: writes(LOG), lambda n: reads(LOG), lambda n: writes(LOG)),
    "keys written, then the object": crowds(lambda n: writes(entry(n)), lambda n: writes(LOG)),
    "many directories": in_turn(lambda n: writes(file(f"/d/{n % 50}/{n}"))),
    "a directory replaced below one that is read": in_turn(
        *[lambda n, i=i: writes(file(f"/d/e/{i}")) for i in range(10)],
        lambda n: writes(file("/d/e")),
        lambda n: reads(D),
    ),
}


@pytest.mark.parametrize("size", [1_000, 10_000])
@pytest.mark.parametrize("name", PATTERNS)
def test_there_are_no_more_than_a_few_edges_for_an_access(name: str, size: int) -> None:
    assert Tracked(list(PATTERNS[name](size))).edges <= 10 * size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["files written, directory read", "a chain of files", "a log"])
def test_the_same_holds_for_a_hundred_thousand(name: str) -> None:
    assert Tracked(list(PATTERNS[name](100_000))).edges <= 1_000_000


def test_where_crowds_meet_each_member_has_one_edge() -> None:
    tracked = Tracked([*[writes(LOG)] * 100, *[reads(LOG)] * 200])
    assert tracked.edges == 300
    assert all(set(tracked.closure(NEEDS)[node]) == set(range(100)) for node in range(100, 300))


def lines_run(program: Program) -> int:
    """Count the lines of the module that run for a program."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != hazards.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        Tracked(program)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", PATTERNS)
def test_the_work_grows_no_faster_than_the_number_of_accesses(name: str) -> None:
    small, large = (lines_run(list(PATTERNS[name](size))) for size in (500, 4_000))
    assert large <= 1.5 * 8 * small

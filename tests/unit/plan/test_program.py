"""A graph keeps the order that matters: any run that respects it has the result of the list."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskbatch.describe.access import FILES, Channel
from daskbatch.errors import GraphError
from daskbatch.plan import hazards, program
from daskbatch.plan.graph import Graph
from daskbatch.plan.program import build_graph, may_run_again


def files(*paths: str) -> tuple[Channel, ...]:
    return tuple(Channel(FILES, path) for path in paths)


@dataclass(eq=False)
class Step:
    """A task as `build_graph` sees it."""

    number: int
    name: str
    producers: Sequence[Step] = ()
    reads: Sequence[Channel] = ()
    writes: Sequence[Channel] = ()


def steps(*accesses: tuple[Sequence[str], Sequence[str]]) -> list[Step]:
    return [
        Step(number, f"t{number}", reads=files(*reads), writes=files(*writes))
        for number, (reads, writes) in enumerate(accesses)
    ]


def edges(graph: Graph) -> dict[tuple[int, int], tuple[str, ...]]:
    return {(edge.before, edge.after): edge.reasons for edge in graph.edges()}


# -- edges --------------------------------------------------------------------------------


def test_an_empty_program_has_an_empty_graph() -> None:
    graph = build_graph([])
    assert len(graph) == 0
    assert list(graph.order) == []
    assert edges(graph) == {}


def test_tasks_that_share_nothing_do_not_wait() -> None:
    graph = build_graph(steps((["/a"], ["/b"]), (["/a"], ["/c"]), ([], [])))
    assert edges(graph) == {}
    assert list(graph.order) == [0, 1, 2]
    assert list(graph.names) == ["t0", "t1", "t2"]


def test_a_task_waits_for_those_whose_results_it_takes() -> None:
    first, second = Step(7, "first"), Step(3, "second")
    third = Step(9, "third", [first, second, first])
    graph = build_graph([first, second, third])
    assert edges(graph) == {(0, 2): ("argument",), (1, 2): ("argument",)}


def test_a_result_of_an_earlier_submission_makes_no_edge() -> None:
    assert edges(build_graph([Step(5, "late", [Step(1, "early")])])) == {}


def test_all_reasons_between_two_tasks_are_on_one_edge() -> None:
    first, second = steps((["/a"], ["/b"]), (["/b"], ["/a"]))
    second.producers = [first]
    assert edges(build_graph([first, second])) == {(0, 1): ("argument", "RAW", "WAR")}


def test_an_order_that_is_kept_anyway_has_no_edge() -> None:
    graph = build_graph(steps(([], ["/f"]), (["/f"], []), ([], ["/f"])))
    assert edges(graph) == {(0, 1): ("RAW",), (1, 2): ("WAR",)}


def test_a_need_has_an_edge_even_if_the_order_is_kept_anyway() -> None:
    program = steps(([], ["/f"]), (["/f"], []), (["/g"], []), (["/f"], ["/g"]))
    program[3].producers = [program[1]]
    found = edges(build_graph(program))
    assert found == {(0, 1): ("RAW",), (0, 3): ("RAW",), (1, 3): ("argument",), (2, 3): ("WAR",)}


def test_many_and_many_meet_at_a_barrier() -> None:
    graph = build_graph(steps(*[([f"/d/{n}"], []) for n in range(20)], *[([], ["/d"])] * 2))
    assert list(graph.needs(20)) == []
    graph = build_graph(steps(*[([], [f"/d/{n}"]) for n in range(20)], *[(["/d"], [])] * 20))
    assert list(graph.order)[20] == 40
    assert set(graph.needs(40)) == set(range(20))
    assert [list(graph.needs(node)) for node in range(20, 40)] == [[40]] * 20


def test_the_order_has_the_tasks_as_in_the_list_and_each_behind_what_it_waits_for() -> None:
    graph = build_graph(
        steps(*[([], [f"/d/{n % 12}"]) if n % 3 else (["/d"], []) for n in range(60)])
    )
    assert [node for node in graph.order if node < 60] == list(range(60))
    place = {node: index for index, node in enumerate(graph.order)}
    assert len(place) == len(graph.order)
    for edge in graph.edges():
        assert place[edge.before] < place[edge.after]


# -- what is no program -------------------------------------------------------------------


def refusal(program: Sequence[Step]) -> str:
    with pytest.raises(GraphError) as caught:
        build_graph(program)
    return str(caught.value)


def test_a_task_that_is_in_the_list_twice_is_named() -> None:
    a, b = Step(0, "a"), Step(1, "b")
    text = refusal([a, b, a, b])
    assert text.startswith("task 'a' is in the list twice, the second time at position 2;")


def test_tasks_of_one_name_are_different_tasks() -> None:
    assert len(build_graph([Step(0, "a"), Step(1, "a")])) == 2


def test_a_task_that_takes_a_later_result_is_named_with_the_other() -> None:
    late = Step(1, "late")
    text = refusal([Step(0, "early", [late]), Step(2, "between"), late])
    assert text == (
        "task 'early' (position 0) takes the result of 'late' (position 2), "
        "which comes later in the list; put 'late' first"
    )


def test_a_task_that_takes_its_own_result_is_named() -> None:
    own = Step(0, "own")
    own.producers = [own]
    assert refusal([own]) == "task 'own' takes its own result"


def test_tasks_that_take_each_others_results_are_refused() -> None:
    a, b = Step(0, "a"), Step(1, "b")
    a.producers, b.producers = [b], [a]
    assert "'a'" in refusal([a, b])
    assert "'b'" in refusal([b, a])


# -- overwrites ---------------------------------------------------------------------------


def overwritten(graph: Graph, node: int) -> set[int]:
    """Return the tasks whose reads a node overwrites, including those behind barriers."""
    found: set[int] = set()
    stack = list(graph.overwrites.get(node, ()))
    while stack:
        other = stack.pop()
        if other < len(graph):
            found.add(other)
        else:
            stack += graph.waits[other]
    return found


def test_a_task_overwrites_what_those_before_it_have_read() -> None:
    graph = build_graph(steps((["/f"], []), (["/d/g"], ["/h"]), ([], ["/f"]), ([], ["/d"])))
    assert overwritten(graph, 2) == {0}
    assert overwritten(graph, 3) == {1}
    assert set(graph.overwrites) == {2, 3}


def test_a_task_that_cannot_run_twice_anyway_is_not_overwritten() -> None:
    graph = build_graph(steps((["/f", "/g"], ["/g"]), ([], ["/f"]), (["/f"], ["/f"])))
    assert dict(graph.overwrites) == {}


def test_what_is_overwritten_is_told_even_if_the_order_is_kept_anyway() -> None:
    program = steps((["/f"], []), ([], []), ([], ["/f"]))
    program[1].producers = [program[0]]
    program[2].producers = [program[1]]
    graph = build_graph(program)
    assert edges(graph) == {(0, 1): ("argument",), (1, 2): ("argument",)}
    assert overwritten(graph, 2) == {0}


def test_what_a_crowd_has_read_is_overwritten_by_each_that_writes_it() -> None:
    graph = build_graph(steps(*[(["/d"], [])] * 20, ([], ["/d/f"]), ([], ["/d/g"])))
    assert overwritten(graph, 20) == overwritten(graph, 21) == set(range(20))


@pytest.mark.parametrize(
    ("reads", "writes", "may"),
    [
        ([], ["/f"], True),
        (["/f"], [], True),
        (["/f"], ["/g"], True),
        (["/f"], ["/f"], False),
        (["/d"], ["/d/f"], False),
        (["/d/f"], ["/d"], False),
        (["/a", "/b"], ["/c", "/b"], False),
    ],
)
def test_a_task_may_run_again_unless_it_writes_what_it_reads(
    reads: list[str], writes: list[str], may: bool
) -> None:
    assert may_run_again(steps((reads, writes))[0]) is may


# -- any order that the graph allows gives what the list gives ----------------------------


@dataclass(frozen=True)
class Action:
    """A task of a random program: everything that it makes depends on everything that it reads."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    arguments: tuple[int, ...] = ()
    fails: bool = False


@dataclass
class World:
    """A file system, and the outcomes of the tasks: 'skipped', 'failed' or a result."""

    content: dict[str, str] = field(default_factory=dict)
    results: dict[int, str] = field(default_factory=dict)

    def succeeded(self, node: int) -> bool:
        return self.results[node] not in ("skipped", "failed")

    def act(self, node: int, action: Action) -> None:
        seen = [str(node), *(self.results[other] for other in action.arguments)]
        seen += [part for path in action.reads for part in self.look(path)]
        made = hashlib.sha256("|".join(seen).encode()).hexdigest()[:8]
        # A task that fails has completed all of its writes except the last one.
        for path in action.writes[:-1] if action.fails else action.writes:
            for gone in [each for each in self.content if covers(path, each)]:
                del self.content[gone]
            self.content[path] = made
        self.results[node] = "failed" if action.fails else made

    def look(self, path: str) -> list[str]:
        """The content below a path, and the nearest content above it."""
        above = max((each for each in self.content if covers(each, path)), key=len, default="")
        below = sorted(each for each in self.content if covers(path, each))
        return [f"{each}={self.content[each]}" for each in [above, *below] if each]


def covers(above: str, below: str) -> bool:
    return PurePosixPath(below).is_relative_to(above)


def needed_writers(actions: Sequence[Action], node: int) -> set[int]:
    """The tasks whose writes a task reads: no later write before it covers their common part."""
    needed = set()
    for read in actions[node].reads:
        for writer in range(node):
            for written in actions[writer].writes:
                if not (covers(read, written) or covers(written, read)):
                    continue
                shared = max(read, written, key=len)
                between = actions[writer + 1 : node]
                if not any(covers(each, shared) for later in between for each in later.writes):
                    needed.add(writer)
    return needed


def run_in_sequence(actions: Sequence[Action]) -> World:
    world = World()
    for node, action in enumerate(actions):
        if all(map(world.succeeded, {*action.arguments, *needed_writers(actions, node)})):
            world.act(node, action)
        else:
            world.results[node] = "skipped"
    return world


def run_by_graph(actions: Sequence[Action], graph: Graph, chance: random.Random | None) -> World:
    """Run the tasks in an order that the graph allows: at random, or the last in the list first."""
    world = World()
    left = {node: len(graph.waits.get(node, ())) for node in graph.order}
    while left:
        ready = [node for node, count in left.items() if not count]
        node = chance.choice(ready) if chance else max(ready)
        del left[node]
        if not all(map(world.succeeded, graph.needs(node))):
            world.results[node] = "skipped"
        elif node < len(actions):
            world.act(node, actions[node])
        else:
            world.results[node] = "passed"
        for after, waits in graph.waits.items():
            if node in waits and after in left:
                left[after] -= 1
    world.results = {node: world.results[node] for node in range(len(actions))}
    return world


#: A name with a # is a different file each time.
PATHS = st.sampled_from(["/", "/a", "/a/b", "/a/b/c", "/a/b/#", "/a/#", "/a/1", "/e"])


def numbered(paths: tuple[str, ...], number: int) -> tuple[str, ...]:
    return tuple(path.replace("#", str(number)) for path in paths)


@st.composite
def programs(draw: Any) -> list[Action]:
    """Programs with many equal accesses in a row, so that many tasks wait for many."""
    some = st.lists(PATHS, max_size=3, unique=True).map(tuple)
    one = PATHS.map(lambda path: (path,))
    accesses = st.one_of(
        st.tuples(one, st.just(())), st.tuples(st.just(()), one), st.tuples(some, some)
    )
    bursts = draw(st.lists(st.tuples(accesses, st.sampled_from([1, 1, 1, 10])), max_size=10))
    plain = [
        (numbered(reads, number), numbered(writes, number))
        for (reads, writes), times in bursts
        for number in range(times)
    ]
    positions = st.integers(0, max(0, len(plain) - 1))
    failing = draw(st.sets(positions, max_size=3))
    pairs = draw(st.lists(st.tuples(positions, positions), max_size=5))
    return [
        Action(reads, writes, tuple(a for a, b in pairs if a < b == node), node in failing)
        for node, (reads, writes) in enumerate(plain)
    ]


@settings(deadline=None, max_examples=150)
@given(programs(), st.integers(0, 2**32))
def test_every_order_that_the_graph_allows_ends_like_the_sequential_run(
    actions: list[Action], seed: int
) -> None:
    tasks = steps(*[(action.reads, action.writes) for action in actions])
    for task, action in zip(tasks, actions, strict=True):
        task.producers = [tasks[other] for other in action.arguments]
    graph = build_graph(tasks)
    expected = run_in_sequence(actions)
    assert run_by_graph(actions, graph, None) == expected
    for number in range(2):
        assert run_by_graph(actions, graph, random.Random(seed + number)) == expected


# -- cost ---------------------------------------------------------------------------------


def lines_run(tasks: Sequence[Step]) -> int:
    """Count the lines of the planner that run for a program."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in (program.__file__, hazards.__file__):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        build_graph(tasks)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda n: steps(*[([f"/{i}"], [f"/{i + 1}"]) for i in range(n)]), id="chain"),
        pytest.param(
            lambda n: steps(
                ([f"/d/{i}" for i in range(n)], ["/sum"]), *[([], [f"/d/{i}"]) for i in range(n)]
            ),
            id="many files read by one and overwritten one by one",
        ),
    ],
)
def test_the_work_grows_no_faster_than_tasks_and_accesses(make: Any) -> None:
    small, large = lines_run(make(50)), lines_run(make(400))
    assert large <= 1.5 * 8 * small

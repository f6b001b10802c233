"""The graph of a job: edges on both sides, ranks, and errors in the graph."""

from __future__ import annotations

from typing import Any

import pytest

from daskbatch import GraphError, SpecError
from daskbatch.execute.jobs.task import Task
from daskbatch.execute.scheduling.graph import TaskGraph


def tasks(*ids: Any, **how: Any) -> list[Task]:
    return [Task(None, each, **how) for each in ids]


def test_a_side_that_is_missing_is_added() -> None:
    a, b, c = tasks(1, 2, 3)
    b.dependencies.add(a)
    b.dependents.add(c)
    graph = TaskGraph([a, b, c])
    assert (a.dependents, c.dependencies) == ({b}, {b})
    assert graph.dependencies == {1: (0,), 2: (1,)}
    assert graph.dependents == {0: (1,), 1: (2,)}


def test_ranks_follow_the_priority_and_then_the_order() -> None:
    some = [Task(None, n, priority=p) for n, p in enumerate((5, 1, 5, 0))]
    assert TaskGraph(some).ranks == [2, 1, 3, 0]


def test_ancestors_are_direct_and_indirect() -> None:
    a, b, c, d = tasks(1, 2, 3, 4)
    b.dependencies.add(a)
    c.dependencies.add(b)
    graph = TaskGraph([a, b, c, d])
    assert graph.ancestors(2) == {0, 1}
    assert graph.ancestors(3) == set()


def test_a_circle_is_named() -> None:
    a, b = tasks(1, 2)
    a.dependencies.add(b)
    b.dependencies.add(a)
    with pytest.raises(GraphError, match=r"task 1 -> task 2 -> task 1|task 2 -> task 1 -> task 2"):
        TaskGraph([a, b])


def test_a_task_must_not_wait_for_itself() -> None:
    (a,) = tasks(1)
    a.dependencies.add(a)
    with pytest.raises(GraphError, match="circle"):
        TaskGraph([a])


def test_other_mistakes_are_named() -> None:
    with pytest.raises(SpecError, match="at least one task"):
        TaskGraph([])
    with pytest.raises(SpecError, match="two tasks of the job have the id 7"):
        TaskGraph(tasks(7, 8, 7))
    with pytest.raises(SpecError, match="cannot be compared"):
        TaskGraph(tasks(1, "a"))
    a, other = tasks(1, 2)
    a.dependencies.add(other)
    with pytest.raises(GraphError, match="task 2, which is not a task of this job"):
        TaskGraph([a])


def test_ids_that_cannot_be_compared_do_with_priorities() -> None:
    assert TaskGraph([Task(None, 1, priority=1), Task(None, "a", priority=0)]).ranks == [1, 0]

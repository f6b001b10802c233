"""A large value is handed over to the next member only if nobody else can see what that changes."""

from __future__ import annotations

import marshal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.payloads import Call, TaskPlaceholder, call, spec
from support.waiting import wait_for_file, wait_until

from daskbatch.memory import kept_mappings
from daskbatch.memory.kept_mappings import set_limits
from daskbatch.serialization import pickling
from daskbatch.worker.entry import run_block
from daskbatch.worker.execution import handover
from daskbatch.worker.execution.block import LOCAL, BlockMember, Limits, Link
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.isolation.child_pool import get_child_pool

COUNT = 30_000

#: What members keep, in this process.
KEPT: list[Any] = []


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    KEPT.clear()
    yield
    get_child_pool().close()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the sizes of values that are loaded, which grows."""
    sizes: list[int] = []
    load = marshal.loads

    def note(data: Any) -> Any:
        if len(data) > COUNT:
            sizes.append(len(data))
        return load(data)

    monkeypatch.setattr(marshal, "loads", note)
    return sizes


def run(*calls: Call, values: dict[int, list[int]], **changes: Any) -> BlockResult:
    """Run calls; `values` says for each of them which earlier ones it takes the values of."""
    links = {
        member: Link(
            needs=tuple((LOCAL, other) for other in others),
            values=tuple(BlockMember((LOCAL, other), "result") for other in others),
        )
        for member, others in values.items()
    }
    return run_block(pickling.dumps(spec(*calls, links=links, share_limit=1 << 30, **changes)))


def take(result: BlockResult, member: int = 0, **changes: Any) -> BlockResult:
    """Run another block, which changes a value of a result, and says how many were loaded."""
    link = Link(values=(BlockMember((0, member), "result"),))
    calls = call(change, TaskPlaceholder()), call(loads_here)
    return run_block(pickling.dumps(spec(*calls, links={0: link}, **changes)), result)


def count_loads() -> None:
    """Count what is loaded in this process, which is a child."""
    load = marshal.loads

    def note(data: Any) -> Any:
        if len(data) > COUNT:
            KEPT.append(len(data))
        return load(data)

    marshal.loads = note


def loads_here() -> int:
    return len(KEPT)


def tell_when_dropped(path: str) -> None:
    """Have this process, which is a child, make a file once it has dropped what nobody took."""
    drop = handover.drop_old

    def tell() -> None:
        drop()
        if not handover.has_offers():
            Path(path).touch()

    handover.drop_old = tell
    handover.INTERVAL_SECONDS = 0.001


def value(result: BlockResult, member: int) -> Any:
    assert result.statuses[member] == Status.DONE
    return pickling.loads(result.values[member] or b"")


def make() -> list[Any]:
    return [[str(number) for number in range(COUNT)], {"a": [1]}]


def make_and_keep() -> list[Any]:
    KEPT.append(make())
    return KEPT[-1]  # type: ignore[no-any-return]


def make_and_keep_a_part() -> list[Any]:
    made = make()
    KEPT.append(made[1]["a"])
    return made


def change(*given: list[Any]) -> int:
    sizes = [len(each[0]) for each in given]
    for each in given:
        each[0].append("more")
        each[1]["a"].append(2)
    return sum(sizes)


def change_and_fail_once(given: list[Any]) -> int:
    changed = change(given)
    if not KEPT:
        KEPT.append(None)
        raise ValueError("the first time")
    return changed


def test_the_next_member_gets_the_value_itself_and_all_others_get_copies(loads: list[int]) -> None:
    placeholder = TaskPlaceholder()
    result = run(
        call(make), call(change, placeholder), call(change, placeholder), values={1: [0], 2: [0]}
    )
    assert len(loads) == 1  # the second one
    assert (value(result, 1), value(result, 2)) == (COUNT, COUNT)
    assert value(result, 0) == make()


@pytest.mark.parametrize("keep", [make_and_keep, make_and_keep_a_part])
def test_what_something_else_refers_to_is_copied(keep: Callable[[], Any], loads: list[int]) -> None:
    result = run(call(keep), call(change, TaskPlaceholder()), values={1: [0]})
    assert len(loads) == 1
    assert value(result, 1) == COUNT
    assert KEPT in ([make()], [[1]])


def test_a_value_that_is_taken_twice_is_copied_twice(loads: list[int]) -> None:
    taken = call(change, TaskPlaceholder(), TaskPlaceholder())
    result = run(call(make), taken, values={1: [0, 0]})
    assert len(loads) == 2
    assert value(result, 1) == 2 * COUNT


def test_an_argument_that_is_returned_is_copied(loads: list[int]) -> None:
    placeholder = TaskPlaceholder()
    result = run(
        *(call(make), call(list.copy, placeholder), call(change, placeholder)),
        values={1: [0], 2: [1]},
    )
    assert value(result, 2) == COUNT
    assert value(result, 0) == value(result, 1) == make()


def test_another_attempt_gets_the_value_as_it_was(loads: list[int]) -> None:
    result = run(
        *(call(make), call(change_and_fail_once, TaskPlaceholder())),
        values={1: [0]},
        limits={1: Limits(retries=1)},
    )
    assert value(result, 1) == COUNT
    assert len(loads) == 1


def test_it_is_dropped_if_the_next_member_does_not_take_it(loads: list[int]) -> None:
    placeholder = TaskPlaceholder()
    result = run(call(make), call(len, ""), call(change, placeholder), values={2: [0]})
    assert len(loads) == 1
    assert value(result, 2) == COUNT


# -- to another block ---------------------------------------------------------------------


def test_the_next_block_of_the_thread_gets_the_value_itself(loads: list[int]) -> None:
    result = run(call(make), values={})
    assert value(take(result), 0) == value(take(result), 0) == COUNT
    assert len(loads) == 1  # the second one
    assert value(result, 0) == make()


def test_another_thread_and_a_later_block_get_copies(loads: list[int]) -> None:
    result = run(call(make), values={})
    with ThreadPoolExecutor(1) as pool:
        assert value(pool.submit(take, result).result(), 0) == COUNT
    run(call(len, ""), values={})
    assert value(take(result), 0) == COUNT
    assert len(loads) == 2


def test_a_value_that_nobody_takes_is_dropped(
    loads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "INTERVAL_SECONDS", 0.001)
    result = run(call(make), values={})
    wait_until(lambda: not any(t.name == "daskbatch-handover" for t in threading.enumerate()))
    assert value(take(result), 0) == COUNT
    assert len(loads) == 1


def test_a_value_that_was_taken_or_not_is_kept_by_nothing() -> None:
    result = run(call(make), values={})
    assert handover._offers
    take(result)
    assert not handover._offers
    result = run(call(make), call(len, ""), values={})
    assert not handover._offers


def test_nothing_is_offered_while_the_process_uses_much_memory(loads: list[int]) -> None:
    kept = kept_mappings.limit()
    set_limits(kept, 1)
    try:
        result = run(call(make), values={})
    finally:
        set_limits(kept, None)
    assert value(take(result), 0) == COUNT
    assert len(loads) == 1


# -- in children --------------------------------------------------------------------------


def test_in_a_child_the_next_member_gets_the_value_itself_and_others_get_copies() -> None:
    placeholder = TaskPlaceholder()
    result = run(
        *(call(count_loads), call(make), call(change, placeholder), call(change, placeholder)),
        call(loads_here),
        values={2: [1], 3: [1]},
        isolated=True,
    )
    assert value(result, 4) == 1
    assert (value(result, 2), value(result, 3)) == (COUNT, COUNT)
    assert value(result, 1) == make()


def test_the_next_block_of_a_child_gets_the_value_itself() -> None:
    result = run(call(count_loads), call(make), values={}, isolated=True)
    taken = [take(result, 1, isolated=True) for _ in range(2)]
    assert [value(each, 0) for each in taken] == [COUNT, COUNT]
    assert [value(each, 1) for each in taken] == [0, 1]
    assert value(result, 1) == make()


def test_a_child_drops_a_value_that_no_block_takes(tmp_path: Path) -> None:
    path = tmp_path / "dropped"
    result = run(
        *(call(count_loads), call(tell_when_dropped, str(path)), call(make)),
        values={},
        isolated=True,
    )
    wait_for_file(path)
    taken = take(result, 2, isolated=True)
    assert (value(taken, 0), value(taken, 1)) == (COUNT, 1)

"""Compiled tasks: which tasks can be compiled, and how they report their order."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.waiting import wait_for_file

from daskbatch import Batch, CommunicationDomain, CommunicationObject, GraphError, LifecycleError


def test_results_in_the_order_of_the_list(batch: Batch) -> None:
    tasks = [batch.function(pow, number, 2) for number in range(50)]
    program = batch.compile(tasks)
    program.run(timeout=60)
    assert program.get() == program.result.get() == [number**2 for number in range(50)]
    assert program.tasks == tuple(tasks)
    assert program.state == "done"


def test_an_empty_list_is_done_at_once(batch: Batch) -> None:
    program = batch.compile([])
    assert (program.state, program.get()) == ("done", [])
    program.run(timeout=1)


def test_a_member_is_done_before_the_whole(batch: Batch, tmp_path: Path) -> None:
    slow = batch.function(wait_for_file, tmp_path / "go")
    quick = batch.function(len, "abc")
    program = batch.compile([slow, quick])
    program.start()
    assert quick.get(timeout=60) == 3
    assert program.state in ("waiting", "running")
    with pytest.raises(TimeoutError, match="is not over after 0.05 s"):
        program.get(timeout=0.05)
    (tmp_path / "go").touch()
    program.wait(timeout=60)


def test_the_value_of_a_member_is_there_before_the_whole(batch: Batch, tmp_path: Path) -> None:
    large = batch.function(bytes, 200_000)
    behind = batch.function(wait_for_file, tmp_path / "go", large)
    program = batch.compile([large, behind])
    program.start()
    assert large.get(timeout=60) == bytes(200_000)
    assert program.state != "done"
    (tmp_path / "go").touch()
    program.wait(timeout=60)


def test_what_waits_for_one_member_of_a_block_does_not_wait_for_another(
    batch: Batch, tmp_path: Path
) -> None:
    def maybe_wait(number: int) -> int:
        if number == 1:
            wait_for_file(tmp_path / "go")
        return number

    firsts = [batch.function(maybe_wait, number) for number in range(16)]
    seconds = [batch.function(pow, firsts[k], firsts[k - 2]) for k in range(16)]
    program = batch.compile([*firsts, *seconds])
    program.start()
    for k in range(16):
        if k not in (1, 3):
            seconds[k].wait(timeout=60)
    assert firsts[1].state == "running"
    (tmp_path / "go").touch()
    program.wait(timeout=60)


def test_a_cancelled_whole_does_not_start(batch: Batch) -> None:
    program = batch.compile([batch.function(len, "")])
    assert program.cancel()
    with pytest.raises(LifecycleError, match="is cancelled already"):
        program.start()


def test_states_of_the_whole(batch: Batch) -> None:
    good, bad = batch.function(len, "abc"), batch.function(divmod, 1, 0)
    program = batch.compile([good, bad])
    assert program.state == "created"
    program.run(timeout=60)
    assert program.state == "failed"
    with pytest.raises(ZeroDivisionError):
        program.get()
    assert good.get() == 3


def test_output_of_the_whole(batch: Batch) -> None:
    program = batch.compile([batch.function(print, word) for word in ("one", "two")])
    program.run(timeout=60)
    assert program.stdout.get() == "one\ntwo"
    assert program.stderr.get() == ""


def test_names(batch: Batch) -> None:
    same = batch.compile([batch.function(len, "abc") for _ in range(2)])
    mixed = batch.compile([batch.function(len, "abc"), batch.function(print)])
    named = batch.compile([batch.function(len, "abc")], name="mine")
    assert [same.name, mixed.name, named.name] == ["len", "batch", "mine"]


# -- what is no program -----------------------------------------------------------------


def test_twice_in_the_list(batch: Batch) -> None:
    task = batch.function(len, "abc", name="again")
    with pytest.raises(GraphError, match="'again' is in the list twice.*make a second task"):
        batch.compile([task, task])


def test_a_result_of_a_later_task(batch: Batch) -> None:
    late = batch.function(len, "abc", name="late")
    early = batch.function(str, late, name="early")
    with pytest.raises(GraphError, match=r"'early' \(position 0\) takes the result of 'late'"):
        batch.compile([early, late])
    batch.compile([late, early]).run(timeout=60)
    assert early.get() == "3"


def test_a_member_of_another(batch: Batch) -> None:
    task = batch.function(len, "abc", name="taken")
    batch.compile([task], name="first")
    with pytest.raises(
        GraphError,
        match="is a member of the compiled task 'first' already: .*make new tasks",
    ):
        batch.compile([task])


def test_a_task_of_another_batch(batch: Batch) -> None:
    with Batch(num_workers=1) as other:
        foreign = other.function(len, "abc", name="foreign")
        with pytest.raises(GraphError, match="task 'foreign' belongs to another Batch"):
            batch.compile([foreign])
        mine = batch.function(str, foreign, name="mine")
        with pytest.raises(GraphError, match="'mine' takes the result of 'foreign', which belongs"):
            batch.compile([mine])
        with pytest.raises(GraphError, match="belongs to another Batch"):
            mine.start()


def test_a_compiled_task_in_the_list(batch: Batch) -> None:
    inner = batch.compile([batch.function(len, "abc")], name="inner")
    with pytest.raises(GraphError, match="'inner' is a compiled task: put its members in the list"):
        batch.compile([inner])


def test_what_is_no_task(batch: Batch) -> None:
    with pytest.raises(GraphError, match="compile takes tasks; 'abc' is not a task"):
        batch.compile(["abc"])  # type: ignore[list-item]


def test_what_has_been_started(batch: Batch) -> None:
    task = batch.function(len, "abc", name="early")
    task.run(timeout=60)
    with pytest.raises(LifecycleError, match="'early' is done already; only tasks that have not"):
        batch.compile([task])


def test_a_failed_compile_leaves_its_tasks_as_they_were(batch: Batch) -> None:
    late = batch.function(len, "abc")
    early = batch.function(str, late)
    with pytest.raises(GraphError):
        batch.compile([early, late])
    program = batch.compile([late, early])
    program.run(timeout=60)
    assert program.get() == [3, "3"]


def test_accesses_of_the_whole_are_refused(batch: Batch) -> None:
    program = batch.compile([batch.function(len, "abc")], name="whole")
    with pytest.raises(
        LifecycleError, match="'whole' is a compiled task: declare reads and writes on"
    ):
        program.read("file")


# -- the order --------------------------------------------------------------------------


def test_accesses_may_be_added_until_the_start(batch: Batch) -> None:
    first, second = batch.function(len, "a"), batch.function(len, "b")
    program = batch.compile([first, second])
    assert program.graph.counts()["RAW"] == 0
    first.write("data", "x")
    second.read("data", "x")
    assert program.graph.counts()["RAW"] == 1
    program.run(timeout=60)
    assert program.graph.counts()["RAW"] == 1


def test_explain(batch: Batch) -> None:
    load = batch.function(len, "a", name="load", writes=[batch.write("/d", "raw")])
    clean = batch.function(
        len, "b", name="clean", reads=[batch.read("/d", "raw")], writes=[batch.write("/d", "out")]
    )
    other = batch.function(len, "c", name="other")
    again = batch.function(len, "d", name="again", writes=[batch.write("/d", "raw")])
    last = batch.function(str, clean, name="last", reads=[batch.read("/d")])
    program = batch.compile([load, clean, other, again, last])
    assert program.explain(load, clean) == (
        "'clean' (1) waits for 'load' (0): it reads /d/raw, which the other writes (RAW)."
    )
    assert program.explain(clean, again) == (
        "'again' (3) waits for 'clean' (1): it writes /d/raw, which the other reads (WAR)."
    )
    assert program.explain(load, again) == "'again' (3) waits for 'load' (0) by way of 'clean' (1)."
    assert "need not wait" in program.explain(load, other)
    assert "comes first" in program.explain(clean, load)
    assert program.explain(clean, last).startswith(
        "'last' (4) waits for 'clean' (1): it takes its result; it reads /d (with /d/out), which"
    )
    with pytest.raises(GraphError, match="'stranger' is not a member"):
        program.explain(load, batch.function(len, "", name="stranger"))


def test_pictures(batch: Batch, tmp_path: Path) -> None:
    first = batch.function(len, "a", name='a "quoted" & <odd> name')
    program = batch.compile([first, batch.function(str, first)])
    assert program.to_dot().splitlines()[-2] == '  0 -> 1 [label="argument"];'
    picture = program.visualize(tmp_path / "graph.svg")
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    assert program.visualize(tmp_path / "graph.dot").read_text() == program.to_dot()


def test_domains_say_which_order_is_kept(batch: Batch) -> None:
    log = CommunicationObject(CommunicationDomain(waw=False), "log")
    writers = [batch.function(len, "", writes=[batch.write(log, "line")]) for _ in range(3)]
    reader = batch.function(len, "", reads=[batch.read(log, "line")])
    program = batch.compile([*writers, reader])
    assert program.graph.counts() == {"argument": 0, "RAW": 3, "WAR": 0, "WAW": 0, "RAR": 0}
    program.run(timeout=60)


def test_objects_may_offer_channels_of_their_own(batch: Batch) -> None:
    class Table:
        def __batch_channels__(self, channels: tuple[str, ...]) -> tuple[object, tuple[str, ...]]:
            return CommunicationObject(CommunicationDomain(), "table"), tuple(
                name.lower() for name in channels
            )

    write = batch.function(len, "", writes=[batch.write(Table(), "Row")])
    read = batch.function(len, "", reads=[batch.read(Table(), "row")])
    assert batch.compile([write, read]).graph.counts()["RAW"] == 1

"""Tasks whose caller has decided how many of them go together, and where."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from support.inprocess import make_dispatcher, run_records

from daskbatch.describe.spec import DEFAULT_OPTIONS, function_call
from daskbatch.dispatch.lower import SECONDS
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.serialization import pickling


def records(where: Any, count: int, first: int = 0) -> list[TaskRecord]:
    options = replace(DEFAULT_OPTIONS, workers=("tcp://a",), other_workers=True, apart=where)
    return [
        TaskRecord("client", first + n, "abs", function_call(abs, (-n,), {}), options)
        for n in range(count)
    ]


def test_those_that_agree_share_a_block_in_their_order_and_others_do_not() -> None:
    some = [*records("x", 50), *records("y", 30, first=50)]
    dispatcher, backend = make_dispatcher()
    run_records(dispatcher, some)
    (lowered,) = backend.submissions
    sizes = sorted(len(block.records) for block in lowered.blocks.values())
    assert sizes == [30, 50]
    for block in lowered.blocks.values():
        numbers = [record.number for record in block.records]
        assert numbers == sorted(numbers)
    assert [pickling.loads(record.value or b"") for record in some] == [*range(50), *range(30)]


def test_they_are_not_placed_anew_when_one_takes_long() -> None:
    dispatcher, backend = make_dispatcher()
    run_records(dispatcher, records("x", 3))
    ((key, _),) = backend.submissions[0].blocks.items()
    graph = dict(backend.submissions[0].graph)
    spec = pickling.loads(graph[key].args[0])
    assert spec.budget == math.inf


def test_their_keys_say_how_long_they_are_expected_to_take() -> None:
    """Else a job would be served before all other clients."""
    dispatcher, backend = make_dispatcher(budget=0.25)
    for _ in range(2):
        run_records(dispatcher, records("x", 3))
    expected = []
    for lowered in backend.submissions:
        ((key, _),) = lowered.blocks.items()
        (layer,) = lowered.graph.layers.values()
        expected.append(layer.annotations[SECONDS](key))
    assert expected[0] == 0.25
    assert 0 < expected[1] < 0.25


def test_they_prefer_their_workers_and_may_go_elsewhere() -> None:
    dispatcher, backend = make_dispatcher()
    run_records(dispatcher, records("x", 1))
    annotations = [layer.annotations for layer in backend.submissions[0].graph.layers.values()]
    assert {"workers": ["tcp://a"], "allow_other_workers": True}.items() <= annotations[0].items()

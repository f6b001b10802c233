"""The result of a block travels with the outcomes of all its members."""

from __future__ import annotations

import pickle

import pytest
from dask.sizeof import sizeof

from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import OutcomeReport
from daskbatch.worker.execution.outcome import BlockResult, Status, token


def result() -> BlockResult:
    statuses = bytes([Status.DONE, Status.FAILED, Status.DEFERRED])
    values = [pickling.dumps(1), pack_error(ValueError("a"), "'t'"), None]
    return BlockResult(statuses, values, {0: ("out", "err")})


@pytest.mark.parametrize("protocol", [2, 5])
def test_the_result_of_a_block_survives_pickling(protocol: int) -> None:
    before = result()
    after = pickle.loads(pickle.dumps(before, protocol))
    assert after.statuses == before.statuses
    assert list(after.values) == list(before.values)
    assert dict(after.outputs) == {0: ("out", "err")}


def test_a_block_that_wrote_nothing_has_no_outputs() -> None:
    assert dict(pickle.loads(pickle.dumps(BlockResult(b"\0", [b"v"]))).outputs) == {}


@pytest.mark.parametrize("count", [1, 100])
def test_dask_is_told_the_size_of_all_that_a_block_holds(count: int) -> None:
    large = BlockResult(bytes(count), [b"v" * 10_000] * count, {0: ("o" * 50_000, "e" * 50_000)})
    assert sizeof(large) == pytest.approx(100_000 + count * 10_000, rel=0.1)
    assert sizeof(BlockResult(bytes(count), [None] * count)) < 200 + 20 * count


def test_a_token_has_the_statuses_and_nothing_else() -> None:
    large = BlockResult(bytes([0, 1]), [b"v" * 100_000, b"e"], {0: ("o" * 1000, "")})
    small = token(large)
    assert small.statuses == large.statuses
    assert len(pickle.dumps(small)) < 200


def test_a_whole_result_can_be_told_as_a_report() -> None:
    report = result().as_report(7)
    assert (report.block, report.start, report.statuses) == (7, 0, result().statuses)
    assert list(report.values) == list(result().values)
    assert dict(report.outputs) == {0: ("out", "err")}
    assert isinstance(report, OutcomeReport), "nothing runs, and nothing is deferred"

"""The answer to a request: its status, and its result or what the handler has raised."""

from __future__ import annotations

from typing import Any

import pytest

from daskbatch.errors import BatchError
from daskbatch.shared.data.messages import Request, decode_error
from daskbatch.shared.rpc.answer import CONFIRM, FAILED, OK, Answer, ResultToConfirm, answer_to

REQUEST = Request("get", b"client", 1, 0.0, ("key",))


def test_a_result() -> None:
    assert answer_to(lambda request, is_gone: request.arguments, REQUEST) == Answer(OK, ("key",))


def test_a_result_to_confirm_is_settled_by_the_server() -> None:
    settled: list[bool] = []
    answer = answer_to(lambda request, is_gone: ResultToConfirm("item", settled.append), REQUEST)
    assert (answer.status, answer.result) == (CONFIRM, "item")
    assert settled == []
    assert answer.settle is not None
    answer.settle(True)
    assert settled == [True]


@pytest.mark.parametrize("error", [KeyError("key"), SystemExit(3)], ids=["error", "exit"])
def test_whatever_a_handler_raises_is_an_answer(error: BaseException) -> None:
    def handler(request: Request, is_gone: Any) -> None:
        raise error

    status, result, settle = answer_to(handler, REQUEST)
    assert (status, settle) == (FAILED, None)
    found = decode_error(result)
    if isinstance(error, Exception):
        assert type(found) is type(error)
        assert found.args == error.args
    else:
        assert isinstance(found, BatchError)
        assert "SystemExit" in str(found)

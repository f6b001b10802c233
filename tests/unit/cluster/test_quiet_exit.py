"""What event loops leave behind at the exit of a program is not logged; other errors are."""

from __future__ import annotations

import logging

import pytest

from daskbatch.cluster.session import _is_worth_telling


def record(message: str, error: BaseException | None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, None)
    return logging.LogRecord("asyncio", logging.ERROR, "", 0, message, (), info)


def test_a_timeout_that_nobody_has_seen_is_dropped() -> None:
    assert not _is_worth_telling(
        record("Future exception was never retrieved\nfuture: ...", TimeoutError("Timeout"))
    )


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Future exception was never retrieved\nfuture: ...", ValueError("wrong")),
        ("Exception in callback", TimeoutError("Timeout")),
        ("a message", None),
    ],
)
def test_other_errors_are_logged(message: str, error: BaseException | None) -> None:
    assert _is_worth_telling(record(message, error))

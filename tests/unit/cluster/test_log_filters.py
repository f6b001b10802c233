"""Messages that Dask logs only because a client has lost its scheduler are omitted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distributed import Client

from daskbatch.cluster.log_filters import omit_end_of_reconnecting, omit_timeouts_of_stopped_loops

RECONNECT = "Failed to reconnect to scheduler after %.2f seconds, closing client"


@pytest.fixture
def logger(request: pytest.FixtureRequest) -> Iterator[tuple[logging.Logger, list[str]]]:
    """A logger of the name that is the parameter, and what it has logged."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(request.param)
    logger.addHandler(handler)
    yield logger, found
    logger.removeHandler(handler)


def client(status: str) -> Client:
    return cast(Client, SimpleNamespace(status=status))


@pytest.mark.parametrize("logger", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    ("message", "error", "is_logged"),
    [
        ("Future exception was never retrieved: ...", TimeoutError("Timeout"), False),
        ("Future exception was never retrieved: ...", ValueError("wrong"), True),
        ("Exception in callback", TimeoutError("Timeout"), True),
        ("a message", None, True),
    ],
)
def test_timeouts_that_nobody_has_seen(
    logger: Any, message: str, error: BaseException | None, is_logged: bool
) -> None:
    log, found = logger
    before = list(log.filters)
    omit_timeouts_of_stopped_loops()
    log.error(message, exc_info=error)
    log.filters[:] = before
    assert found == [message] * is_logged


@pytest.mark.parametrize("logger", ["distributed.client"], indirect=True)
def test_the_end_of_an_attempt_to_connect_again(logger: Any) -> None:
    log, found = logger
    with omit_end_of_reconnecting(client("connecting")):
        with omit_end_of_reconnecting(client("connecting")):
            pass  # another client, which closes at the same time
        log.error(RECONNECT, 30.0)
        log.error("cancelled", exc_info=asyncio.CancelledError())
        log.error("another error")
    assert found == ["another error"]
    log.error(RECONNECT, 30.0)
    with omit_end_of_reconnecting(client("running")):
        log.error(RECONNECT, 30.0)
    assert found[1:] == [RECONNECT % 30.0] * 2

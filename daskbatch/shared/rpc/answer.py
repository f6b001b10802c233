"""Turns what a handler returns or raises into the answer to a request.

`answer_to` may be called by any thread, and never raises what the handler has raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from daskbatch.errors import BatchError
from daskbatch.serialization.safe_text import safe_str, type_name
from daskbatch.shared.data.messages import Request, encode_error

#: The status of an answer, which travels as ``(status, result)``: the result; a pickled exception;
#: or a result whose receipt the client confirms by sending True. Plain numbers, not an enum, whose
#: members take longer to pickle.
OK, FAILED, CONFIRM = 0, 1, 2


class ResultToConfirm:
    """A handler's result that must not be lost on the way: the client confirms its receipt.

    Parameters
    ----------
    result : object
        The result.
    settle : callable
        Called once: with True if the client has received the result; with False if it has not; with
        None if that is unknown, and the client itself will say it by another request.
    """

    __slots__ = ("result", "settle")

    def __init__(self, result: Any, settle: Callable[[bool | None], None]) -> None:
        self.result = result
        self.settle = settle


class Answer(NamedTuple):
    """The answer to a request; its first two fields are sent.

    Parameters
    ----------
    status : int
        `OK`, `FAILED` or `CONFIRM`.
    result : object
        The result, or the pickled exception.
    settle : callable, optional
        See `ResultToConfirm`; for the status `CONFIRM` alone.
    """

    status: int
    result: Any
    settle: Callable[[bool | None], None] | None = None


#: Executes a request, and returns its result, which may be a `ResultToConfirm`. An exception that
#: it raises is sent to the client. Its second argument is a function that returns whether the
#: client has gone meanwhile.
Handler: TypeAlias = Callable[[Request, Callable[[], bool]], Any]


def answer_to(
    handler: Handler, request: Request, is_gone: Callable[[], bool] = lambda: False
) -> Answer:
    """Call a handler, and return the answer.

    Parameters
    ----------
    handler : callable
        A `Handler`.
    request : Request
        Its first argument.
    is_gone : callable, optional
        Its second argument.
    """
    try:
        result = handler(request, is_gone)
    except Exception as error:
        return Answer(FAILED, encode_error(error))
    except BaseException as error:  # unpickling a key or a value may run any code
        message = f"{type_name(error)} was raised where it is kept: {safe_str(error)}"
        return Answer(FAILED, encode_error(BatchError(message)))
    if type(result) is ResultToConfirm:
        return Answer(CONFIRM, result.result, result.settle)
    return Answer(OK, result)

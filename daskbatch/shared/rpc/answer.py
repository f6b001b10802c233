"""What is answered to a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daskbatch.errors import BatchError
from daskbatch.shared.data.messages import Request, error_to_send

OK, FAILED, CONFIRM = 0, 1, 2


class Answer:
    """What is answered, if that is more than a result.

    Parameters
    ----------
    result : object
        What was asked for.
    settle : callable
        Is told whether the other side has it: what is given away must not be lost on the way.
    """

    __slots__ = ("result", "settle")

    def __init__(self, result: Any, settle: Callable[[bool], None]) -> None:
        self.result = result
        self.settle = settle


#: Does what is asked for. It may raise, and that is the answer. The second argument says whether
#: nobody waits for that any more.
Handler = Callable[[Request, Callable[[], bool]], Any]


def answer_to(
    handler: Handler, request: Request, is_gone: Callable[[], bool] = lambda: False
) -> tuple[Any, ...]:
    """Have a request answered: a sign of what it is, and the answer."""
    try:
        result = handler(request, is_gone)
    except Exception as error:
        return FAILED, error_to_send(error)
    except BaseException as error:  # of a key or a value, which may run anything
        said = f"{type(error).__name__} was raised where it is kept: {error}"
        return FAILED, error_to_send(BatchError(said))
    if type(result) is Answer:
        return CONFIRM, result.result, result.settle
    return OK, result

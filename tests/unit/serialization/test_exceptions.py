"""Exceptions travel: they come back as they were raised, with the worker's traceback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable

import numpy as np
import pytest

from daskbatch.errors import ProcessFailed, SerializationError, TaskCrashed
from daskbatch.serialization.exceptions import pack_error, unpack_error


def caught(raises: Callable[[], object]) -> BaseException:
    try:
        raises()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def throw(error: BaseException) -> object:
    raise error


def sent(error: BaseException) -> BaseException:
    """Raise and catch an exception as a worker does, and send it."""
    return unpack_error(pack_error(caught(lambda: throw(error)), "'t'"))


class TwoArguments(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__("failed")
        self.code = code


class ChangesItsArgument(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class CountsUp(Exception):
    """Does not show its arguments, and changes them each time it is made."""

    def __init__(self, number: int) -> None:
        super().__init__(number + 1)

    def __str__(self) -> str:
        return "counted"


class NoArguments(Exception):
    def __init__(self) -> None:
        super().__init__("always the same")


class OwnNew(Exception):
    def __new__(cls, *args: object) -> OwnNew:
        error = super().__new__(cls, *args)
        error.made = True  # type: ignore[attr-defined]
        return error


class CannotBeShown(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Address:
    """Its text is its memory address, which differs in every process."""


# -- exceptions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        ValueError("wrong", 3, {"a": [1]}),
        KeyError("missing"),
        OSError(2, "No such file", "/a/b"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        StopIteration(3),
        ImportError("no module", name="m", path="/p"),
        subprocess.CalledProcessError(3, ["ls"], output=b"out"),
        subprocess.TimeoutExpired(["ls"], 5.0),
        json.JSONDecodeError("Expecting value", "{x", 1),
        asyncio.CancelledError("stop"),
        ProcessFailed("code 3", returncode=3, command=["ls"], stderr="no"),
        TaskCrashed("it exited", exitcode=1),
        np.exceptions.AxisError(3, 2),
        TwoArguments(5, "bad"),
        KeywordOnly(code=5),
        ChangesItsArgument("file"),
        CountsUp(3),
        NoArguments(),
        OwnNew("a", 1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_keeps_its_type_its_arguments_and_its_attributes(error: Exception) -> None:
    again = sent(error)
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error)
    assert {**vars(again)} == {**vars(error)}


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (OSError(2, "No such file", "/a/b"), ["errno", "strerror", "filename"]),
        (
            UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "bad"),
            ["encoding", "object", "start", "end"],
        ),
        (UnicodeEncodeError("ascii", "aß", 1, 2, "bad"), ["encoding", "object", "reason"]),
        (StopIteration(3), ["value"]),
        (ImportError("no module", name="m", path="/p"), ["msg", "name", "path"]),
        (SyntaxError("bad", ("f.py", 3, 5, "x y")), ["msg", "filename", "lineno", "text"]),
        (json.JSONDecodeError("bad", "{x", 1), ["doc", "pos", "lineno"]),
        (subprocess.CalledProcessError(3, ["ls"], b"out"), ["returncode", "cmd", "output"]),
        (np.exceptions.AxisError(3, 2), ["axis", "ndim"]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_an_exception_tells_besides_its_arguments_is_kept(
    error: Exception, names: list[str]
) -> None:
    again = sent(error)
    told = {name: getattr(error, name) for name in names}
    assert {name: getattr(again, name) for name in names} == told


def test_an_argument_that_prints_differently_elsewhere_does_not_cost_the_type() -> None:
    again = sent(ValueError("bad", Address()))
    assert type(again) is ValueError
    assert again.args[0] == "bad"
    assert type(again.args[1]) is Address


def test_an_error_of_an_attribute_survives_though_its_object_cannot_be_sent() -> None:
    again = unpack_error(pack_error(caught(lambda: threading.Lock().nothing), "'t'"))  # type: ignore[attr-defined]
    assert type(again) is AttributeError
    assert "nothing" in str(again)


def test_notes_are_kept() -> None:
    for error in (ValueError("a"), TwoArguments(1, "b")):
        error.add_note("first")
        error.add_note("second")
        assert sent(error).__notes__ == ["first", "second"]


def test_exceptions_of_classes_that_are_defined_locally_are_sent() -> None:
    class Local(Exception):
        def __init__(self, code: int, *, more: str) -> None:
            super().__init__(f"code {code}")
            self.more = more

    again = sent(Local(3, more="x"))
    assert type(again).__name__ == "Local"
    assert again.args == ("code 3",)
    assert again.more == "x"  # type: ignore[attr-defined]


def test_groups_keep_their_members() -> None:
    again = sent(ExceptionGroup("several", [ValueError(1), ExceptionGroup("in", [KeyError("k")])]))
    assert type(again) is ExceptionGroup
    assert again.message == "several"
    assert repr(again.exceptions[0]) == "ValueError(1)"
    assert repr(again.exceptions[1].exceptions) == "(KeyError('k'),)"


def test_groups_keep_members_with_odd_signatures() -> None:
    again = sent(ExceptionGroup("several", [TwoArguments(5, "bad"), ValueError(1)]))
    assert type(again) is ExceptionGroup
    assert type(again.exceptions[0]) is TwoArguments
    assert str(again.exceptions[0]) == "5: bad"


# -- exceptions that cannot be sent -------------------------------------------------------


def with_lock() -> Exception:
    error = ValueError("boom")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    return error


class FailsToLoad(Exception):
    def __setstate__(self, state: object) -> None:
        raise RuntimeError("not here")


def fails_to_load() -> Exception:
    error = FailsToLoad("boom")
    error.state = 1  # type: ignore[attr-defined]
    return error


def test_an_attribute_that_cannot_be_sent_is_left_out() -> None:
    again = sent(with_lock())
    assert repr(again) == "ValueError('boom')"
    assert not hasattr(again, "lock")


def test_an_exception_that_cannot_be_sent_is_replaced_by_one_that_tells_of_it() -> None:
    again = sent(ValueError("boom", threading.Lock()))
    assert type(again) is SerializationError
    for part in ("'t'", "ValueError", "boom"):
        assert part in str(again)
    assert "boom" in str(again.__cause__)


def test_an_exception_that_cannot_be_loaded_does_not_harm_who_loads_it() -> None:
    again = sent(fails_to_load())
    assert type(again) in (FailsToLoad, SerializationError)
    assert "boom" in str(again)


def test_an_exception_that_cannot_even_be_shown_is_sent_in_some_form() -> None:
    again = sent(CannotBeShown())
    assert type(again) in (CannotBeShown, SerializationError)


def test_what_is_packed_can_be_loaded_by_another_process() -> None:
    data = pack_error(caught(lambda: throw(ProcessFailed("code 3", returncode=3))), "'t'")
    script = (
        "import sys; from daskbatch.serialization.exceptions import unpack_error;"
        "error = unpack_error(sys.stdin.buffer.read());"
        "print(type(error).__name__, error, error.returncode, 'Traceback' in str(error.__cause__))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, timeout=100
    )
    assert done.stderr == b""
    assert done.stdout.decode().strip() == "ProcessFailed code 3 3 True"


# -- the traceback ------------------------------------------------------------------------


def test_the_cause_is_the_traceback_of_the_worker() -> None:
    def inner() -> None:
        raise ValueError("deep down")

    again = unpack_error(pack_error(caught(inner), "'t'"))
    text = str(again.__cause__)
    assert "in inner" in text
    assert 'raise ValueError("deep down")' in text
    assert text.rstrip().rstrip('"').rstrip().endswith("ValueError: deep down")
    assert text in "".join(traceback.format_exception(again))


def test_the_frames_of_the_worker_are_shown_once() -> None:
    def inner() -> None:
        raise ValueError("deep down")

    again = caught(lambda: throw(unpack_error(pack_error(caught(inner), "'t'"))))
    assert "".join(traceback.format_exception(again)).count("in inner") == 1


def test_what_an_exception_came_from_need_not_be_fit_to_be_sent() -> None:
    def inner() -> None:
        try:
            throw(with_lock())
        except ValueError as error:
            raise KeyError("the outcome") from error

    again = unpack_error(pack_error(caught(inner), "'t'"))
    assert repr(again) == "KeyError('the outcome')"
    assert "ValueError: boom" in str(again.__cause__)


def test_our_own_frames_are_not_shown() -> None:
    def inner() -> None:
        raise ValueError

    assert "in caught" not in str(unpack_error(pack_error(caught(inner), "'t'")).__cause__)


def test_what_the_exception_came_from_is_told_in_the_traceback() -> None:
    def inner() -> None:
        try:
            throw(KeyError("the origin"))
        except KeyError as error:
            raise ValueError("the outcome") from error

    again = unpack_error(pack_error(caught(inner), "'t'"))
    text = str(again.__cause__)
    assert "KeyError: 'the origin'" in text
    assert "direct cause" in text


def test_an_exception_that_was_never_raised_can_be_packed() -> None:
    again = unpack_error(pack_error(ValueError("unraised"), "'t'"))
    assert repr(again) == "ValueError('unraised')"


def test_each_unpacking_makes_a_new_exception() -> None:
    data = pack_error(caught(lambda: throw(ValueError("a"))), "'t'")
    assert unpack_error(data) is not unpack_error(data)


def test_an_exception_that_was_sent_once_can_be_sent_again() -> None:
    again = sent(sent(TwoArguments(5, "bad")))
    assert type(again) is TwoArguments
    assert str(again) == "5: bad"

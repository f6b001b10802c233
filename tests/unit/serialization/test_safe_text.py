"""Whatever the code of an object does, `safe_text` returns a plain text."""

from __future__ import annotations

import functools
import os
import signal
import traceback
import xmlrpc.client
from collections.abc import Callable
from typing import Any

import pytest

from daskbatch.serialization import safe_text
from daskbatch.serialization.tracebacks import user_traceback


class Raises:
    """Raises an exception wherever its code runs.

    Parameters
    ----------
    error : BaseException
        The exception.
    """

    def __init__(self, error: BaseException) -> None:
        vars(self)["error"] = error

    def __getattr__(self, name: str) -> Any:
        raise vars(self)["error"]

    def _raise(self, *args: Any) -> Any:
        raise vars(self)["error"]

    __str__ = __repr__ = __call__ = __eq__ = __bool__ = _raise
    __hash__ = None  # type: ignore[assignment]


class AnswersAll:
    """Answers to every attribute with another object of its kind, as RPC stubs do."""

    def __getattr__(self, name: str) -> AnswersAll:
        return AnswersAll()

    def __call__(self, *args: Any) -> AnswersAll:
        return self


class Loud(str):
    """A text with methods of its own."""

    def __str__(self) -> str:
        raise SystemExit("in str")


class BadMeta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise KeyError("no name")


class Nameless(metaclass=BadMeta):
    pass


class NamelessError(Exception, metaclass=BadMeta):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


ERRORS = [
    *(ValueError("v"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), RecursionError()),
    *(MemoryError(), BaseException("base"), NamelessError()),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__qualname__)
def test_no_text_raises(error: BaseException) -> None:
    bad = Raises(error)
    assert "__str__ raised" in safe_text.safe_str(bad)
    assert safe_text.safe_repr(bad) == "a Raises"
    assert safe_text.type_name(bad) == "Raises"
    assert safe_text.callable_name(bad) == "Raises"
    assert safe_text.attribute(bad, "anything") is None
    assert safe_text.text_attribute(bad, "anything") is None


def test_names_are_texts() -> None:
    stub = xmlrpc.client.ServerProxy("http://127.0.0.1:9/")
    named: list[tuple[Callable[..., Any], str]] = [
        (AnswersAll(), "AnswersAll"),
        (AnswersAll().sqrt, "AnswersAll"),
        (stub.power, "_Method"),
        (pow, "pow"),
        (functools.partial(pow, 2), "pow"),
        (functools.partial(functools.partial(AnswersAll()), 2), "AnswersAll"),
        (test_names_are_texts, "test_names_are_texts"),
        (lambda: None, "<lambda>"),
        (Nameless, "BadMeta"),
        ("".join, "join"),
    ]
    for function, name in named:
        made = safe_text.callable_name(function)
        assert (type(made), made) == (str, name)


def test_a_subclass_of_str_becomes_a_plain_text() -> None:
    def function() -> None: ...

    function.__name__ = Loud("loud")
    assert type(safe_text.callable_name(function)) is str
    assert safe_text.callable_name(function) == "loud"
    assert safe_text.plain(Loud("é")) == "é"
    with pytest.raises(TypeError):
        safe_text.plain(5)  # type: ignore[arg-type]


def test_the_traceback_of_an_ordinary_exception_is_the_one_of_python() -> None:
    with pytest.raises(ValueError, match="second") as caught:
        try:
            raise KeyError("first")
        except KeyError as first:
            first.add_note("a note")
            raise ValueError("second") from first
    error = caught.value
    text = user_traceback(error, error.__traceback__)
    assert text == "".join(traceback.format_exception(error))


class Keyed(Exception):
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Quits(Exception):
    def __str__(self) -> str:
        raise SystemExit("in str")


class Notes(Exception):
    @property
    def __notes__(self) -> Any:
        raise SystemExit("in notes")


def _unformattable() -> list[BaseException]:
    wrong_notes = ValueError("wrong notes")
    wrong_notes.__notes__ = 5  # type: ignore[assignment]
    return [
        *(Keyed("k"), Quits("q"), Notes("n"), NamelessError("m"), wrong_notes),
        SyntaxError("bad", ("f.py", 1, 2, b"text")),  # type: ignore[arg-type]
        AttributeError("a", name="b", obj=Raises(SystemExit(1))),
        NameError("n", name=AnswersAll()),  # type: ignore[arg-type]
        ImportError("i", name=AnswersAll()),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("how", ["alone", "cause", "context", "member"])
@pytest.mark.parametrize("bad", _unformattable(), ids=lambda bad: type(bad).__qualname__)
def test_an_exception_that_python_cannot_format_hides_no_other(
    bad: BaseException, how: str
) -> None:
    text = ""
    try:
        try:
            raise bad
        except BaseException as caught:
            if how == "alone":
                raise
            if how == "cause":
                raise ValueError("the outer one") from caught
            if how == "context":
                raise ValueError("the outer one")  # noqa: B904
            raise BaseExceptionGroup("the outer one", [KeyError("other"), caught]) from None
    except BaseException as error:
        text = user_traceback(error, error.__traceback__)
    assert type(text) is str
    if how != "alone":
        assert "the outer one" in text
    if how == "member":
        assert "KeyError: 'other'" in text
    if type(bad) is not NamelessError:
        assert type(bad).__name__ in text
    assert "raise bad" in text


def test_a_loader_that_raises_costs_the_source_lines_only() -> None:
    class Loader:
        def get_source(self, name: str) -> str:
            raise SystemExit("in the loader")

    scope = {"__name__": "odd", "__loader__": Loader()}
    exec(compile("def fail():\n    raise ValueError('v')", "odd-file.py", "exec"), scope)
    try:
        scope["fail"]()  # type: ignore[operator]
    except ValueError as error:
        text = user_traceback(error, error.__traceback__)
    assert 'File "odd-file.py", line 2, in fail' in text
    assert "ValueError: v" in text


def test_a_long_chain_of_unformattable_causes_ends() -> None:
    first: BaseException = Keyed("first")
    for number in range(3000):
        outer = Keyed(str(number))
        outer.__cause__ = first
        first = outer
    assert "Keyed: 2999" in user_traceback(first, None)
    first.__cause__.__cause__ = first  # type: ignore[union-attr]
    assert "Keyed: 2999" in user_traceback(first, None)


class Signals:
    """Sends a signal to this process in the middle of its ``__str__``.

    Parameters
    ----------
    number : signal
        The signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __str__(self) -> str:
        os.kill(os.getpid(), self.number)
        return "the signal was not handled"


def test_ctrl_c_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        safe_text.safe_str(Signals(signal.SIGINT))


@pytest.mark.parametrize("wrap", [lambda h: h, functools.partial], ids=["function", "partial"])
def test_an_exception_of_a_signal_handler_is_not_swallowed(wrap: Callable[[Any], Any]) -> None:
    class Alarm(BaseException):
        pass

    def handle(number: int, frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGUSR1, wrap(handle))
    try:
        with pytest.raises(Alarm):
            safe_text.safe_str(Signals(signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)

"""Templates are filled with arguments; the result describes a task; wrong arguments are refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskbatch import CommunicationDomain, CommunicationObject, SpecError
from daskbatch.describe.template.arguments import UNUSED
from daskbatch.describe.template.binding import (
    BoundTemplate,
    ChannelUse,
    FilledExecutable,
    TaskDescription,
)
from daskbatch.describe.template.reader import parse_template

STORE = CommunicationObject(CommunicationDomain(), "store")


def bind(text: str, *args: Any, **kwargs: Any) -> BoundTemplate:
    return BoundTemplate(parse_template(text.encode(), "my.yml"), args, kwargs)


def function(
    rest: str, args: str = "[i]", known: Mapping[str, Any] | None = None
) -> Callable[..., TaskDescription]:
    """Bind a template of type function with a target, and other import arguments."""
    known = known or {}
    made = bind(
        f"import_args: [target, {', '.join(known)}]\nargs: {args}\ntype: function\n{rest}",
        print,
        *known.values(),
    )
    return lambda *args, **kwargs: made.fill(args, kwargs)


def values(args: str, known: Mapping[str, Any] | None = None) -> Callable[..., tuple[Any, ...]]:
    """Make a function that returns the arguments of the target."""
    fill = function(f"executables: [{{target: target, args: {args}}}]", known=known)
    return lambda *args: fill(*args).executables[0].args


def complaint(call: Callable[[], object]) -> str:
    with pytest.raises(SpecError) as caught:
        call()
    return str(caught.value)


# -- values -------------------------------------------------------------------------------


def test_a_function_with_all_that_it_can_have() -> None:
    made = bind(
        """
import_args: [f, base_dir, get_file]
args: [matrix, i]
kwargs: {seconds: limit, place: cwd}
type: function
executables:
  - target: f
    args: [matrix, i, text, 5, null]
    kwargs: {number: i, fixed: true}
    cwd: cwd
    env: {A: text, B: base_dir}
reads:
  - files:
      - get_file: [base_dir, i, 0]
      - [base_dir, name.txt]
writes:
  - ddict: matrix
    keys: [i, 7]
  - ddict: matrix
name: a task
timeout: {min: 1, sec: limit}
""",
        print,
        Path("/base"),
        lambda base, i, j: base / f"file_{i + j}",
    )
    assert made.fill((STORE, 3), {"seconds": 2.5, "place": "/tmp"}) == TaskDescription(
        "function",
        "a task",
        62.5,
        (
            FilledExecutable(
                print,
                (STORE, 3, "text", 5, None),
                {"number": 3, "fixed": True},
                1,
                "/tmp",
                {"A": "text", "B": "/base"},
            ),
        ),
        (ChannelUse(14, Path("/base/file_3"), ()), ChannelUse(15, Path("/base"), ("name.txt",))),
        (ChannelUse(17, STORE, (3, 7)), ChannelUse(19, STORE, ())),
    )


def test_a_process() -> None:
    made = bind("args: [n]\ntype: process\nexecutables: [{target: ls, args: [-l, n]}]")
    filled = made.fill((Path("x"),), {})
    assert filled == TaskDescription(
        "process",
        None,
        None,
        (FilledExecutable("ls", ("-l", Path("x")), {}, 1, None, None),),
        (),
        (),
    )
    assert made.has_constant_options


def test_a_job_of_several() -> None:
    made = bind(
        """
import_args: [ranks, on_ranks]
args: [n]
type: job
executables:
  - {target: ./solver, num_procs: ranks, args: [n]}
  - {target: on_ranks, nprocs: n, kwargs: {n: n}}
  - {target: ./writer}
""",
        np.int64(4),
        len,
    )
    filled = made.fill((2,), {})
    assert filled.type == "job"
    assert filled.executables == (
        FilledExecutable("./solver", (2,), {}, 4, None, None),
        FilledExecutable(len, (), {"n": 2}, 2, None, None),
        FilledExecutable("./writer", (), {}, 1, None, None),
    )
    assert type(filled.executables[0].num_procs) is int


def test_calls_are_made_anew_for_each_task() -> None:
    counted = iter(range(100))
    get = values(
        "[{outer: [{inner: [i]}]}, {count: []}]", {**calls_, "count": lambda: next(counted)}
    )
    assert get(1) == ("outer(inner(1))", 0)
    # The predecessor of this library kept the inner value of the first call.
    assert get(2) == ("outer(inner(2))", 1)
    assert get(1) == ("outer(inner(1))", 2)


calls_: dict[str, Any] = {
    "outer": lambda inside: f"outer({inside})",
    "inner": lambda inside: f"inner({inside})",
}


def test_a_call_of_what_is_known_at_import_is_made_anew_too() -> None:
    counted = iter(range(100))
    get = values("[{next: [counted]}]", {"next": next, "counted": counted})
    assert [get(0), get(0)] == [(0,), (1,)]


def test_the_function_of_a_call_may_come_with_the_call() -> None:
    get = values("[{i: [-5]}]")
    assert get(abs) == (5,)
    assert get(str) == ("-5",)
    assert complaint(lambda: get(5)) == (
        "my.yml:4: a map {i: [...]} calls 'i': expected a function there, not 5"
    )


def test_a_function_that_is_called_must_be_one_at_import() -> None:
    assert "calls 'g': expected a function there, not 'text'" in complaint(
        lambda: values("[{g: [i]}]", {"g": "text"})
    )


def test_lists_are_new_for_each_call() -> None:
    get = values("[[i, [1, 2]], []]")
    first, second = get("x"), get("y")
    assert first == (["x", [1, 2]], [])
    assert second == (["y", [1, 2]], [])
    assert first[0][1] is not second[0][1]
    assert first[1] is not second[1]


def test_arguments_go_in_as_they_are() -> None:
    thing = object()
    get = values("[i, known]", {"known": thing})
    other = [1]
    assert get(other)[0] is other
    assert get(other)[1] is thing


def test_what_a_function_raises_says_where_it_was_called() -> None:
    get = values("[{outer: [{inner: [i]}]}]", {"outer": str, "inner": lambda i: 1 / i})
    with pytest.raises(ZeroDivisionError) as caught:
        get(0)
    assert caught.value.__notes__ == ["raised by inner, which my.yml:4 calls"]


def test_all_of_several_entries_count() -> None:
    # The predecessor of this library looked only at the first of them.
    fill = function(
        """
executables: [{target: target}]
reads:
  - {ddict: i, keys: [1, j]}
  - {ddict: j, keys: [i]}
  - files: [a]
  - files: [b]
""",
        args="[i, j]",
    )
    assert fill(STORE, 2).reads == (
        ChannelUse(7, STORE, (1, 2)),
        ChannelUse(8, 2, (STORE,)),
        ChannelUse(9, "a", ()),
        ChannelUse(10, "b", ()),
    )


# -- files --------------------------------------------------------------------------------

READS = "executables: [{target: target}]\nreads: [{files: [%s]}]"


@pytest.mark.parametrize(
    ("written", "given", "meant"),
    [
        ("a.txt", None, ("a.txt", ())),
        ("i", "b.txt", ("b.txt", ())),
        ("i", Path("b.txt"), (Path("b.txt"), ())),
        ("i", ("dir", "b.txt"), ("dir", ("b.txt",))),
        ("i", ["dir", Path("b.txt")], ("dir", (Path("b.txt"),))),
        ("[dir, i]", "b.txt", ("dir", ("b.txt",))),
        ("[i, {text: [i]}]", Path("d"), (Path("d"), ("d",))),
        ("{pair: [i]}", "b", ("b", ("b",))),
        ("{text: [i]}", 5, ("5", ())),
    ],
)
def test_files(written: str, given: object, meant: tuple[Any, ...]) -> None:
    known = {"text": str, "pair": lambda i: (i, i)}
    assert function(READS % written, known=known)(given).reads == (ChannelUse(5, *meant),)


@pytest.mark.parametrize(
    "given",
    [
        *(5, None, b"x", (), ("a",), ("a", 5), ("a", "b", "c"), {}, STORE),
        *("", ("", "a"), ("a", ""), ["", ""]),  # no file is meant by an empty text
    ],
)
def test_what_is_no_file(given: object) -> None:
    said = complaint(lambda: function(READS % "i")(given))
    assert said.startswith("my.yml:5: found ")
    assert said.endswith("expected a path, as str or Path, or a pair of them: base_dir, name")


def test_an_empty_text_within_a_pair_is_no_file() -> None:
    fill = function(READS % "[i, a.txt], [dir, i]")
    assert "my.yml:5: found a list: expected a path" in complaint(lambda: fill(""))
    assert fill("b").reads == (ChannelUse(5, "b", ("a.txt",)), ChannelUse(5, "dir", ("b",)))


def test_a_file_that_is_known_must_be_one_at_import() -> None:
    assert "expected a path" in complaint(lambda: function(READS % "known", known={"known": 5}))


def test_a_path_is_no_dictionary() -> None:
    fill = function("executables: [{target: target}]\nwrites: [{ddict: i, keys: [a]}]")
    assert "my.yml:5: ddict is 'x': expected a dictionary" in complaint(lambda: fill("x"))


# -- what a task has besides --------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "given", "seconds"),
    [
        ("{sec: 5}", None, 5.0),
        ("{min: 1}", None, 60.0),
        ("{hour: 1.5, sec: 0}", None, 5400.0),
        ("{day: 2, hour: 3, min: 4, sec: 5}", None, 2 * 86400 + 3 * 3600 + 4 * 60 + 5.0),
        ("{sec: i}", 7, 7.0),
        ("{sec: i}", np.float32(0.5), 0.5),
        ("{min: i, sec: 1}", 2, 121.0),
        ("{min: {half: [i]}}", 1, 30.0),
    ],
)
def test_timeouts(written: str, given: object, seconds: float) -> None:
    text = f"executables: [{{target: target}}]\ntimeout: {written}"
    filled = function(text, known={"half": lambda n: n / 2})(given)
    assert filled.timeout == seconds
    assert type(filled.timeout) is float


@pytest.mark.parametrize(
    "given", ["5", None, True, -1, float("nan"), float("inf"), 10**400, timedelta(seconds=1)]
)
def test_what_is_no_time(given: object) -> None:
    fill = function("executables: [{target: target}]\ntimeout: {sec: i}")
    said = complaint(lambda: fill(given))
    assert said.startswith("my.yml:5: found ")
    assert said.endswith("expected a number from 0, which is a part of the timeout")


def test_no_time_at_all() -> None:
    fill = function("executables: [{target: target}]\ntimeout: {sec: i, min: 0}")
    assert complaint(lambda: fill(0)) == "my.yml:5: timeout adds up to 0: expected some time"
    known = {"none": 0}
    text = "executables: [{target: target}]\ntimeout: {sec: none}"
    assert "adds up to 0" in complaint(lambda: function(text, known=known))


@pytest.mark.parametrize(
    ("rest", "given", "expected"),
    [
        ("executables: [{target: i}]", 5, "a function, which is the target"),
        ("executables: [{target: i}]", "ls", "a function, which is the target"),
        ("executables: [{target: {i: []}}]", lambda: 5, "a function, which is the target"),
        ("executables: [{target: target, cwd: i}]", 5, "a directory, as str or Path, for cwd"),
        ("executables: [{target: target, cwd: i}]", "", "a directory, as str or Path, for cwd"),
        ("executables: [{target: target, env: i}]", 5, "a dict of str to str for env"),
        ("executables: [{target: target, env: i}]", {"A": 1}, "for env; 'A' is wrong in it"),
        ("executables: [{target: target, env: {A: i}}]", 5, "a text for env"),
        ("executables: [{target: target, env: {A: i}}]", "a\0b", "a text for env"),
        ("executables: [{target: target, env: i}]", {"A": "a\0b"}, "'A' is wrong in it"),
        ("executables: [{target: target, env: i}]", {"A": "x", "B=": "y"}, "; 'B=' cannot be one"),
        ("executables: [{target: target, env: i}]", {"": "x"}, "for env; '' cannot be one"),
        ("executables: [{target: target}]\nname: i", 5, "a text, which is the name of the task"),
        ("executables: [{target: target}]\nname: i", "", "a text, which is the name of the task"),
    ],
)
def test_wrong_arguments_are_told_with_the_line(rest: str, given: Any, expected: str) -> None:
    line = 3 + len(rest.splitlines())
    said = complaint(lambda: function(rest)(given))
    assert said.startswith(f"my.yml:{line}: found ")
    assert said.endswith(expected)
    # A wrong import argument is refused at the import.
    known = rest.replace("i}", "known}").replace(": i", ": known").replace("{i:", "{known:")
    if "[]" not in rest:
        assert expected in complaint(lambda: function(known, known={"known": given}))


def test_a_number_that_python_does_not_write_is_told_of() -> None:
    fill = function("executables: [{target: target}]\ntimeout: {sec: i}")
    assert "my.yml:5: found a int: expected a number" in complaint(lambda: fill(10**5_000))


@pytest.mark.parametrize("given", [0, -1, 1.0, "2", True, None])
def test_wrong_numbers_of_processes(given: object) -> None:
    made = bind("args: [n]\ntype: job\nexecutables: [{target: ls, num_procs: n}]")
    said = complaint(lambda: made.fill((given,), {}))
    assert "my.yml:3: found" in said
    assert "expected a whole number from 1" in said


def test_wrong_executables() -> None:
    made = bind("args: [x]\ntype: process\nexecutables: [{target: x}]")
    for given in (5, None, "", print):
        assert "expected an executable, as str or Path" in complaint(
            lambda given=given: made.fill((given,), {})
        )
    job = bind("args: [x]\ntype: job\nexecutables: [{target: x, kwargs: {a: 1}}]")
    assert job.fill((print,), {}).executables[0].kwargs == {"a": 1}
    assert "an executable takes no kwargs" in complaint(lambda: job.fill(("ls",), {}))


def test_none_is_as_if_it_were_left_out() -> None:
    fill = function("executables: [{target: target, cwd: i, env: i}]\nname: i")
    filled = fill(None)
    assert (filled.name, filled.executables[0].cwd, filled.executables[0].env) == (None, None, None)


def test_a_path_is_a_text_in_an_environment() -> None:
    class Raw(os.PathLike[bytes]):
        def __fspath__(self) -> bytes:
            return b"/raw"

    fill = function("executables: [{target: target, env: {A: i}}]")
    assert fill(Path("/p")).executables[0].env == {"A": "/p"}
    assert fill(Raw()).executables[0].env == {"A": "/raw"}
    whole = function("executables: [{target: target, env: i}]")
    assert whole({"A": Raw()}).executables[0].env == {"A": "/raw"}


def test_an_environment_that_is_known_at_import_is_as_it_was_then() -> None:
    env = {"A": "1"}
    fill = function("executables: [{target: target, env: env}]", known={"env": env})
    env["A"] = "2"
    assert fill(0).executables[0].env == {"A": "1"}


@pytest.mark.parametrize(
    ("rest", "steady"),
    [
        ("executables: [{target: target, args: [i]}]", True),
        ("executables: [{target: target, cwd: known, env: {A: known}}]\ntimeout: {sec: 1}", True),
        ("executables: [{target: target, cwd: i}]", False),
        ("executables: [{target: target, env: {A: i}}]", False),
        ("executables: [{target: target, cwd: {str: [known]}}]", False),
        ("executables: [{target: target}]\ntimeout: {sec: i}", False),
    ],
)
def test_whether_all_calls_share_their_options(rest: str, steady: bool) -> None:
    text = f"import_args: [target, known, str]\nargs: [i]\ntype: function\n{rest}"
    assert bind(text, print, "x", str).has_constant_options is steady


# -- arguments ----------------------------------------------------------------------------

DECLARED = """
import_args: [f, unused_1, g, unused_2]
import_kwargs: {one: first, other: unused_3}
args: [a, unused_4, b, unused_5]
kwargs: {key: c, free: unused_6}
type: function
executables: [{target: f, args: [first, a, b, c, {g: [a]}]}]
"""


def test_what_nothing_uses_may_be_left_out() -> None:
    made = bind(DECLARED, print, None, str, one=1)
    assert made.fill((2, None, 3), {"key": 4}).executables[0].args == (1, 2, 3, 4, "2")
    full = bind(DECLARED, print, None, str, None, one=1, other=None)
    filled = full.fill((2, None, 3, None), {"key": 4, "free": None})
    assert filled.executables[0].args == (1, 2, 3, 4, "2")


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {"one": 1}, "import_func() lacks the argument 'f', which my.yml uses in line 7"),
        ((print, 0), {"one": 1}, "import_func() lacks the argument 'g', which my.yml uses"),
        ((print, 0, str), {}, "import_func() lacks the keyword 'one', which my.yml uses in line 7"),
        ((print, 0, str, 0, 0), {"one": 1}, "import_func() takes 4 by position (f, unused_1, g, "),
        ((print, 0, str), {"on": 1}, "no keyword 'on': it takes one, other; did you mean 'one'?"),
        ((print, 0, str), {"f": 1}, "import_func() takes no keyword 'f': give it by position"),
    ],
)
def test_import_arguments_that_do_not_fit(
    args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    assert said in complaint(lambda: bind(DECLARED, *args, **kwargs))


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {"key": 1}, "print() lacks the argument 'a', which my.yml uses in line 7"),
        ((1, 2), {"key": 1}, "print() lacks the argument 'b', which"),
        ((1, 2, 3), {}, "print() lacks the keyword 'key', which my.yml uses in line 7"),
        ((1, 2, 3, 4, 5), {"key": 1}, "print() takes 4 by position (a, unused_4, b, unused_5), b"),
        ((1, 2, 3), {"kye": 1}, "print() takes no keyword 'kye': it takes key, free; did you mean"),
        ((1, 2), {"b": 3, "key": 1}, "print() takes no keyword 'b': give it by position"),
        ((1, 2, 3), {"c": 1}, "print() takes no keyword 'c': it takes key, free"),
    ],
)
def test_arguments_that_do_not_fit(
    args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    made = bind(DECLARED, print, None, str, one=1)
    assert said in complaint(lambda: made.fill(args, kwargs))


def test_a_keyword_may_be_written_with_an_accent_behind_its_letter() -> None:
    # Python treats both as one name, and always passes the one with the accent in the letter.
    made = bind(
        "import_args: [f]\nkwargs: {cafe\N{COMBINING ACUTE ACCENT}: x}\ntype: function\n"
        "executables: [{target: f, args: [x]}]",
        print,
    )
    keyword = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert made.fill((), {keyword: -1}).executables[0].args == (-1,)
    assert list(made.signature.parameters) == [keyword]


def test_a_form_that_takes_nothing() -> None:
    made = bind("type: process\nexecutables: [{target: date}]")
    assert made.fill((), {}).executables[0].target == "date"
    assert "my() takes none by position, but 1 were given" in complaint(lambda: made.fill((1,), {}))
    assert "my() takes no keyword 'a': it takes none" in complaint(lambda: made.fill((), {"a": 1}))


def test_the_signature_says_what_can_be_left_out() -> None:
    signature = bind(DECLARED, print, None, str, one=1).signature
    assert str(signature) == "(a, unused_4, b, unused_5=<unused>, /, *, key, free=<unused>)"
    assert signature.parameters["free"].default is UNUSED
    # Keywords of Python may be names in a file, for arguments by position.
    odd = bind("args: [in, class]\ntype: process\nexecutables: [{target: ls, args: [in]}]")
    assert str(odd.signature) == "(in, class=<unused>, /)"


def test_a_keyword_of_the_import_may_be_a_name_in_the_file() -> None:
    # The function that makes the tasks has a signature, which cannot hold it; the import has
    # none.
    made = bind(
        "import_args: [f, i]\nimport_kwargs: {i: j}\ntype: function\n"
        "executables: [{target: f, args: [i, j]}]",
        print,
        1,
        i=2,
    )
    assert made.fill((), {}).executables[0].args == (1, 2)


@pytest.mark.parametrize(
    ("text", "args", "label"),
    [
        (
            "import_args: [f]\ntype: function\nexecutables: [{target: f}]\nname: mine",
            (len,),
            "mine",
        ),
        ("import_args: [f]\ntype: function\nexecutables: [{target: f}]", (len,), "len"),
        ("args: [f]\ntype: function\nexecutables: [{target: f}]", (), "my"),
        ("type: process\nexecutables: [{target: ls}]", (), "my"),
    ],
)
def test_what_the_function_is_called(text: str, args: tuple[Any, ...], label: str) -> None:
    assert bind(text, *args).label == label


# -- calls among the import arguments -----------------------------------------------------

COMPUTED = """
import_args: [f, join, base]
import_kwargs:
  fixed: a_fixed_arg
  made:
    join: [a_fixed_arg, base]
  again: {join: [made, made]}
type: function
executables: [{target: f, args: [made, again]}]
"""


def test_a_call_gives_an_import_argument_that_is_left_out() -> None:
    joined: list[tuple[str, str]] = []

    def join(one: str, other: str) -> str:
        joined.append((one, other))
        return f"{one}+{other}"

    made = bind(COMPUTED, print, join, "b", fixed="a")
    assert joined == [("a", "b"), ("a+b", "a+b")]
    assert made.fill((), {}).executables[0].args == ("a+b", "a+b+a+b")
    assert made.fill((), {}).executables[0].args == ("a+b", "a+b+a+b")
    assert len(joined) == 2  # once, at the import: it is an import argument


def test_a_given_argument_takes_the_place_of_its_call() -> None:
    made = bind(COMPUTED, print, lambda *_: "joined", made="given")
    assert made.fill((), {}).executables[0].args == ("given", "joined")
    both = bind(COMPUTED, print, made=1, again=2)  # and nothing needs `join`
    assert both.fill((), {}).executables[0].args == (1, 2)


def test_a_call_that_nobody_needs_is_not_made() -> None:
    text = COMPUTED.replace("args: [made, again]", "args: [made]")

    def join(one: str, other: str) -> str:
        assert (one, other) == ("a", "b")
        return "joined"

    assert bind(text, print, join, "b", fixed="a").fill((), {}).executables[0].args == ("joined",)


def test_what_the_calls_need_must_be_there() -> None:
    assert "lacks the argument 'base', which my.yml uses in line 6" in complaint(
        lambda: bind(COMPUTED, print, max, fixed=1)
    )
    assert "lacks the keyword 'fixed', which my.yml uses in line 6" in complaint(
        lambda: bind(COMPUTED, print, max, 1)
    )


# -- threads ------------------------------------------------------------------------------


def test_threads_may_fill_one_form_at_once() -> None:
    inside = threading.Barrier(2, timeout=30)

    def meet(i: int) -> int:
        inside.wait()  # both threads are in the middle of a call
        return i

    get = values("[{outer: [{inner: [i]}]}, i]", {"outer": meet, "inner": meet})
    found: dict[int, list[tuple[Any, ...]]] = {0: [], 1000: []}

    def work(start: int) -> None:
        found[start] += [get(start + n) for n in range(200)]

    threads = [threading.Thread(target=work, args=(start,)) for start in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for start, filled in found.items():
        assert filled == [(start + n, start + n) for n in range(200)]


def test_a_call_may_fill_the_form_that_makes_it() -> None:
    made: list[Callable[..., tuple[Any, ...]]] = []
    made.append(values("[{g: [i]}, i]", {"g": lambda i: made[0](i - 1) if i else "end"}))
    assert made[0](2) == ((("end", 0), 1), 2)
